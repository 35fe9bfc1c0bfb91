"""How an answer is to be generated, from the settings that a task of the evaluation harness gives. Needs ``model``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt_core import Sampling

# The harness's names of one and the same, the first one given counts.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_KNOWN = ("until", "do_sample", *_LENGTHS, *_SAMPLING)


@dataclass(frozen=True)
class GenerationSettings:
    """What one request asks for."""

    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    """Texts that end the answer, none of them empty."""

    def is_ended_by(self, data: bytes | bytearray) -> bool:
        """Whether the answer's bytes so far hold one of the stop texts."""
        return any(stop.encode("utf-8") in data for stop in self.stop)

    def text_of(self, data: bytes | bytearray) -> str:
        """Return the answer's text up to where the first stop text begins; what is no UTF-8 becomes U+FFFD."""
        text = data.decode("utf-8", errors="replace")
        ends = [place for place in map(text.find, self.stop) if place >= 0]
        return text[: min(ends, default=len(text))]


def generation_settings(given: Mapping[str, Any], *, max_gen_toks: int) -> GenerationSettings:
    """Return a task's ``generation_kwargs`` in our terms; ``max_gen_toks`` is the length if it names none.

    As in the harness, answers are greedy unless ``do_sample`` is true or, where it is not given, ``temperature`` is
    above 0. Raises ValueError naming a setting that is not known or out of range.
    """
    if unknown := sorted(set(given) - set(_KNOWN)):
        known = ", ".join(_KNOWN)
        raise ValueError(f"the task sets {unknown[0]} to {given[unknown[0]]!r}, but known are {known}; leave it out")
    until = given.get("until") or []
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"until must be a text or a list of texts, got {until!r}; mend the task")
    length = next((given[name] for name in _LENGTHS if given.get(name) is not None), max_gen_toks)
    if isinstance(length, bool) or int(length) != length or length < 1:
        raise ValueError(f"max_gen_toks must be a whole number of at least 1, got {length!r}; mend the task")
    values = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    do_sample = given.get("do_sample")
    if do_sample is None:
        do_sample = values.get("temperature", 0) > 0
    if values.get("top_k") == 0:  # Hugging Face's way to switch it off
        del values["top_k"]
    if not do_sample:
        values["temperature"] = 0.0
    return GenerationSettings(Sampling(**values), int(length), tuple(stop for stop in stops if stop))
