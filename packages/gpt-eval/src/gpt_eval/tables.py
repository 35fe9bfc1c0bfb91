"""Measured numbers as cells, and cells as a table of Markdown."""

from collections.abc import Iterable, Sequence

from gpt_eval.intervals import Measured
from gpt_eval.markdown import markdown_cell


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    """Return the rows of cells as a table, the row of dashes among them; each cell must be Markdown already."""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def value_cell(measured: Measured) -> str:
    """Return the number with four decimals, or the word undefined."""
    return "undefined" if measured.value is None else f"{measured.value:.4f}"


def interval_cell(measured: Measured) -> str:
    """Return "low to high", or the reason why there is no interval."""
    if measured.low is None or measured.high is None:
        return markdown_cell(measured.method)
    return f"{measured.low:.4f} to {measured.high:.4f}"
