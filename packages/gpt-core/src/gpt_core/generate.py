"""Generation: one decoding loop over a model, and the functions that consume it (chapters 4 and 5).

Shapes: B batch, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from gpt_attention import KVCache
from gpt_core.model import GPTModel
from gpt_core.sampling import Sampling, next_token


@dataclass(frozen=True)
class GeneratedToken:
    """One token that a model chose, as ``generate_tokens`` yields it."""

    id: int
    """The token's id."""

    logprob: float
    """Natural log of its probability under the model itself: before temperature, filters and penalties."""

    finish: Literal["stop", "length"] | None = None
    """None: more will come. "stop": this is a stop token. "length": the last of max_new_tokens."""


def generate_tokens(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling.greedy(),  # noqa: B008 - frozen
    stop_ids: Iterable[int] = (),
    use_cache: bool = True,
) -> Iterator[GeneratedToken]:
    """Return an iterator over the tokens that continue one prompt; each is computed when it is asked for.

    The last token has ``finish`` "stop" (it is one of ``stop_ids``, and yielded too) or "length". Beyond
    the model's context the window slides: the model sees the last ``context_length`` tokens, recomputed for
    each new one because positions are absolute. The ids do not depend on ``use_cache``. Without
    ``sampling.seed`` the draws come from torch's global generator. The model is in eval mode while it
    computes, and in its own mode in between.

    Raises ValueError at once for an empty prompt, an id outside the vocabulary and ``max_new_tokens`` below
    1, and during the iteration if the model's logits are not finite.
    """
    _check_count("max_new_tokens", max_new_tokens, least=1)
    stops = frozenset(_checked_list(model, stop_ids, "stop_ids"))
    ids = torch.tensor([_checked_list(model, prompt_ids, "prompt_ids")], dtype=torch.int64)  # (1, T)
    if ids.shape[1] == 0:
        raise ValueError("prompt_ids is empty: give at least one token, such as the tokenizer's eot_token")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    steps = _decode(model, ids.to(device), sampling=sampling, context_size=None, use_cache=use_cache)

    def stream() -> Iterator[GeneratedToken]:
        for n, (chosen, logits) in enumerate(islice(steps, max_new_tokens), start=1):
            token = int(chosen[0])
            logprob = float(logits[0].float().log_softmax(dim=-1)[token])
            if token in stops:
                yield GeneratedToken(token, logprob, "stop")
                return
            yield GeneratedToken(token, logprob, "length" if n == max_new_tokens else None)

    return stream()


def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
) -> Tensor:
    """Chapter 5's ``generate``: return ``idx`` (B, T) with up to ``max_new_tokens`` ids appended, int64.

    A row that draws ``eos_id`` is finished: it is filled with ``eos_id`` while others go on, and when all
    are finished generation stops without appending that last one. Temperature 0 or less is greedy; draws
    come from torch's global generator. Raises ValueError for ids that are not (B, T) with T >= 1 or not in
    the vocabulary, a negative ``max_new_tokens``, and a ``context_size`` or ``top_k`` below 1.
    """
    sampling = Sampling(temperature=0.0 if temperature < 0 else temperature, top_k=top_k)
    _check_count("max_new_tokens", max_new_tokens, least=0)
    idx = _checked_batch(model, idx)
    finished = torch.zeros(len(idx), dtype=torch.bool, device=idx.device)  # (B,)
    columns = [idx]
    steps = _decode(model, idx, sampling=sampling, context_size=context_size, use_cache=True)
    for chosen, _ in islice(steps, max_new_tokens):
        if eos_id is not None:
            finished |= chosen == eos_id
            if bool(finished.all()):
                break
            chosen = chosen.masked_fill(finished, eos_id)
        columns.append(chosen[:, None])
    return torch.cat(columns, dim=1)


def generate_text_simple(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Chapter 4's greedy generation: return ``idx`` (B, T) with ``max_new_tokens`` ids appended, int64.

    Any module that maps ids (B, T) to logits (B, T, V) will do; one that offers ``new_cache()`` is given a
    cache. ``context_size`` None means the model's own. Errors as in ``generate``.
    """
    _check_count("max_new_tokens", max_new_tokens, least=0)
    idx = _checked_batch(model, idx)
    steps = _decode(model, idx, sampling=Sampling.greedy(), context_size=context_size, use_cache=use_cache)
    columns = [chosen[:, None] for chosen, _ in islice(steps, max_new_tokens)]
    return torch.cat([idx, *columns], dim=1)


def generate_text_simple_stream(
    model: nn.Module,
    token_ids: Tensor,
    max_new_tokens: int,
    eos_token_id: int | None = None,
    context_size: int | None = None,
) -> Iterator[Tensor]:
    """Yield the greedy ids (B, 1) of each step.

    Ends early, and does not yield them, where all rows chose ``eos_token_id``.
    """
    _check_count("max_new_tokens", max_new_tokens, least=0)
    idx = _checked_batch(model, token_ids)
    steps = _decode(model, idx, sampling=Sampling.greedy(), context_size=context_size, use_cache=True)
    for chosen, _ in islice(steps, max_new_tokens):
        if eos_token_id is not None and bool((chosen == eos_token_id).all()):
            return
        yield chosen[:, None]


def trim_input_tensor(input_ids_tensor: Tensor, context_len: int, max_new_tokens: int) -> Tensor:
    """Return the last tokens of ids (B, T) that leave room for ``max_new_tokens`` in ``context_len``.

    Raises ValueError unless ``max_new_tokens`` is below ``context_len``.
    """
    if max_new_tokens >= context_len:
        raise ValueError(
            f"max_new_tokens must be below the context length of {context_len}, got {max_new_tokens}; "
            "otherwise no prompt token would be left"
        )
    return input_ids_tensor[:, -max(1, context_len - max_new_tokens) :]


def _decode(
    model: nn.Module, ids: Tensor, *, sampling: Sampling, context_size: int | None, use_cache: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (chosen ids (B,), the model's logits (B, V)) without end, after the prompt ``ids`` (B, T)."""
    limit = getattr(getattr(model, "config", None), "context_length", None)
    if context_size is not None:
        _check_count("context_size", context_size, least=1)
        limit = context_size if limit is None else min(limit, context_size)
    generator = None
    if sampling.seed is not None:
        generator = torch.Generator(device=ids.device).manual_seed(sampling.seed)
    new_cache: Callable[[], KVCache] | None = getattr(model, "new_cache", None)
    cache = new_cache() if use_cache and new_cache is not None else None
    n_prompt = ids.shape[1]
    while True:
        # Entered for each step, never around the yield: the caller may train between two tokens. And no_grad,
        # because a tensor made in inference mode could never take part in training.
        with _eval_mode(model), torch.no_grad():
            if limit is not None and ids.shape[1] > limit:
                cache = None  # the window slides: every token it holds has a new position
                logits = _last_logits(model, ids[:, -limit:], None)
            else:
                logits = _last_logits(model, ids if cache is None else ids[:, cache.length :], cache)
            chosen = next_token(logits, sampling=sampling, ids=ids, n_prompt=n_prompt, generator=generator)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
        yield chosen, logits


def _last_logits(model: nn.Module, ids: Tensor, cache: KVCache | None) -> Tensor:
    """Return the logits (B, V) of the last position, each row's next token."""
    is_hooked = bool(model._forward_hooks or model._forward_pre_hooks)
    if isinstance(model, GPTModel) and type(model).forward is GPTModel.forward and not is_hooked:
        # At 124M the head over every position would be a third of the work of reading a long prompt.
        return model.out_head(model.features(ids, cache=cache)[:, -1])
    return (model(ids) if cache is None else model(ids, cache=cache))[:, -1]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off within the block; afterwards every submodule has the mode it had before."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _checked_batch(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the ids (B, T) as int64, or raise ValueError."""
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(
            f"ids must have shape (batch, tokens) with at least one token, got {tuple(ids.shape)}"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be whole numbers, got a tensor of {ids.dtype}")
    for extreme in ids.aminmax():
        _check_id(model, int(extreme), "the prompt")
    return ids.long()


def _checked_list(model: nn.Module, ids: Iterable[int], name: str) -> list[int]:
    """Return the ids as a list, or raise ValueError."""
    ids = list(ids)
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int):
            raise ValueError(f"{name} must hold whole numbers, got {i!r}")
        _check_id(model, i, name)
    return ids


def _check_id(model: nn.Module, token: int, name: str) -> None:
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None)
    if token < 0 or (vocab_size is not None and token >= vocab_size):
        most = "" if vocab_size is None else f" to {vocab_size - 1}"
        raise ValueError(
            f"{name} holds the id {token}, but the model's ids run from 0{most}; "
            "encode with the tokenizer that the model was trained with"
        )


def _check_count(name: str, value: int, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
