"""Rows of a file: those that could be read, those left out with line and reason, and the account of both."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from gpt_train import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A row that could be read: its first line, counted from 1, and its fields by name."""

    line: int
    fields: dict[str, Any]
    column: int | None = None
    """Where the row begins, if several may begin on a line."""


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used: its first line, counted from 1, the reason, and the column where one is known."""

    line: int
    reason: str
    column: int | None = None
    is_fault: bool = True
    """False for a row that merely has no text."""

    def located(self, path: Path) -> str:
        """Return the reason behind the place: "file:line: ..." or "file:line:column: ..."."""
        return ":".join(str(part) for part in (path, self.line, self.column) if part is not None) + f": {self.reason}"


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """What the rows of a file have become: a subclass names the ``columns``, which are its fields of one item a row."""

    columns: ClassVar[tuple[str, ...]]

    source: str
    """The file's path."""

    lines: tuple[int, ...]
    """The line of the file, counted from 1, where the row of each item begins."""

    left_out: tuple[LeftOut, ...] = ()
    """The rows that gave no item: bad ones, and those without anything to use."""

    def __post_init__(self) -> None:
        first = self.columns[0]
        for other in ("lines", *self.columns[1:]):
            if len(getattr(self, other)) != len(self):
                raise ValueError(
                    f"each {first[:-1]} needs a {other[:-1]}, got {len(self)} {first} and {len(getattr(self, other))} "
                    f"{other}")

    def __len__(self) -> int:
        return len(getattr(self, self.columns[0]))

    @property
    def n_rows(self) -> int:
        """Rows of the file, without a row of names: those kept and those left out."""
        return len(self) + len(self.left_out)

    def select(self, indices: Iterable[int]) -> Self:
        """Return the items with these indices, in this order; the rows left out of the file are no part of it."""
        chosen = list(indices)
        names = ("lines", *self.columns)
        picked: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in chosen) for name in names}
        return replace(self, left_out=(), **picked)


@dataclass(frozen=True)
class Kept(Generic[T]):
    """What a file's rows have become, in its order, and those left out."""

    values: tuple[T, ...]
    lines: tuple[int, ...]
    left_out: tuple[LeftOut, ...]


def keep_rows(
    path: Path, rows: Iterable[Row | LeftOut], make: Callable[[Row], T | LeftOut], *, max_bad: int, content: str
) -> Kept[T]:
    """Return what ``make`` makes of each row; a ValueError that it raises is the row's fault.

    ``content`` says what the file should have: "texts". Raises DataError naming file and line for a fault, unless no
    more than ``max_bad`` rows have one, and if no row is kept; ValueError unless ``max_bad`` is a whole number of at
    least 0.
    """
    if isinstance(max_bad, bool) or not isinstance(max_bad, int) or max_bad < 0:
        raise ValueError(f"max_bad must be a whole number of at least 0, got {max_bad!r}")
    values: list[T] = []
    lines: list[int] = []
    left_out: list[LeftOut] = []
    n_bad = 0
    for row in rows:
        made = row if isinstance(row, LeftOut) else _made(row, make)
        if not isinstance(made, LeftOut):
            values.append(made)
            lines.append(row.line)
            continue
        n_bad += made.is_fault
        if n_bad > max_bad:
            way = f"it is one more than max_bad={max_bad} allows" if max_bad else "max_bad=1 would leave the row out"
            raise DataError(f"{made.located(path)} ({way})")
        left_out.append(made)
    if not values:
        what = f"only rows left out, the first because {left_out[0].reason}" if left_out else "no row"
        raise DataError(f"{path} has {what}; give a file with {content}")
    return Kept(tuple(values), tuple(lines), tuple(left_out))


def _made(row: Row, make: Callable[[Row], T | LeftOut]) -> T | LeftOut:
    try:
        return make(row)
    except ValueError as error:
        return LeftOut(row.line, str(error), row.column)


def listed(names: Iterable[str]) -> str:
    """Return the first dozen of the names, quoted and cut, for a message."""
    shown = [f"{name!r:.40}" for name in islice(names, 13)]
    return ", ".join([*shown[:12], "..."] if len(shown) > 12 else shown) or "none"
