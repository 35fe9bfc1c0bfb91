"""CI itself: a planted import is caught, changed paths choose the right members, YAML holds no logic."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def lint_imports(folder: Path) -> tuple[int, str]:
    """Run import-linter over the sources copied to ``folder``; return its exit status and what it printed."""
    sources = os.pathsep.join(str(source) for source in sorted(folder.glob("*/*/src")))
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": sources, "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def copy_of_the_sources(tmp_path: Path) -> Path:
    without_bytecode = shutil.ignore_patterns("__pycache__")
    for source in [*ROOT.glob("packages/*/src"), *ROOT.glob("apps/*/src")]:
        shutil.copytree(source, tmp_path / source.relative_to(ROOT), ignore=without_bytecode)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_import_linter_finds_nothing_in_the_sources_as_they_are(copy_of_the_sources: Path) -> None:
    status, printed = lint_imports(copy_of_the_sources)
    assert status == 0, printed
    assert "0 broken" in printed


@pytest.mark.parametrize(
    ("module", "fault", "contract"),
    [
        ("gpt_tokenizer", "import torch", "gpt_tokenizer needs tiktoken and nothing else BROKEN"),
        ("gpt_attention", "def f():\n    import gpt_tokenizer", "do not know each other BROKEN"),
        ("gpt_core", "import gpt_train", "members of one layer do not know each other BROKEN"),
        ("gpt_core", "from gpt_tokenizer import get_tokenizer", "it knows no tokenizer BROKEN"),
        ("gpt_train", "import urllib.request", "may reach the network BROKEN"),
        ("gpt_train", "def f():\n    import pickle", "compare with out of the rest BROKEN"),
        ("gpt_weights", "def f():\n    import tensorflow", "tensorflow stays in one file of gpt_weights"),
        ("gpt_weights", "from gpt_tokenizer import get_tokenizer", "trains nothing and tokenizes nothing BROKEN"),
    ],
)
def test_import_linter_finds_a_planted_import(
    copy_of_the_sources: Path, module: str, fault: str, contract: str
) -> None:
    (source,) = copy_of_the_sources.glob(f"*/*/src/{module}")
    (source / "planted.py").write_text(f"{fault}\n", encoding="utf-8")
    status, printed = lint_imports(copy_of_the_sources)
    assert status == 1, printed
    assert contract in printed
    assert f"{module}.planted" in printed


@pytest.fixture(scope="module")
def members() -> ModuleType:
    spec = importlib.util.spec_from_file_location("members", ROOT / ".ci" / "members.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a workspace in which run needs b for its tests, b needs a for an extra, and c needs nobody."""
    tables = {
        ".": '[tool.uv.workspace]\nmembers = ["libs/*", "apps/*"]\n',
        "libs/b": '[project]\nname = "b"\n[project.optional-dependencies]\nx = ["a>=0.1,<0.2"]\n',
        "libs/a": '[project]\nname = "a"\ndependencies = ["torch>=2"]\n',
        "libs/c": '[project]\nname = "c"\ndependencies = []\n',
        "apps/run": '[project]\nname = "run"\n'
        '[dependency-groups]\ntest = ["b[x]>=1", {include-group = "y"}]\ny = []\n',
    }
    for folder, table in tables.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "pyproject.toml").write_text(table, encoding="utf-8")
    return tmp_path


def test_members_come_after_those_they_need(members: ModuleType, workspace: Path) -> None:
    found = members.read_members(workspace)
    assert sorted(found) == ["a", "b", "c", "run"]
    assert [name for name in found if name != "c"] == ["a", "b", "run"]
    assert found["run"] == ("apps/run", {"b"})


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (["libs/a/src/a/x.py"], {"a", "b", "run"}),
        (["libs/b/README.md"], {"b", "run"}),
        (["apps/run/tests/test_x.py", "libs/c/pyproject.toml"], {"run", "c"}),
        (["libs/another/x.py", "docs/architecture.md", "README.md"], set()),
        (["uv.lock"], {"a", "b", "c", "run"}),
        ([".ci/run"], {"a", "b", "c", "run"}),
        ([".github/workflows/_package.yml"], {"a", "b", "c", "run"}),
        ([".github/workflows/weekly.yml"], set()),
        ([], set()),
    ],
)
def test_changed_paths_choose_their_members_and_all_dependents(
    members: ModuleType, workspace: Path, paths: list[str], chosen: set[str]
) -> None:
    assert set(members.members_to_test(paths, members.read_members(workspace))) == chosen


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_hold_no_logic_beyond_calls_of_ci_run(file: Path) -> None:
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    for job in jobs.values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        for step in job.get("steps", []):
            command = step.get("run", "bash .ci/run")
            assert re.fullmatch(r'bash \.ci/run( [\w"$]+)*( >> "\$GITHUB_OUTPUT")?', command), command


def test_ci_run_and_the_workflows_are_there() -> None:
    assert [file.name for file in WORKFLOWS] == ["_package.yml", "ci.yml", "weekly.yml"]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
