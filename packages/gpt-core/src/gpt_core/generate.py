"""Generation's entry points, each a view of the one engine: streams, batches, and the book's functions (chapters 4, 5).

Shapes: B batch, T tokens so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from gpt_core.checks import check_count, check_id
from gpt_core.engine import Engine, PastContext
from gpt_core.sampling import Sampling
from gpt_core.sequence import GeneratedToken
from gpt_core.speculate import Drafter


def generate_tokens(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    sampling: Sampling = Sampling.greedy(),  # noqa: B008 - frozen
    stop_ids: Iterable[int] = (),
    top_logprobs: int = 0,
    past_context: PastContext = "slide",
    use_cache: bool = True,
    drafter: Drafter | None = None,
) -> Iterator[GeneratedToken]:
    """Return an iterator over the tokens that continue one prompt; each is computed when it is asked for.

    The last token has ``finish`` "stop" (it is one of ``stop_ids``, and yielded too) or "length". The arguments are
    those of ``Engine`` and its ``add``; the ids depend neither on ``use_cache`` nor on ``drafter``. The caller may
    train the model between two tokens.

    Raises ValueError at once for a bad argument, and during the iteration if the model's logits are not finite.
    """
    prompt = list(prompt_ids)
    # The cache has no more room than this one sequence can need; a bad count is refused by add.
    room = len(prompt) + max_new_tokens if isinstance(max_new_tokens, int) else 1
    engine = Engine(
        model, max_batch=1, past_context=past_context, use_cache=use_cache, drafter=drafter, capacity=max(room, 1)
    )
    key = engine.add(
        prompt, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, sampling=sampling, stop_ids=stop_ids,
        top_logprobs=top_logprobs,
    )

    def stream() -> Iterator[GeneratedToken]:
        try:
            while not engine.is_idle:
                for _, token in engine.step():
                    yield token
        finally:
            engine.cancel(key)  # an abandoned stream: its drafter forgets it

    return stream()


def generate_batch(
    model: nn.Module,
    prompts: Iterable[Sequence[int]],
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    sampling: Sampling | Sequence[Sampling] = Sampling.greedy(),  # noqa: B008 - frozen
    stop_ids: Iterable[int] = (),
    top_logprobs: int = 0,
    past_context: PastContext = "slide",
    max_batch: int = 8,
    drafter: Drafter | None = None,
) -> list[list[GeneratedToken]]:
    """Return the answers to prompts of any lengths, in their order, ``max_batch`` of them computed at a time.

    Each is what ``generate_tokens`` gives for that prompt alone, if it is greedy or has a seed; without one all draw
    from torch's global generator, in turns. ``sampling`` is one for all, or one for each prompt; give each its own seed
    there, since equal seeds draw equal numbers. The other arguments and the errors are those of ``Engine`` and its
    ``add``; ValueError, too, if there are not as many samplings as prompts.
    """
    check_count("max_new_tokens", max_new_tokens, least=1)
    prompts, stop_ids = [list(prompt) for prompt in prompts], list(stop_ids)
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    if len(samplings) != len(prompts):
        raise ValueError(
            f"sampling must be one for all or one for each of {len(prompts)} prompts, got {len(samplings)}"
        )
    if not prompts:
        return []
    check_count("max_batch", max_batch, least=1)
    engine = Engine(
        model, max_batch=min(max_batch, len(prompts)), past_context=past_context, drafter=drafter,
        capacity=max(map(len, prompts)) + max_new_tokens,
    )
    keys = [
        engine.add(
            prompt, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, sampling=one, stop_ids=stop_ids,
            top_logprobs=top_logprobs,
        )
        for prompt, one in zip(prompts, samplings, strict=True)
    ]
    answers: dict[int, list[GeneratedToken]] = {key: [] for key in keys}
    while not engine.is_idle:
        for key, token in engine.step():
            answers[key].append(token)
    return [answers[key] for key in keys]


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
    check_count("context_size", context_size, least=1)
    stop_ids = () if eos_id is None else (eos_id,)
    idx = _checked_batch(model, idx)
    finished = [False] * len(idx)
    columns = []
    for column in _columns(model, idx, max_new_tokens, context_size, sampling=sampling, stop_ids=stop_ids):
        for row, token in enumerate(column):
            finished[row] |= token is None or token == eos_id
        if all(finished):
            break
        columns.append([eos_id if done else token for done, token in zip(finished, column, strict=True)])
    return _joined(idx, columns)


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
    return _joined(idx, list(_columns(model, idx, max_new_tokens, context_size, use_cache=use_cache)))


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
    for column in _columns(model, token_ids, max_new_tokens, context_size):
        if eos_token_id is not None and all(token == eos_token_id for token in column):
            return
        yield torch.tensor(column, device=token_ids.device)[:, None]


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


def _columns(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int | None,
    *,
    sampling: Sampling = Sampling.greedy(),  # noqa: B008 - frozen
    stop_ids: Sequence[int] = (),
    use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """Yield each step's new ids of the rows of ``idx`` (B, T); None for a row that has stopped before."""
    check_count("max_new_tokens", max_new_tokens, least=0)
    rows = _checked_batch(model, idx).tolist()
    if max_new_tokens == 0:
        return
    engine = Engine(
        model, max_batch=len(rows), context_length=context_size, use_cache=use_cache,
        capacity=len(rows[0]) + max_new_tokens,
    )
    keys = [engine.add(row, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids) for row in rows]
    queues: dict[int, deque[int]] = {key: deque() for key in keys}
    ended: set[int] = set()
    # Long prompts are read in pieces, so the rows' first tokens may come in different steps.
    while any(queues.values()) or not engine.is_idle:
        while not all(queues[key] or key in ended for key in keys):
            for key, token in engine.step():
                queues[key].append(token.id)
                if token.finish is not None:
                    ended.add(key)
        yield [queues[key].popleft() if queues[key] else None for key in keys]


def _joined(idx: Tensor, columns: list[list[int | None]]) -> Tensor:
    new = torch.tensor(columns, dtype=torch.int64, device=idx.device).view(-1, len(idx))    # (steps, B)
    return torch.cat([idx.long(), new.t()], dim=1)


def _checked_batch(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the ids (B, T) as int64, or raise ValueError."""
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(
            f"ids must have shape (batch, tokens) with at least one token, got {tuple(ids.shape)}"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be whole numbers, got a tensor of {ids.dtype}")
    for extreme in ids.aminmax():
        check_id(model, int(extreme), "the prompt")
    return ids.long()
