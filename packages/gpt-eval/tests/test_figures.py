import dataclasses
import json

import pytest

from gpt_eval.figures import EvalReport, Figure
from gpt_eval.intervals import Measured, undefined

MEASURED = Measured(value=12.5, low=11.0, high=14.25, n=300, method="bootstrap over blocks")
FIGURES = (
    Figure("perplexity", MEASURED, "windows of 64 tokens"),
    Figure("bits per byte", undefined("the number of bytes is not known", n=300), "the same windows"),
)
FACTS = {"seed": 7, "checkpoint": "step-9", "versions": {"torch": "2"}, "tokenizer_sha256": None}


def test_the_dict_is_what_json_gives_back():
    plain = EvalReport("Perplexity", FIGURES, FACTS).to_dict()

    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["facts"] == FACTS
    assert plain["figures"][0] == {
        "name": "perplexity", "measured": dataclasses.asdict(MEASURED), "convention": "windows of 64 tokens"
    }  # fmt: skip


def test_the_markdown_has_each_figure_with_interval_count_and_convention_and_the_facts_below():
    lines = EvalReport("Perplexity", FIGURES, FACTS, confidence=0.9).to_markdown().splitlines()

    assert lines[0] == "# Perplexity"
    assert lines[2] == "| figure | value | 90 % interval | n | convention |"
    assert lines[4] == "| perplexity | 12.5000 | 11.0000 to 14.2500 | 300 | windows of 64 tokens |"
    assert lines[5].startswith("| bits per byte | undefined | the number of bytes is not known | 300 |")
    assert lines[7:9] == ["- seed: 7", "- checkpoint: step-9"]
    assert lines[-1] == "- tokenizer\\_sha256: null"


def test_markup_in_a_name_or_a_fact_stays_out():
    page = EvalReport("<b>", (Figure("a|b", MEASURED, "**x**"),), {"[y](z)": "<script>"}).to_markdown()

    assert "<" not in page
    assert "**" not in page
    assert "](" not in page.replace("\\]", "")
    assert r"a\|b" in page


def test_the_report_cannot_be_changed_not_even_through_what_it_was_made_of():
    facts = {"seeds": [1, 2]}
    report = EvalReport("t", list(FIGURES), facts)
    facts["seeds"].append(3)

    assert report.facts == {"seeds": [1, 2]}
    assert report == EvalReport("t", FIGURES, {"seeds": [1, 2]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = "u"


def test_saving_writes_both_files_into_a_folder_or_beside_the_named_one(tmp_path):
    report = EvalReport("T\u00eate", FIGURES, FACTS)

    assert report.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "report.json"
    assert report.save(str(tmp_path / "mine.json")) == tmp_path / "mine.json"
    for stem in (tmp_path / "new" / "folder" / "report", tmp_path / "mine"):
        assert json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")) == report.to_dict()
        assert stem.with_suffix(".md").read_text(encoding="utf-8") == report.to_markdown()


def test_saving_again_replaces_and_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    first = EvalReport("t", FIGURES, FACTS).save(tmp_path).read_bytes()
    EvalReport("u", (), {}).save(tmp_path)
    again = EvalReport("t", FIGURES, FACTS).save(tmp_path).read_bytes()

    assert first == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        EvalReport("t", FIGURES, FACTS).save(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


@pytest.mark.parametrize("facts", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_facts_that_are_no_json_are_refused(facts):
    with pytest.raises(ValueError, match="facts must be what JSON knows"):
        EvalReport("t", FIGURES, facts)


def test_a_number_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="perplexity has inf, but"):
        Figure("perplexity", dataclasses.replace(MEASURED, value=float("inf")), "c")
