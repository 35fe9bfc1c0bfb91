"""The trained part of a model behind its frozen trunk, whose vectors are computed once and reused in every epoch.

With all blocks but the last frozen, an epoch of GPT-2 computes eleven blocks whose result never changes. Here a table
keeps what leaves the trunk, an entry for each token of the training texts; a batch then names entries instead of token
ids, and all else stays as it is.

Shapes: B texts, T tokens, D width, N tokens of all texts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpt_core import GPTModel
from gpt_finetune.padding import padded_batches


class TrainedPart(nn.Module):
    """What of ``model`` is trained; a module of its own, so that the rest stays in eval mode.

    The trunk is the embeddings and the blocks before the first parameter that requires a gradient: there is none if an
    embedding or the first block is trained. It runs without dropout, reused or not.
    """

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        self._model = (model.eval(),)  # in a tuple, so that train() does not reach the trunk
        self.n_frozen = n_frozen_blocks(model)
        if self.n_frozen:
            self.blocks, self.final_norm, self.out_head = (
                model.trf_blocks[self.n_frozen :], model.final_norm, model.out_head,
            )
        else:
            self.whole = model
        self._table: Tensor | None = None

    @property
    def model(self) -> GPTModel:
        """The whole model."""
        return self._model[0]

    def table_bytes(self, n_tokens: int) -> int:
        """Return the memory that ``reuse`` takes for texts of so many tokens in all."""
        return n_tokens * self.model.config.emb_dim * self.model.tok_emb.weight.element_size()

    @torch.no_grad()
    def reuse(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Compute the trunk for all ``sequences`` of ids; return each one's entries in the table: pass those instead.

        From now on ``forward`` takes such entries. Raises ValueError if there is no trunk.
        """
        if not self.n_frozen:
            raise ValueError("nothing is frozen before the first trained parameter, so there is nothing to reuse")
        starts = [0]
        for ids in sequences:
            starts.append(starts[-1] + len(ids))
        weight = self.model.tok_emb.weight
        table = torch.empty(starts[-1], weight.shape[1], dtype=weight.dtype, device=weight.device)       # (N, D)
        for numbers, inputs, lengths in padded_batches(sequences, weight.device):
            vectors = self._trunk(inputs)                                                                # (B, T, D)
            for number, length, vector in zip(numbers, lengths.tolist(), vectors, strict=True):
                table[starts[number] : starts[number] + length] = vector[:length]
        self._table = table
        return [list(range(start, start + len(ids))) for start, ids in zip(starts, sequences, strict=False)]

    def forward(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the vectors that the head reads: (B, D) at the positions ``rows`` (B,), or all, (B, T, D).

        ``inputs`` (B, T) are token ids, or after ``reuse`` entries of the table.
        """
        if not self.n_frozen:
            return self.model.features(inputs, rows=rows)
        with torch.no_grad():
            x = self._trunk(inputs) if self._table is None else self._table[inputs]                      # (B, T, D)
        return self.model.final_norm(self.model.run_blocks(x, first=self.n_frozen, rows=rows))

    def _trunk(self, inputs: Tensor) -> Tensor:
        # Without autocast, as for the table: the trained weights must not depend on whether there is one.
        with torch.autocast(inputs.device.type, enabled=False):
            return self.model.run_blocks(self.model.embed(inputs), last=self.n_frozen)


def n_frozen_blocks(model: GPTModel) -> int:
    """Return how many blocks, from the first on, have no trained parameter; 0 if an embedding is trained."""
    embeddings = [model.tok_emb, *([model.pos_emb] if model.config.positions == "learned" else [])]
    if any(parameter.requires_grad for part in embeddings for parameter in part.parameters()):
        return 0
    for number, block in enumerate(model.trf_blocks):
        if any(parameter.requires_grad for parameter in block.parameters()):
            return number
    return len(model.trf_blocks)


def train_only_last_blocks(model: GPTModel, n_blocks: int = 1) -> None:
    """Freeze all but the head, the final norm and the last ``n_blocks`` blocks, as chapter 6 does with one.

    Raises ValueError if the model has fewer blocks.
    """
    if not 0 <= n_blocks <= len(model.trf_blocks):
        raise ValueError(f"n_blocks must lie between 0 and the model's {len(model.trf_blocks)}, got {n_blocks}")
    model.requires_grad_(False)
    for part in (*model.trf_blocks[len(model.trf_blocks) - n_blocks :], model.final_norm, model.out_head):
        part.requires_grad_(True)
