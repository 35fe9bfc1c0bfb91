"""The GPT model (chapter 4; Radford et al. 2019).

Shapes: B batch, T tokens, D embedding width, V vocabulary size, or classes of a model that classifies.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpt_attention import KVCache, Linear
from gpt_core.config import GPTConfig
from gpt_core.layers import TransformerBlock, TransformerBlockFast, make_norm


class GPTModel(nn.Module):
    """Token ids (B, T) to logits (B, T, V).

    The parameters' names and the order in which they are drawn are the book's, so its seeds give its numbers. The
    computation runs on torch's fused kernels; ``explicit=True`` computes the same function step by step as the
    book writes it. With rotary positions there is no ``pos_emb``, and the attention tells positions apart; with
    ``n_classes`` the head is chapter 6's, which has a bias.
    """

    def __init__(self, config: GPTConfig | Mapping[str, Any], *, explicit: bool = False) -> None:
        super().__init__()
        config = GPTConfig.from_dict(config)
        self._build(
            config,
            head_class=nn.Linear if explicit else Linear,
            block=lambda: TransformerBlock(config, explicit=explicit),
            norm=lambda: make_norm(config, explicit=explicit),
        )

    def _build(
        self,
        config: GPTConfig,
        *,
        head_class: type[nn.Linear],
        block: Callable[[], TransformerBlock],
        norm: Callable[[], nn.Module],
    ) -> None:
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        if config.positions == "learned":
            self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.drop_emb = nn.Dropout(config.drop_rate)
        self.trf_blocks = nn.Sequential(*[block() for _ in range(config.n_layers)])
        self.final_norm = norm()
        self.out_head = head_class(config.emb_dim, config.n_outputs, bias=config.n_classes is not None)
        if config.tie_weights:
            self.out_head.weight = self.tok_emb.weight
        self._cache: KVCache | None = None

    def forward(self, in_idx: Tensor, use_cache: bool = False, cache: KVCache | None = None) -> Tensor:
        """Return the logits of each position.

        With a ``cache`` the ids follow the tokens it holds, and are added to it; ``use_cache`` does so with the model's
        own cache, which ``reset_kv_cache`` empties. Raises ValueError if the ids are not (B, T), IndexError if they
        run past the context or the vocabulary.
        """
        if use_cache and cache is None:
            cache = self._cache = self._cache or self.new_cache()
        return self.out_head(self.features(in_idx, cache=cache))

    def features(self, in_idx: Tensor, *, cache: KVCache | None = None, rows: Tensor | None = None) -> Tensor:
        """Return the vectors (B, T, D) that the head turns into logits; arguments and errors as in ``forward``.

        ``rows`` (B,) names the one token of each sequence whose vector is wanted, (B, D): the last block then computes
        no more than that. A classifier's is the last token before the padding.
        """
        x = self.embed(in_idx, cache=cache)                                      # (B, T, D)
        if cache is not None:
            cache.truncate(cache.length)  # a pass that stopped half-way has left its tokens in the first layers
        return self.final_norm(self.run_blocks(x, cache=cache, rows=rows))

    def embed(self, in_idx: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """Return the vectors (B, T, D) that enter the first block; arguments and errors as in ``forward``."""
        if in_idx.ndim != 2:
            raise ValueError(f"token ids must have shape (batch, tokens), got {tuple(in_idx.shape)}")
        start = 0 if cache is None else cache.length
        end = start + in_idx.shape[1]
        if end > self.config.context_length:
            raise IndexError(
                f"{end} tokens exceed the model's context of {self.config.context_length}; "
                "pass the last ones only, or generate with a sliding window"
            )
        x = self._embed(in_idx)                                                 # (B, T, D)
        if self.config.positions == "learned":
            x = x + self.pos_emb(torch.arange(start, end, device=in_idx.device))
        return self.drop_emb(x)

    def run_blocks(
        self,
        x: Tensor,
        *,
        first: int = 0,
        last: int | None = None,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Return what the blocks ``first`` up to, but not including, ``last`` (None: all) make of ``x`` (B, T, D).

        ``cache`` as in ``forward``, ``rows`` as in ``features``. A trunk that is not trained can so be computed once
        and gone on from. Raises ValueError if ``rows`` is not one whole number a sequence, IndexError, on the CPU, if
        one lies outside 0..T - 1.
        """
        if rows is not None:
            _check_rows(rows, x)
        blocks = self.trf_blocks[first:last]
        for layer, block in enumerate(blocks, start=first):
            if rows is not None and layer == first + len(blocks) - 1:
                return block(x, cache=cache, layer=layer, rows=rows).squeeze(1)
            x = block(x, cache=cache, layer=layer)
        return x if rows is None else x[torch.arange(len(x), device=x.device), rows]

    def _embed(self, in_idx: Tensor) -> Tensor:
        try:
            return self.tok_emb(in_idx)
        except IndexError as error:  # the CPU's kernel checks; on CUDA a bad id ends in a device-side assert
            raise IndexError(
                f"token ids must lie in 0..{self.config.vocab_size - 1}, got {int(in_idx.min())}.."
                f"{int(in_idx.max())}; encode with the tokenizer that the model was trained with"
            ) from error

    def new_cache(self) -> KVCache:
        """Return an empty cache for one batch of sequences."""
        return KVCache(self.config.n_layers, max_length=self.config.context_length)

    def reset_kv_cache(self) -> None:
        """Empty the model's own cache, the one that ``forward(..., use_cache=True)`` fills."""
        self._cache = None

    @property
    def cfg(self) -> dict[str, Any]:
        """The configuration as the book's dict."""
        return self.config.to_dict()

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.tok_emb.weight.device

    @property
    def n_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def _check_rows(rows: Tensor, x: Tensor) -> None:
    if rows.shape != x.shape[:1] or rows.is_floating_point():
        raise ValueError(f"rows must be {len(x)} whole numbers, one a sequence, got {rows.dtype} {tuple(rows.shape)}")
    # On another device looking at them would wait for it.
    if rows.device.type == "cpu" and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < x.shape[1]:
        raise IndexError(f"rows must lie in 0..{x.shape[1] - 1}, got {int(rows.min())}..{int(rows.max())}")


class GPTModelFast(GPTModel):
    """The book's fast variant: the same function and draws, other parameter names (``att.qkv``, ``norm1.weight``).

    It has GPT-2's form only, with either head: ValueError if the config asks for another.
    """

    def __init__(self, config: GPTConfig | Mapping[str, Any]) -> None:
        nn.Module.__init__(self)
        config = GPTConfig.from_dict(config)
        self._build(
            config,
            head_class=Linear,
            block=lambda: TransformerBlockFast(config),
            norm=lambda: nn.LayerNorm(config.emb_dim),
        )


def initialize_gpt2(model: GPTModel, *, seed: int) -> None:
    """Draw all weights anew as GPT-2 does: N(0, 0.02), zero biases, norms at 1 and 0.

    The projections back into the residual stream get 0.02 / sqrt(2 * n_layers), so that its variance does not grow
    with depth (Radford et al. 2019, section 2.3). The draws depend on ``seed`` alone, not on the global generator.
    """
    generator = torch.Generator().manual_seed(seed)
    residual = ("out_proj.weight", "att.proj.weight", "ff.layers.2.weight")
    norm_scales = (".scale", "norm.weight", "norm1.weight", "norm2.weight")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0 if name.endswith(norm_scales) else 0.0)
                continue
            std = 0.02 / (2 * model.config.n_layers) ** 0.5 if name.endswith(residual) else 0.02
            # Drawn on the CPU: other devices' generators give other numbers for the same seed.
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
