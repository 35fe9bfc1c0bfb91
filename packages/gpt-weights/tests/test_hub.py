"""The hub's route against a server that answers as the hub does; nothing leaves this machine."""

import hashlib
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hand_made import write_huggingface, write_shards

from gpt_weights import open_weights
from gpt_weights.hub import cache_folder, fetch_from_hub, repository_of, size_of

REPOSITORY = "openai-community/gpt2"


class Hub(SimpleHTTPRequestHandler):
    """Files of /ORGANISATION/NAME/resolve/main/FILE, with the digest that the hub gives for large ones."""

    requests: list[tuple[str, str | None]]

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.suffix == ".safetensors" and path.is_file():
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
            self.send_header("X-Linked-Size", str(path.stat().st_size))
        super().end_headers()

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(tmp_path / "hub")))
    server.seen = []
    server.folder = tmp_path / "hub" / REPOSITORY / "resolve" / "main"
    Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GPT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_comes_once_and_then_from_the_folder(hub: Any, tmp_path: Path) -> None:
    theirs = write_huggingface(hub.folder)
    folder = fetch_from_hub("124M")
    assert folder == tmp_path / "home" / "hub" / "openai-community--gpt2"
    assert (folder / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
    found = dict(open_weights(folder).tensors())
    assert found["tok_emb.weight"].equal(theirs["transformer.wte.weight"])
    assert open_weights(folder).tokenizer is not None
    hub.seen.clear()
    assert fetch_from_hub("gpt2", offline=True) == folder
    assert hub.seen == []


def test_shards_are_fetched_where_there_is_no_single_file(hub: Any) -> None:
    theirs = write_huggingface(hub.folder)
    write_shards(hub.folder, theirs)
    folder = fetch_from_hub(REPOSITORY)
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    ]
    assert open_weights(folder).model().config.n_layers == 2
    hub.seen.clear()
    assert fetch_from_hub(REPOSITORY, offline=True) == folder
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert hub.seen == []
    fetch_from_hub(REPOSITORY)
    assert [path for path, _ in hub.seen if path.endswith("2-of-00002.safetensors")]


def test_a_damaged_file_of_the_hub_does_not_land(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_huggingface(hub.folder)
    digest = hashlib.sha256(b"another file").hexdigest()
    monkeypatch.setattr(Hub, "end_headers", lambda self: wrong_digest(self, digest))
    with pytest.raises(ValueError, match=digest):
        fetch_from_hub("gpt2")
    assert not list(cache_folder().rglob("model.safetensors"))


def wrong_digest(handler: Any, digest: str) -> None:
    if handler.path.endswith(".safetensors"):
        handler.send_header("X-Linked-Etag", f'"{digest}"')
    SimpleHTTPRequestHandler.end_headers(handler)


def test_the_token_is_sent_and_a_missing_model_is_named(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        fetch_from_hub("nobody/nothing")
    assert {token for _, token in hub.seen} == {"Bearer hf_secret"}


def test_what_other_programs_have_fetched_is_used(hub: Any, tmp_path: Path) -> None:
    write_huggingface(tmp_path / "made")
    cached = tmp_path / "cache" / "huggingface" / "hub" / "models--openai-community--gpt2"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    shutil.copytree(tmp_path / "made", cached / "snapshots" / ("a" * 40))
    assert fetch_from_hub("gpt2") == cached / "snapshots" / ("a" * 40)
    (cached / "refs" / "main").write_text("../../../made", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        fetch_from_hub("gpt2")


@pytest.mark.parametrize(
    ("name", "repository", "size"),
    [("124M", "openai-community/gpt2", "124M"), ("gpt2-xl", "openai-community/gpt2-xl", "1558M"),
     ("345m", "openai-community/gpt2-medium", "355M"), ("gpt2-large (774M)", "openai-community/gpt2-large", "774M")],
)
def test_every_name_of_gpt2_leads_to_its_repository(name: str, repository: str, size: str) -> None:
    assert (repository_of(name), size_of(name)) == (repository, size)


@pytest.mark.parametrize("name", ["gpt5", "../gpt2", "a/../b", "a/b/c", "a\\b", "-a/b", "a/b\n", "a/", "%2e%2e/x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown GPT-2 size"):
        repository_of(name)


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GPT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "gpt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gpt"
    monkeypatch.setenv("GPT_HOME", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
