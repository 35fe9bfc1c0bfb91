"""The forward pass of generation: tokens of several sequences packed into one matrix, no padding, no gradients.

``GPTModel`` computes (B, T) at once, for training and for reading. Here each pass takes a list of ``Chunk``, the next
tokens of some sequences, puts them one below the other, and computes every product once for all of them; attention
looks up each sequence's own keys and values in a ``SlotCache``. So a sequence's numbers never meet another's, nor
padding, and a prompt may arrive in pieces. A step of one token calls 20 operators a block, the modules 28 (by torch's
profiler): at 124M on a 2-core AMD EPYC (Zen 4) it took 21.9 ms, and through the modules 27.2.

Shapes: R packed tokens, B sequences, T tokens of one, D width, H query heads, G key-value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_attention import OpenSlots, SlotCache, attend, rotary_angles, rotate
from gpt_core.config import GPTConfig


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence."""

    slot: int
    """The sequence's place in the cache."""

    start: int
    """Position of the first of them: how many tokens of the sequence the cache holds."""

    ids: Sequence[int]
    """The tokens, at least one."""

    n_logits: int
    """Of how many of them, counted from the last, the logits are wanted."""


class Product(Protocol):
    """A linear layer with fixed weights; see ``gpt_attention.PreparedLinear``."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return x W^T + b."""
        ...

    def gelu(self, x: Tensor, /) -> Tensor:
        """Return GELU of the product."""
        ...

    def add(self, x: Tensor, residual: Tensor, /) -> Tensor:
        """Return the product added to ``residual``."""
        ...


@dataclass(frozen=True)
class BlockWeights:
    """One block: its norms' (scale, shift) and its four products."""

    norm1: tuple[Tensor, Tensor | None]
    qkv: Callable[[Tensor], Tensor]
    out: Product
    norm2: tuple[Tensor, Tensor | None]
    up: Product
    down: Product


class Embedding(Protocol):
    """Token ids (R,) to vectors (R, D)."""

    def __call__(self, ids: Tensor, /) -> Tensor:
        """Return the vectors."""
        ...


class InferenceModel(nn.Module):
    """A GPT that only generates: logits of packed chunks, and of a batch as any language model gives them.

    It has no parameters to train or to save; ``GPTModel`` has. Made by the generation engine and by ``quantize``.
    """

    def __init__(
        self,
        config: GPTConfig,
        *,
        tok_emb: Embedding,
        pos_emb: Tensor | None,
        blocks: Sequence[BlockWeights],
        final_norm: tuple[Tensor, Tensor | None],
        head: Product,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config, self.device = config, device
        self.cache_dtype = dtype
        self._tok_emb, self._pos_emb, self._blocks = tok_emb, pos_emb, list(blocks)
        self._final_norm, self._head = final_norm, head
        self.eval()

    def forward(self, in_idx: Tensor) -> Tensor:
        """Return the logits (B, T, V) of ids (B, T).

        Raises ValueError unless B >= 1 and 1 <= T <= context_length, IndexError for an id outside the vocabulary.
        """
        if in_idx.ndim != 2 or in_idx.numel() == 0 or in_idx.shape[1] > self.config.context_length:
            raise ValueError(
                f"token ids must have shape (batch, tokens) with 1 to {self.config.context_length} tokens, "
                f"got {tuple(in_idx.shape)}"
            )
        least, most = (int(extreme) for extreme in in_idx.aminmax())
        if least < 0 or most >= self.config.vocab_size:
            raise IndexError(
                f"token ids must lie in 0..{self.config.vocab_size - 1}, got {least}..{most}; encode with the "
                "tokenizer that the model was trained with"
            )
        rows = in_idx.tolist()
        cache = self.new_cache(n_slots=len(rows), capacity=in_idx.shape[1])
        chunks = [Chunk(slot, 0, row, len(row)) for slot, row in enumerate(rows)]
        with torch.no_grad():  # not inference_mode: the caller may compute on with the result
            return self._logits(chunks, cache).view(*in_idx.shape, -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InferenceModel:
        raise RuntimeError("an InferenceModel stays as it was made; move or convert the GPTModel and quantize it again")

    def new_cache(self, *, n_slots: int, capacity: int) -> SlotCache:
        """Return an empty cache for ``n_slots`` sequences of up to ``capacity`` tokens."""
        return SlotCache(
            n_layers=self.config.n_layers, n_slots=n_slots, capacity=capacity,
            n_heads=self.config.n_kv_heads or self.config.n_heads, head_dim=self.config.head_dim,
            dtype=self.cache_dtype, device=self.device,
        )

    def logits(self, chunks: Sequence[Chunk], cache: SlotCache) -> Tensor:
        """Compute the chunks, add them to the cache, and return the logits that they want, one row a token, float32.

        The rows are in the chunks' order. The slots of chunks of one token each must be 0, 1, 2, ... to be computed
        in one go; any others are looked at one by one. The result is a tensor of inference mode.
        """
        with torch.inference_mode():
            return self._logits(chunks, cache)

    def _logits(self, chunks: Sequence[Chunk], cache: SlotCache) -> Tensor:
        step = _Step.of(chunks, self.config, self.device)
        if step.visible is not None:
            opened = [cache.open_each(step.positions, step.visible.shape[-1])]
        else:
            opened = [cache.open(chunk.slot, chunk.start, len(chunk.ids)) for chunk in chunks]
        with torch.autocast(self.device.type, enabled=False):  # the dtype is that of the weights, as they were made
            x = self._tok_emb(step.ids)                                                 # (R, D)
            if self._pos_emb is not None:
                x = x + self._pos_emb[step.positions]
            for layer, block in enumerate(self._blocks):
                context = self._attend(block.qkv(self._norm(x, block.norm1)), layer, step, opened)
                if layer == len(self._blocks) - 1 and step.wanted is not None:
                    # Later tokens need the others' keys and values; what follows in the last block nobody asks for.
                    if len(step.wanted) == 0:
                        return x.new_empty(0, self.config.vocab_size, dtype=torch.float32)
                    context, x = context[step.wanted], x[step.wanted]
                x = block.out.add(context, x)
                x = block.down.add(block.up.gelu(self._norm(x, block.norm2)), x)
            return self._head(self._norm(x, self._final_norm)).float()                  # (wanted, V)

    def _norm(self, x: Tensor, weights: tuple[Tensor, Tensor | None]) -> Tensor:
        scale, shift = weights
        if self.config.norm == "rmsnorm":
            return F.rms_norm(x, scale.shape, scale, 1e-5)
        return F.layer_norm(x, scale.shape, scale, shift, 1e-5)

    def _attend(self, qkv: Tensor, layer: int, step: _Step, opened: list[list[OpenSlots]]) -> Tensor:
        """Return the context vectors (R, D) of the packed queries, keys and values (R, (H + 2 G) K)."""
        H, K = self.config.n_heads, self.config.head_dim
        qkv = qkv.to(self.cache_dtype)
        queries = qkv[:, : H * K].unflatten(1, (H, K))                                  # (R, H, K)
        keys_values = qkv[:, H * K :].unflatten(1, (2, -1, K))                          # (R, 2, G, K)
        if step.angles is not None:
            queries = rotate(queries.transpose(0, 1), *step.angles).transpose(0, 1)
            keys = rotate(keys_values[:, 0].transpose(0, 1), *step.angles).transpose(0, 1)
            keys_values = torch.stack((keys, keys_values[:, 1]), dim=1)
        window = self.config.sliding_window
        if step.visible is not None:  # one token of each sequence
            keys, values = opened[0][layer].write(keys_values)
            context = attend(queries[:, :, None], keys, values, causal=False, mask=step.visible)  # (B, H, 1, K)
            return context.flatten(1)
        parts = []
        for places, (first, end) in zip(opened, step.spans, strict=True):
            keys, values = places[layer].write(keys_values[first:end])
            context = attend(queries[first:end].transpose(0, 1)[None], keys, values, window=window)  # (1, H, T, K)
            parts.append(context[0].transpose(0, 1).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class _Step:
    """What every layer of one pass needs to know."""

    chunks: Sequence[Chunk]
    spans: list[tuple[int, int]]
    ids: Tensor
    positions: Tensor
    wanted: Tensor | None
    visible: Tensor | None
    angles: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, chunks: Sequence[Chunk], config: GPTConfig, device: torch.device) -> _Step:
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        spans = []
        for chunk in chunks:
            first = len(ids)
            ids += chunk.ids
            end = len(ids)
            positions += range(chunk.start, chunk.start + end - first)
            wanted += range(end - chunk.n_logits, end)
            spans.append((first, end))
        where = torch.tensor(positions, device=device)
        visible = None
        if len(chunks) > 1 and len(ids) == len(chunks) and all(chunk.slot == i for i, chunk in enumerate(chunks)):
            seen = torch.arange(max(positions) + 1, device=device)
            visible = seen <= where[:, None]                                            # (B, S)
            if config.sliding_window is not None:
                visible &= seen > where[:, None] - config.sliding_window
            visible = visible[:, None, None]                                            # (B, 1, 1, S)
        angles = None
        if config.positions == "rotary":
            angles = rotary_angles(where, head_dim=config.head_dim, base=config.rope_base)
        return cls(
            chunks=chunks, spans=spans, ids=torch.tensor(ids, device=device), positions=where,
            wanted=None if len(wanted) == len(ids) else torch.tensor(wanted, dtype=torch.int64, device=device),
            visible=visible, angles=angles,
        )
