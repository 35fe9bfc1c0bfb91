"""The package's promise: its names, and the README's examples."""

import subprocess
import sys
from pathlib import Path

import pytest
from judge_server import running, scoring

import gpt_eval

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = [block.split("```")[0] for block in README.split("```python\n")[1:]]
WITH_A_MODEL = ("GPTLM", "PerplexityReport", "perplexity")


def test_every_promised_name_exists_and_the_list_is_sorted():
    assert gpt_eval.__all__ == sorted(gpt_eval.__all__, key=lambda name: (name.islower(), not name.isupper(), name))
    assert all(hasattr(gpt_eval, name) for name in gpt_eval.__all__ if name not in WITH_A_MODEL)
    assert not hasattr(gpt_eval, "perplexities")


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_what_needs_a_model_is_there_with_its_extra(name):
    pytest.importorskip("torch", reason="needs the extra model")
    if name == "GPTLM":
        pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    assert getattr(gpt_eval, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("perplexity", "torch", "model"), ("GPTLM", "torch", "lm-eval"), ("GPTLM", "lm_eval", "lm-eval")],
)
def test_a_missing_extra_says_how_to_install_it(name, missing, extra):
    code = f"import sys; sys.modules[{missing!r}] = None; from gpt_eval import {name}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert found.stderr.splitlines()[-1].startswith(f"ImportError: {name} needs ")
    assert found.stderr.endswith(f"install 'gpt-eval[{extra}]'\n")


@pytest.mark.parametrize("missing", ["torch", "gpt_core", "lm_eval"])
def test_the_harness_without_its_extra_is_one_sentence(missing):
    run = ["harness", "nowhere", "--tasks", "x"]
    code = f"import sys; sys.modules[{missing!r}] = None; from gpt_eval.cli import main; sys.exit(main({run!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert found.returncode == 1
    assert found.stderr == "gpt-eval: the evaluation harness needs lm-eval: install 'gpt-eval[lm-eval]'\n"


def test_every_name_in_the_readmes_table_is_promised():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    names = [part for row in rows for part in row.split("`")[1::2]]
    assert sorted(names) == sorted(gpt_eval.__all__)


def test_the_readmes_classifier_runs_and_shows_what_stands_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[0], "README.md", "exec"), {})

    shown = [line.split("# ")[1] for line in EXAMPLES[0].splitlines() if line.startswith("print(") and "# " in line]
    assert capsys.readouterr().out.splitlines() == shown
    assert len(shown) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "confusion.png", "roc.png", "calibration.png"}


def test_the_readmes_judge_runs(monkeypatch, capsys):
    with running(scoring(70)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        exec(compile(EXAMPLES[1], "README.md", "exec"), {})

    scores, title = capsys.readouterr().out.splitlines()[:2]
    assert scores == "[70, 70]"
    assert title.startswith("# ")


def test_the_readmes_perplexity_runs(capsys):
    pytest.importorskip("gpt_core", reason="needs the extra model")
    assert len(EXAMPLES) == 3
    exec(compile(EXAMPLES[2], "README.md", "exec"), {})

    assert "n=1199" in capsys.readouterr().out


def test_importing_it_brings_nothing_that_an_extra_brings():
    heavy = {"lm_eval", "matplotlib", "psutil", "scipy", "sklearn", "tokenizers", "torch", "transformers"}
    code = f"import sys, gpt_eval; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
