"""A model of ours in EleutherAI's evaluation harness: ``lm_eval`` computes its tasks with it. Needs the extra lm-eval.

``lm_eval.simple_evaluate(model=GPTLM(model, tokenizer), tasks=[...])``, or, once this module is imported,
``simple_evaluate(model="gpt", model_args="pretrained=CHECKPOINT", ...)``. The numbers are those of the harness's own
``HFLM`` on the exported model.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

try:
    import torch
    from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
    from lm_eval.api.registry import register_model  # type: ignore[import-untyped]
    from torch import nn
    from tqdm import tqdm  # type: ignore[import-untyped]

    from gpt_core import Engine, load_checkpoint
except ImportError as error:
    raise ImportError("the evaluation harness needs lm-eval: install 'gpt-eval[lm-eval]'") from error

from gpt_eval.figures import JSON
from gpt_eval.generation_settings import generation_settings
from gpt_eval.provenance import checkpoint_facts
from gpt_eval.rendered import RenderedTexts
from gpt_eval.token_scores import TokenScores, Window, check_predicts_tokens, score_windows, sliding_windows
from gpt_eval.tokenizer_file import TokenizerFile

Render = Callable[[list[dict[str, str]]], list[int]]
"""A conversation's messages as the ids of a prompt, which ends where the assistant's answer begins."""


class SupportsText(Protocol):
    """What the harness needs of a tokenizer."""

    @property
    def eot_token(self) -> int | None:
        """The id that ends a text and stands before one."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The id of each control token."""

    def encode(self, text: str, /) -> list[int]:
        """Return the ids of a text, none of them a control token."""

    def decode(self, ids: list[int], /) -> str:
        """Return the text of some ids."""

    def decode_bytes(self, ids: list[int], /) -> bytes:
        """Return the bytes of some ids, one after the other."""


@register_model("gpt")
class GPTLM(TemplateLM):  # type: ignore[misc]
    """A language model as the harness wants it.

    ``model`` is any module that maps ids (B, T) to logits (B, T, V); ``max_length`` is its context if it does not name
    one, or a smaller one. What is too long for it is cut on the left, and a warning counts how often. Answers end at
    the tokenizer's ``eot_token``, at ``stop_ids``, at a task's stop strings, or after ``max_gen_toks`` tokens unless a
    task says otherwise.

    ``render`` turns conversations into ids, for ``apply_chat_template=True``. The harness passes texts around, so each
    rendered conversation gets one, and the ids are looked up when it comes back: what a user wrote never becomes a
    control token. ``name`` is how reports call the model.

    Raises ValueError for a model that classifies, a tokenizer without an end of the text, and counts out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: SupportsText,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        render: Render | None = None,
        stop_ids: Iterable[int] = (),
        name: str = "gpt",
        facts: Mapping[str, JSON] | None = None,
    ) -> None:
        super().__init__()
        check_predicts_tokens(model)
        if tokenizer.eot_token is None:
            raise ValueError("the tokenizer has no <|endoftext|>, which has to stand before a text; train it with one")
        limit = getattr(getattr(model, "config", None), "context_length", None)
        if max_length is None and limit is None:
            raise ValueError(f"a {type(model).__name__} does not name its context; give max_length")
        self.max_length = _count("max_length", limit if max_length is None else max_length, most=limit)
        self.batch_size = _count("batch_size", batch_size)
        self.max_gen_toks = _count("max_gen_toks", max_gen_toks)
        self.model, self.name, self.facts = model, name, dict(facts or {})
        # Not "tokenizer": of an attribute of that name the harness expects Hugging Face's class.
        self.text_codec = tokenizer
        self._eot = tokenizer.eot_token
        self._stop_ids, self._render = frozenset(stop_ids) | {self._eot}, render
        self._hidden = frozenset(tokenizer.special_tokens.values())  # no text of an answer, as in HFLM
        self._rendered = RenderedTexts(tokenizer.decode)
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.n_truncated = 0
        """Requests that were cut on the left so far."""

    @classmethod
    def from_checkpoint(cls, pretrained: Path | str, *, device: str | None = None, **settings: Any) -> "GPTLM":
        """Return the model of a checkpoint directory with the tokenizer in it; ``settings`` are the constructor's.

        Raises ValueError if there is no intact checkpoint, or no tokenizer in it.
        """
        checkpoint = load_checkpoint(pretrained, device=device or "cpu")
        if checkpoint.tokenizer_file is None:
            raise ValueError(f"{checkpoint.folder} holds no tokenizer.json; save the checkpoint with its tokenizer")
        facts = checkpoint_facts(checkpoint.folder)
        settings.setdefault("name", str(facts["checkpoint"]))
        return cls(checkpoint.model, TokenizerFile(checkpoint.tokenizer_file), facts=facts, **settings)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "GPTLM":
        """Return the model for ``model_args``: ``pretrained``, and of the rest what ``from_checkpoint`` takes.

        Raises ValueError naming an argument that is not known, or ``pretrained`` where it is missing.
        """
        known = ("pretrained", "batch_size", "device", "max_gen_toks", "max_length", "name")
        given = {**arg_dict, **{key: value for key, value in (additional_config or {}).items() if value is not None}}
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"model_args has {unknown[0]!r}, the model 'gpt' knows {', '.join(known)}; leave it out")
        if "pretrained" not in given:
            raise ValueError("model_args names no checkpoint; give pretrained=FOLDER")
        return cls.from_checkpoint(given.pop("pretrained"), **given)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> "GPTLM":
        """Return the model for ``model_args`` written as ``key=value,key=value``; else as ``create_from_arg_obj``."""
        from lm_eval.utils import simple_parse_args_string  # type: ignore[import-untyped]

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The id that stands before a text without a context."""
        return self._eot

    @property
    def tokenizer_name(self) -> str:
        """Part of the key under which the harness caches requests."""
        # A rendered request found in a cache would come back as a text whose ids this process does not know.
        return self.name if self._render is None else f"{self.name}-{uuid4().hex}"

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes into its results: the model's size, dtype, and the checkpoint's facts."""
        parameter = next(self.model.parameters(), None)
        return {
            "model_num_parameters": sum(of.numel() for of in self.model.parameters()),
            "model_dtype": "" if parameter is None else str(parameter.dtype),
            **self.facts,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text as ordinary text, or those of the conversation that it was rendered from.

        ``add_special_tokens=False`` is ordinary text in any case.
        """
        rendered = None if add_special_tokens is False else self._rendered.ids_for(string)
        return self.text_codec.encode(string) if rendered is None else rendered

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a text that stands for the rendered conversation.

        Without ``add_generation_prompt`` the last message is the beginning of the answer. Raises ValueError without
        ``render``.
        """
        if self._render is None:
            raise ValueError("the model has no chat template; give GPTLM render=, or leave apply_chat_template out")
        if add_generation_prompt:
            ids = self._render(chat_history)
        elif chat_history and chat_history[-1]["role"] == "assistant":
            ids = [*self._render(chat_history[:-1]), *self.text_codec.encode(chat_history[-1]["content"])]
        else:
            raise ValueError("without add_generation_prompt the last message must be the assistant's; add one")
        return self._rendered.text_for(ids)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if (rendered := self._rendered.ids_for(context)) is not None:
            return rendered, self.text_codec.encode(continuation)
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        return context_ids, continuation_ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-probability, is greedy) of each (key, context ids, continuation ids)."""
        windows = []
        for key, context, continuation in requests:
            if not context or not 1 <= len(continuation) <= self.max_length:
                raise ValueError(
                    f"{key!r:.200} has {len(context)} tokens of context and {len(continuation)} to score, but it needs "
                    f"one, and 1 to {self.max_length}; leave that document out"
                )
            ids = torch.tensor([*context, *continuation][-(self.max_length + 1) :])
            windows.append(Window(ids, len(continuation)))
        self._count_truncated(sum(len(of[1]) + len(of[2]) > self.max_length + 1 for of in requests))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for index, scores in self._scored(windows, disable_tqdm=disable_tqdm):
            results[index] = math.fsum(scores.logprobs), bool(scores.are_greedy.all())
            self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each request's text: each token scored once, the first after an end of text."""
        windows: list[Window] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = torch.tensor([self._eot, *self.tok_encode(request.args[0], add_special_tokens=False)])
            windows += list(sliding_windows(ids, context_length=self.max_length, stride=self.max_length))
            owners += [owner] * (len(windows) - len(owners))
        parts: list[list[float]] = [[] for _ in requests]
        for index, scores in self._scored(windows, disable_tqdm=disable_tqdm):
            parts[owners[index]].append(math.fsum(scores.logprobs))
        totals = [math.fsum(of) for of in parts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each request (context, settings), up to the first of its stop strings.

        ``generation_settings`` says which settings are known; draws come from torch's global generator, which the
        harness seeds. Raises ValueError for others, and where ``max_gen_toks`` leaves no room for a context.
        """
        prompts, settings, n_cut = [], [], 0
        for request in requests:
            context, given = request.args
            wanted = generation_settings(given, max_gen_toks=self.max_gen_toks)
            room = self.max_length - wanted.max_new_tokens
            if room < 1:
                raise ValueError(
                    f"max_gen_toks is {wanted.max_new_tokens}, which leaves no room for a prompt in the context of "
                    f"{self.max_length}; give gen_kwargs with a smaller one"
                )
            ids = self.tok_encode(context) or [self._eot]
            n_cut += len(ids) > room
            prompts.append(ids[-room:])
            settings.append(wanted)
        self._count_truncated(n_cut)
        if not requests:
            return []
        capacity = max(len(ids) + of.max_new_tokens for ids, of in zip(prompts, settings, strict=True))
        engine = Engine(
            self.model, max_batch=min(self.batch_size, len(prompts)), context_length=self.max_length, capacity=capacity
        )
        places = {
            engine.add(ids, max_new_tokens=of.max_new_tokens, sampling=of.sampling, stop_ids=self._stop_ids): place
            for place, (ids, of) in enumerate(zip(prompts, settings, strict=True))
        }
        answers = [bytearray() for _ in requests]
        texts = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Generating") as bar:
            while not engine.is_idle:
                for key, token in engine.step():
                    if key not in places:  # a stop string ended it within this very step
                        continue
                    place = places[key]
                    if token.finish != "stop" and token.id not in self._hidden:
                        answers[place] += self.text_codec.decode_bytes([token.id])
                    if token.finish is None and not settings[place].is_ended_by(answers[place]):
                        continue
                    engine.cancel(key)
                    del places[key]
                    texts[place] = settings[place].text_of(answers[place])
                    self.cache_hook.add_partial("generate_until", requests[place].args, texts[place])
                    bar.update()
        return texts

    def _scored(self, windows: list[Window], *, disable_tqdm: bool) -> Iterator[tuple[int, TokenScores]]:
        """Yield each window's place and scores, the longest first: what does not fit into memory shows at once."""
        order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
        scores = score_windows(self.model, (windows[index] for index in order), batch_size=self.batch_size)
        return zip(order, tqdm(scores, total=len(order), disable=disable_tqdm, desc="Scoring"), strict=True)

    def _count_truncated(self, n: int) -> None:
        self.n_truncated += n
        if n:
            warnings.warn(f"{n} requests were cut on the left to the context of {self.max_length} tokens", stacklevel=2)


def _count(name: str, value: Any, *, most: int | None = None) -> int:
    if isinstance(value, str) and value.isdecimal():  # the harness's own command line passes texts
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        rule = "of at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} must be a whole number {rule}, got {value!r}; leave it out for the default")
    return value
