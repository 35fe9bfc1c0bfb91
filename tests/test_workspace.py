"""What holds for every member of the workspace: declared imports, honest metadata, pages, small modules."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Member:
    folder: Path
    project: dict[str, Any]
    groups: dict[str, list[Any]]

    @property
    def name(self) -> str:
        return self.project["name"]

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def source(self) -> Path:
        return self.folder / "src" / self.module

    @property
    def extras(self) -> list[Requirement]:
        extras = self.project.get("optional-dependencies", {}).values()
        return [Requirement(line) for lines in extras for line in lines]

    @property
    def dependencies(self) -> list[Requirement]:
        return [Requirement(line) for line in self.project["dependencies"]]


def read_members() -> Iterator[Member]:
    for file in sorted([*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("apps/*/pyproject.toml")]):
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        yield Member(file.parent, table["project"], table.get("dependency-groups", {}))


MEMBERS = {member.name: member for member in read_members()}
each_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project_files(*patterns: str) -> list[Path]:
    """Return the files that git knows or would add, so that a build folder or an environment is not read."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, encoding="utf-8").stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@each_member
def test_each_sibling_is_required_with_bounds_that_admit_its_version(member: Member) -> None:
    in_groups = [line for lines in member.groups.values() for line in lines if isinstance(line, str)]
    for requirement in [*member.dependencies, *member.extras, *map(Requirement, in_groups)]:
        if requirement.name in MEMBERS:
            operators = {specifier.operator for specifier in requirement.specifier}
            assert {">=", "<"} <= operators, f"{requirement} needs a lower and an upper bound"
            version = MEMBERS[requirement.name].project["version"]
            assert version in requirement.specifier, f"{requirement}, but the workspace holds {version}"


def imports_of(source: Path) -> Iterator[tuple[Path, str, bool]]:
    """Yield (file, top-level name, whether importing the file runs it) for each absolute import."""
    for file in sorted(source.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        nested = {
            node
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test))
            for node in ast.walk(outer)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield file, alias.name.split(".")[0], node not in nested
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield file, node.module.split(".")[0], node not in nested


def distribution_of(module: str) -> str:
    """Return what to install for ``import module``; but for these, third-party modules are named as distributions."""
    siblings = {member.module: member.name for member in MEMBERS.values()}
    return {**siblings, "sklearn": "scikit-learn", "lm_eval": "lm-eval"}.get(module, module)


@each_member
def test_each_import_is_declared_and_extras_are_imported_only_when_used(member: Member) -> None:
    required = {requirement.name for requirement in member.dependencies}
    optional = {requirement.name for requirement in member.extras}
    loaded = {Path(file) for file in loaded_by_importing(member.module).values() if file}
    for file, module, at_import in imports_of(member.source):
        if module in sys.stdlib_module_names or module == member.module:
            continue
        # A module that importing the member leaves alone is itself asked for by who has the extra.
        allowed = required if at_import and file in loaded else required | optional
        where = f"{file.relative_to(ROOT).as_posix()} imports {module}"
        assert distribution_of(module) in allowed, f"{where}; its pyproject.toml does not declare that"


@each_member
def test_each_dependency_is_imported(member: Member) -> None:
    imported = {distribution_of(module) for _, module, _ in imports_of(member.source)}
    assert {requirement.name for requirement in [*member.dependencies, *member.extras]} <= imported


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.extras])
def test_importing_a_member_does_not_import_its_extras(name: str) -> None:
    extras = {requirement.name for requirement in MEMBERS[name].extras}
    assert not loaded_by_importing(MEMBERS[name].module).keys() & extras


def test_importing_the_tokenizer_leaves_torch_and_numpy_out() -> None:
    loaded = loaded_by_importing("gpt_tokenizer")
    assert "tiktoken" in loaded
    assert not loaded.keys() & {"torch", "numpy"}


def loaded_by_importing(module: str) -> dict[str, str | None]:
    """Return name and file of each module that ``import module`` loads."""
    files = "{name: getattr(found, '__file__', None) for name, found in sys.modules.items()}"
    code = f"import json, sys, {module}; print(json.dumps({files}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8")
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@each_member
def test_metadata_says_what_is_true_and_keeps_an_upload_out(member: Member) -> None:
    assert "Private :: Do Not Upload" in member.project["classifiers"]
    assert member.project["requires-python"] == ">=3.11"
    assert member.project["license"] == "Apache-2.0"
    assert (member.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (member.source / "py.typed").is_file()
    assert (member.folder / "README.md").read_text(encoding="utf-8").startswith(f"# {member.name}\n")
    assert any("pytest" in line for line in member.groups["test"])


@each_member
def test_the_changelog_begins_with_the_version_of_the_workspace(member: Member) -> None:
    changelog = (member.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## v?(\S+)", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == member.project["version"]


@each_member
def test_all_names_are_there_once(member: Member) -> None:
    package = importlib.import_module(member.module)
    assert package.__doc__
    names = getattr(package, "__all__", [])
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(package, name)] == []


@each_member
def test_each_command_is_a_function_that_returns_an_exit_code(member: Member) -> None:
    for target in member.project.get("scripts", {}).values():
        module, function = target.split(":")
        assert getattr(importlib.import_module(module), function).__annotations__["return"] in (int, "int")


@each_member
def test_each_module_is_one_idea(member: Member) -> None:
    for file in member.source.rglob("*.py"):
        n_lines = len(file.read_text(encoding="utf-8").splitlines())
        assert n_lines <= 300, f"{file.name} has {n_lines} lines: it holds more than one idea"
        assert file.stem not in {"utils", "util", "helpers", "common", "misc"}, f"{file.name} names no idea"


@each_member
def test_each_member_is_listed_wherever_members_are_listed(member: Member) -> None:
    linter = ConfigParser()
    linter.read(ROOT / ".importlinter", encoding="utf-8")
    assert WORKSPACE["tool"]["uv"]["sources"][member.name] == {"workspace": True}
    assert member.module in linter["importlinter"]["root_packages"].split()
    assert member.module in re.findall(r"\w+", linter["importlinter:contract:layers"]["layers"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({member.folder.relative_to(ROOT).as_posix()})" in readme


def test_no_page_installs_a_member_by_its_bare_name() -> None:
    """On PyPI gpt-tokenizer is a stranger's package, and the other names are free for anybody to take."""
    command = r"(?:pip install|pipx install|uv add|uv tool install|uvx)\b[^\n&|;]*?"
    bare = re.compile(rf"{command}(?<![\w/=#-])({'|'.join(MEMBERS)})\b(?!-)(?!(?:\[[\w,-]*\])? @ )")
    assert bare.search("pip install gpt-tokenizer")
    assert bare.search("uv pip install -U 'gpt-train[plot]'")
    assert not bare.search('uv pip install "gpt-train[plot] @ git+URL#subdirectory=packages/gpt-train"')
    assert not bare.search("pip install uv && uv run gpt-pretrain")
    for file in project_files("*.md", "*.py", "*.toml", "*.yml"):
        found = None if file == Path(__file__) else bare.search(file.read_text(encoding="utf-8"))
        assert not found, f"{file.relative_to(ROOT)}: {found[0] if found else ''}"


def test_no_file_names_a_machine_or_a_package_index() -> None:
    place = re.compile(r"/(?:work|root|home|Users)/|pypi\.org|pythonhosted\.org|index-url|https?://\S+/simple\b")
    for file in project_files():
        if file.name == "uv.lock" or file == Path(__file__) or file.suffix in {".png", ".svg"}:
            continue
        found = place.search(file.read_text(encoding="utf-8"))
        assert not found, f"{file.relative_to(ROOT)}: {found[0] if found else ''}"


def test_the_commands_of_all_pages_exist() -> None:
    tools = {"pytest", "python", "ruff", "mypy", "lint-imports"}
    commands = tools | {script for member in MEMBERS.values() for script in member.project.get("scripts", {})}
    for page in project_files("*.md"):
        for found in re.findall(r"\buv run (?:--?\S+ )*([a-z][\w.-]*)", page.read_text(encoding="utf-8")):
            assert found in commands, f"{page.relative_to(ROOT)} says `uv run {found}`"


def test_the_links_between_pages_lead_somewhere() -> None:
    for page in project_files("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
