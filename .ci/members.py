"""Print the workspace's members, each after those it needs; given changed paths, the members to test again.

    members.py                        name and folder, one member a line
    members.py changed < PATHS        a JSON list of names; PATHS as `git diff --name-only` prints them
"""

import json
import re
import sys
import tomllib
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("uv.lock", "pyproject.toml", "conftest.py", ".ci/", ".github/workflows/_package.yml")
"""Paths that decide how every member is tested."""


def read_members(root: Path = ROOT) -> dict[str, tuple[str, set[str]]]:
    """Return {name: (folder, members it requires, for extras and groups too)}, what others need first."""
    found: dict[str, tuple[str, set[str]]] = {}
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    patterns = tomllib.loads(text)["tool"]["uv"]["workspace"]["members"]
    for file in sorted(file for pattern in patterns for file in root.glob(f"{pattern}/pyproject.toml")):
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        extras = table["project"].get("optional-dependencies", {}).values()
        groups = table.get("dependency-groups", {}).values()
        parts = [table["project"].get("dependencies", []), *extras, *groups]
        lines = [line for part in parts for line in part if isinstance(line, str)]
        required = {re.split(r"[^\w.-]", line)[0] for line in lines}
        found[table["project"]["name"]] = (file.parent.relative_to(root).as_posix(), required)
    needs = {name: sorted((required & found.keys()) - {name}) for name, (_, required) in found.items()}
    return {name: (found[name][0], set(needs[name])) for name in TopologicalSorter(needs).static_order()}


def members_to_test(paths: Iterable[str], members: dict[str, tuple[str, set[str]]]) -> list[str]:
    """Return the members with a changed path and all that depend on them; every member for a shared path."""
    paths = list(paths)
    chosen: list[str] = []
    for name, (folder, needs) in members.items():
        if needs & set(chosen) or any(path.startswith((f"{folder}/", *SHARED)) for path in paths):
            chosen.append(name)
    return chosen


if __name__ == "__main__":
    if sys.argv[1:] == ["changed"]:
        print(json.dumps(members_to_test(sys.stdin.read().splitlines(), read_members())))
    else:
        print("\n".join(f"{name} {folder}" for name, (folder, _) in read_members().items()))
