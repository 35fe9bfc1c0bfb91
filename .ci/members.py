"""Print the workspace's members, each after the members it needs; with changed paths, only those to test again.

    members.py                        name and folder, one member a line
    members.py changed < PATHS        a JSON list of names, made from `git diff --name-only`
"""

import json
import re
import sys
import tomllib
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("uv.lock", "pyproject.toml", "conftest.py", ".ci/")
"""Paths that decide how every member is tested."""


def read_members(root: Path = ROOT) -> dict[str, tuple[str, set[str]]]:
    """Return {name: (folder, names of the members it requires, in extras and groups too)}, dependencies first."""
    found = {}
    for file in root.glob("*/*/pyproject.toml"):
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        extras = table["project"].get("optional-dependencies", {}).values()
        groups = table.get("dependency-groups", {}).values()
        lines = [table["project"].get("dependencies", []), *extras, *groups]
        required = {re.split(r"[^\w.-]", line)[0] for part in lines for line in part if isinstance(line, str)}
        found[table["project"]["name"]] = (file.parent.relative_to(root).as_posix(), required)
    needs = {name: sorted(required & found.keys() - {name}) for name, (_, required) in sorted(found.items())}
    return {name: (found[name][0], set(needs[name])) for name in TopologicalSorter(needs).static_order()}


def members_to_test(paths: Iterable[str], members: dict[str, tuple[str, set[str]]]) -> list[str]:
    """Return the members that a changed path lies in, and their dependents; all of them if it is a shared path."""
    paths = list(paths)
    chosen: list[str] = []
    for name, (folder, needs) in members.items():
        if any(path.startswith((f"{folder}/", *SHARED)) for path in paths) or needs & set(chosen):
            chosen.append(name)
    return chosen


if __name__ == "__main__":
    if sys.argv[1:] == ["changed"]:
        print(json.dumps(members_to_test(sys.stdin.read().splitlines(), read_members())))
    else:
        print("\n".join(f"{name} {folder}" for name, (folder, _) in read_members().items()))
