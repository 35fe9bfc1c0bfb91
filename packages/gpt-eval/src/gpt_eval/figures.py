"""What an evaluation found: figures with count, interval and convention, and the facts they hold for."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gpt_eval.intervals import Measured, check_confidence
from gpt_eval.markdown import markdown_cell
from gpt_eval.tables import interval_cell, markdown_table, value_cell

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


@dataclass(frozen=True)
class Figure:
    """One number of an evaluation."""

    name: str
    """What was measured, with the unit where it has one: "bits per byte"."""

    measured: Measured
    """The number with its count and interval."""

    convention: str
    """What was counted and how, in words: two numbers compare only under the same convention."""

    def __post_init__(self) -> None:
        for end in (self.measured.value, self.measured.low, self.measured.high):
            if end is not None and not math.isfinite(end):
                raise ValueError(
                    f"{self.name} has {end}, but a figure's numbers must be finite; give None and the reason as method"
                )


@dataclass(frozen=True)
class EvalReport:
    """The figures of one evaluation and what they hold for."""

    title: str
    figures: tuple[Figure, ...]
    facts: Mapping[str, JSON]
    """What somebody needs to get the same numbers: the seed, the checkpoint and its sha256, versions."""
    confidence: float = 0.95
    """Of every interval: 0.95 for 95 %."""

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        try:
            text = json.dumps(self.facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"facts must be what JSON knows, with finite numbers: {error}") from error
        object.__setattr__(self, "figures", tuple(self.figures))
        object.__setattr__(self, "facts", json.loads(text))  # a copy: the caller's may change later

    def to_dict(self) -> dict[str, Any]:
        """Return the report as what JSON knows: dicts, lists, texts, numbers and None."""
        return {
            "title": self.title,
            "confidence": self.confidence,
            "figures": [asdict(figure) for figure in self.figures],
            "facts": json.loads(json.dumps(self.facts)),
        }

    def to_markdown(self) -> str:
        """Return the title, the table of figures and the list of facts.

        Where a number or its interval is missing, the reason stands in the interval's place.
        """
        rows = [
            ["figure", "value", f"{100 * self.confidence:g} % interval", "n", "convention"],
            ["---", "---:", "---:", "---:", "---"],
            *(
                [markdown_cell(of.name), value_cell(of.measured), interval_cell(of.measured), str(of.measured.n),
                 markdown_cell(of.convention)]
                for of in self.figures
            ),
        ]  # fmt: skip
        facts = [f"- {markdown_cell(name)}: {markdown_cell(_shown(fact))}\n" for name, fact in self.facts.items()]
        parts = [f"# {markdown_cell(self.title)}\n", markdown_table(rows), "".join(facts)]
        return "\n".join(part for part in parts if part)

    def save(self, path: Path | str) -> Path:
        """Write report.json and report.md into the folder ``path``, or, if it ends in .json, that file and its .md.

        Each file is there whole or not at all, and replaces an older one; the JSON file, which is returned, comes last.
        The same report gives the same bytes. Raises OSError if the system cannot write there.
        """
        path = Path(path)
        target = path if path.suffix == ".json" else path / "report.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target.with_suffix(".md"), self.to_markdown())
        _replace(target, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        return target


def _shown(fact: JSON) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)


def _replace(target: Path, text: str) -> None:
    """Write the text beside ``target``, force it to the disk and rename it."""
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8", errors="replace"))  # a lone surrogate is no text: "?"
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
