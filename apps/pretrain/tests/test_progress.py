import io
import sys

import pytest

from gpt_pretrain.progress import Progress
from gpt_train import StepReport


def report(step):
    return StepReport(step=step, tokens_seen=step * 100, tokens=100, loss=2.5, lr=0.1, grad_norm=1.0, seconds=0.05)


def show(monkeypatch, stream, *, steps):
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(max_steps=10, first_step=2) as progress:
        for step in steps:
            progress.update(report(step))
        progress.say("\x1b[31mred [bold]not markup[/bold]")
    return stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_there_are_a_few_plain_lines(monkeypatch):
    lines = show(monkeypatch, io.StringIO(), steps=range(3, 11)).splitlines()
    assert lines[0].startswith("step 3/10  loss 2.500  2,000 tokens/s")
    assert lines[1].startswith("step 10/10")
    assert lines[2:] == ["[31mred [bold]not markup[/bold]"]


def test_on_a_terminal_there_is_a_bar_with_loss_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown = show(monkeypatch, Terminal(), steps=range(3, 11))
    for needed in ("10/10", "loss 2.500", "2,000 tokens/s", "left", "red [bold]not markup[/bold]"):
        assert needed in shown


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_no_colour_where_none_is_wanted(monkeypatch, variable, value):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    assert "\x1b[3" not in show(monkeypatch, Terminal(), steps=range(3, 11))
