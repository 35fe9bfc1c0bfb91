import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_train import DataError, MetricsLog, StepReport, read_metrics


def report(step, **changes):
    values = {"tokens_seen": 100 * step, "tokens": 100, "loss": 5 - step / 8, "lr": 1e-3, "grad_norm": 1.5}
    values["seconds"] = 0.5
    return StepReport(step=step, **(values | changes))


def write(path, steps, **kwargs):
    with MetricsLog(path, **kwargs) as log:
        for step in steps:
            log.write(report(step))


def test_a_line_has_the_usual_metric_names(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(report(1))
        log.write(report(2, val_loss=4.5))

    assert read_metrics(path) == [
        {"step": 1, "tokens": 100, "train/loss": 4.875, "lr": 1e-3, "grad_norm": 1.5, "tok_per_s": 200.0},
        {
            "step": 2, "tokens": 200, "train/loss": 4.75, "val/loss": 4.5, "lr": 1e-3, "grad_norm": 1.5,
            "tok_per_s": 200.0,
        },
    ]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl") as log:
        for step in (1, 2, 3):
            log.write(report(step))
            assert len(read_metrics(tmp_path / "m.jsonl")) == step
        log.sync()


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        log.write(report(1, loss=math.nan, grad_norm=math.inf, val_loss=-math.inf))
    [line] = path.read_text(encoding="utf-8").splitlines()

    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name} in JSON"))
    assert found["train/loss"] is found["grad_norm"] is found["val/loss"] is None


def test_a_step_of_no_duration_has_a_finite_rate(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write(report(1, seconds=0.0))

    assert read_metrics(tmp_path / "m.jsonl")[0]["tok_per_s"] > 0


def test_a_new_log_does_not_overwrite_another(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [1, 2])

    with pytest.raises(DataError, match="has lines already"):
        MetricsLog(path)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("torn", ["", '{"step": 7, "tok', "{", '{"step": 7}'])
@pytest.mark.parametrize(("resume_step", "kept"), [(0, []), (3, [1, 2, 3]), (6, [1, 2, 3, 4, 5, 6])])
def test_resuming_drops_the_lines_after_the_step_and_a_torn_last_line(tmp_path, torn, resume_step, kept):
    path = tmp_path / "m.jsonl"
    write(path, range(1, 7))
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(torn)
    write(path, [resume_step + 1], resume_step=resume_step)

    assert [line["step"] for line in read_metrics(path)] == [*kept, resume_step + 1]
    assert list(tmp_path.iterdir()) == [path]


@given(cut=st.integers(min_value=0, max_value=2000))
def test_a_log_cut_off_at_any_byte_goes_on_like_the_uncut_one(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("log")
    write(folder / "whole.jsonl", range(1, 11))
    whole = (folder / "whole.jsonl").read_bytes()
    (folder / "cut.jsonl").write_bytes(whole[:cut])
    complete = len(read_metrics(folder / "cut.jsonl"))

    write(folder / "cut.jsonl", range(complete + 1, 11), resume_step=complete)
    assert (folder / "cut.jsonl").read_bytes() == whole


def test_resuming_without_a_log_starts_one(tmp_path):
    write(tmp_path / "m.jsonl", [4, 5], resume_step=3)

    assert [line["step"] for line in read_metrics(tmp_path / "m.jsonl")] == [4, 5]


@pytest.mark.parametrize("damage", ["nonsense", "[1]", '{"loss": 3}', "\udcff"])
def test_a_damaged_line_inside_is_named_and_nothing_is_dropped(tmp_path, damage):
    path = tmp_path / "m.jsonl"
    write(path, [1, 2, 3])
    lines = path.read_bytes().splitlines()
    lines[1] = damage.encode("utf-8", errors="surrogateescape")
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()

    with pytest.raises(DataError, match=r"m\.jsonl:2 "):
        read_metrics(path)
    with pytest.raises(DataError, match=r"m\.jsonl:2 "):
        MetricsLog(path, resume_step=3)
    assert path.read_bytes() == before
