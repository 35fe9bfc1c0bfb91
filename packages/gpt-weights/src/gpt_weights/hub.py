"""Where GPT-2 lies in the network: repositories of Hugging Face's hub, and which of their files are fetched."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from gpt_core import gpt2_config
from gpt_weights import huggingface
from gpt_weights.download import Progress, RemoteFile, fetch
from gpt_weights.openai_files import openai_files

_REPOSITORIES = {
    "124M": "openai-community/gpt2",
    "355M": "openai-community/gpt2-medium",
    "774M": "openai-community/gpt2-large",
    "1558M": "openai-community/gpt2-xl",
}
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # the first that the repository has


def size_of(name: str) -> str:
    """Return "124M", "355M", "774M" or "1558M" for any name of OpenAI's GPT-2; ValueError for another name."""
    sizes = {gpt2_config(size): size for size in _REPOSITORIES}
    return sizes[gpt2_config(name)]


def repository_of(name: str) -> str:
    """Return the hub's repository ORGANISATION/NAME for a GPT-2's name, or for one that is such a name itself."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII):
        return name
    return _REPOSITORIES[size_of(name)]


def cache_folder() -> Path:
    """Return the folder for downloads: GPT_HOME, else XDG_CACHE_HOME/gpt, else ~/.cache/gpt."""
    home = os.environ.get("GPT_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(home) if home else (Path(cache) if cache else Path.home() / ".cache") / "gpt"


def fetch_from_hub(name: str, *, offline: bool | None = None, progress: Progress | None = None) -> Path:
    """Return the folder of a GPT-2 of the hub, with what it lacks fetched into it; errors as of ``fetch``.

    Weights that transformers or huggingface_hub have fetched are taken from their cache. HF_ENDPOINT names another
    hub, HF_TOKEN opens what is not public.
    """
    repository = repository_of(name)
    if snapshot := _snapshot(repository):
        return snapshot
    folder = cache_folder() / "hub" / repository.replace("/", "--")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def one(file: str) -> Path:
        remote = RemoteFile(name=file, urls=(f"{endpoint}/{repository}/resolve/main/{file}",))
        return fetch(remote, folder, offline=offline, progress=progress, headers=headers)

    if _has_weights(folder):  # they come last
        return folder
    one("config.json")
    for names in _TOKENIZERS:
        with contextlib.suppress(FileNotFoundError):
            for file in names:
                one(file)
            break
    try:
        one(huggingface.WEIGHTS)
    except FileNotFoundError:
        for shard in sorted(set(huggingface.shards_of(one(huggingface.INDEX)).values())):
            one(shard)
    return folder


def fetch_from_openai(name: str, *, offline: bool | None = None, progress: Progress | None = None) -> Path:
    """Return the folder of OpenAI's own files, with what it lacks fetched into it; errors as of ``fetch``."""
    size = size_of(name)
    folder = cache_folder() / "openai" / size
    for file in openai_files(size):
        fetch(file, folder, offline=offline, progress=progress)
    return folder


def _snapshot(repository: str) -> Path | None:
    """Return the folder in huggingface_hub's cache that holds the repository's weights, or None."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub") / f"models--{repository.replace('/', '--')}"
    try:
        commit = (hub / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    folder = hub / "snapshots" / commit
    has_tokenizer = any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)
    return folder if re.fullmatch("[0-9a-f]{40}", commit) and _has_weights(folder) and has_tokenizer else None


def _has_weights(folder: Path) -> bool:
    index = folder / huggingface.INDEX
    names = {huggingface.WEIGHTS}
    if index.is_file() and not (folder / huggingface.WEIGHTS).is_file():
        names = set(huggingface.shards_of(index).values())
    return all((folder / name).is_file() for name in {"config.json", *names})
