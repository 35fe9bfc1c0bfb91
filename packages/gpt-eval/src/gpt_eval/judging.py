"""A score for each answer, asked of a judge; every answer ends as scored, unparsed or failed, and is counted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_eval.asking import Asked, Patience, Questions
from gpt_eval.judge import Judge
from gpt_eval.scores import JudgeItem, Prompt, score_question


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An item and what came of it."""

    item: JudgeItem
    asked: Asked

    @property
    def score(self) -> int | None:
        """From 0 to 100; None unless scored."""
        return self.asked.value if isinstance(self.asked.value, int) else None


def judge_answers(
    items: Iterable[JudgeItem],
    judge: Judge,
    *,
    cache: Path | None = None,
    patience: Patience | None = None,
    prompt: Prompt = "fenced",
) -> Iterator[Judged]:
    """Yield one ``Judged`` for each item, in order, as soon as it is there.

    An empty answer scores 0 and the judge is not asked, as in the book. Equal items are asked once and counted each.
    With ``cache`` every reply is kept in that file, and a later call with the same judge, settings and prompt asks only
    for what was not scored: failed items, and unparsed ones too, since a wish for another reply is why one asks again.
    A judge that gives several items in a row no reply (``Patience.stop_after``) is asked no further, and the rest fails
    without waiting; an item that is refused for itself (status 400, 413 or 422), as too long, only fails. Raises
    ValueError if ``cache`` is another file, OSError if it cannot be written or is in use; no JudgeError.
    """
    with Questions(judge, cache=cache, patience=patience) as questions:
        for item in items:
            if item.answer.strip():
                yield Judged(item=item, asked=questions.ask(score_question(item, prompt=prompt)))
            else:
                yield Judged(item=item, asked=Asked(outcome="scored", value=0, source="rule"))
