import base64
import email.utils
import errno
import gzip
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_server as web
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_weights.download import RemoteFile, Timing, fetch
from gpt_weights.errors import WeightsError

CHUNK = 1 << 20
CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(len(CONTENT))
FAST = Timing(timeout=5, tries=4, backoff=0.01, longest_wait=0.1, slowest_rate=1000, window=0.3)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def remote(*servers: Any, content: bytes = CONTENT, is_known: bool = True, name: str = "model.bin") -> RemoteFile:
    urls = tuple(server if isinstance(server, str) else server.url() for server in servers)
    if not is_known:
        return RemoteFile(name=name, urls=urls)
    return RemoteFile(name=name, urls=urls, size=len(content), sha256=sha256(content))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in (
            "HF_HUB_OFFLINE",
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", os.devnull)


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    servers = []

    def start(*answers: Any, **options: Any) -> Any:
        servers.append(web.FaultServer(*answers, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


def test_a_file_arrives_whole_and_leaves_nothing_else(serve, tmp_path):
    server = serve(web.file_of(CONTENT))
    seen = []
    path = fetch(remote(server), tmp_path / "new" / "folder", progress=lambda *call: seen.append(call), timing=FAST)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["model.bin"]
    assert seen[-1] == ("model.bin", len(CONTENT), len(CONTENT))
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("is_known", [True, False])
def test_a_file_that_is_there_costs_no_socket(tmp_path, is_known):
    (tmp_path / "model.bin").write_bytes(CONTENT)
    file = remote("http://files.invalid/x", is_known=is_known)
    with forbidden_sockets():
        assert fetch(file, tmp_path).read_bytes() == CONTENT
        assert fetch(file, tmp_path, offline=True).read_bytes() == CONTENT


def test_offline_opens_no_socket_and_says_how_to_leave(tmp_path, monkeypatch):
    file = remote("http://files.invalid/x")
    with forbidden_sockets(), pytest.raises(ConnectionError, match=r"model\.bin.*missing.*HF_HUB_OFFLINE"):
        fetch(file, tmp_path, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "model.bin").write_bytes(OTHER)
    with forbidden_sockets(), pytest.raises(ConnectionError, match=f"sha256 {sha256(OTHER)} instead"):
        fetch(file, tmp_path)


class forbidden_sockets:  # noqa: N801, reads as a statement
    """A context in which nothing in this process may make a socket; by the interpreter's own audit events."""

    active = 0

    @classmethod
    def hook(cls, event: str, args: object) -> None:
        if cls.active and event.startswith("socket."):
            raise AssertionError(event)

    def __enter__(self) -> None:
        type(self).active += 1

    def __exit__(self, *error: object) -> None:
        type(self).active -= 1


sys.addaudithook(forbidden_sockets.hook)


def test_a_damaged_file_is_replaced_by_a_good_one_only(serve, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"mine")
    with pytest.raises(ConnectionError):
        fetch(remote(serve(web.status_of(500))), tmp_path, timing=FAST)
    assert names(tmp_path) == ["model.bin"]
    assert (tmp_path / "model.bin").read_bytes() == b"mine"
    assert fetch(remote(serve(web.file_of(CONTENT))), tmp_path, timing=FAST).read_bytes() == CONTENT


@pytest.fixture(scope="module")
def breaking_server() -> Iterator[Any]:
    with web.FaultServer() as server:
        yield server


@settings(max_examples=30)
@given(positions=st.lists(st.integers(0, len(CONTENT) - 1), max_size=3), is_known=st.booleans(), resets=st.booleans())
def test_resets_anywhere_are_survived_and_nothing_is_fetched_twice(
    breaking_server, tmp_path_factory, positions, is_known, resets
):
    breaks = [web.file_of(CONTENT, stops_at=at, resets=resets) for at in positions]
    breaking_server.answer(*breaks, web.file_of(CONTENT))
    folder = tmp_path_factory.mktemp("resets")
    seen: list[int] = []
    file = remote(breaking_server, is_known=is_known)
    path = fetch(file, folder, progress=lambda name, n_bytes, total: seen.append(n_bytes), timing=FAST)
    assert path.read_bytes() == CONTENT
    assert names(folder) == ["model.bin"]
    assert seen == sorted(seen)  # what had come was never thrown away
    if not resets:  # a reset also destroys what is on its way
        # Up to 512 bytes are too few to look at and are not kept.
        assert breaking_server.sent <= len(CONTENT) + 512 * len(positions)


def test_resuming_asks_for_the_rest_of_the_same_entity(serve, tmp_path):
    server = serve(web.file_of(CONTENT, stops_at=100_000, resets=False), web.file_of(CONTENT))
    fetch(remote(server, is_known=False), tmp_path, timing=FAST)
    assert (server.requests[1][1]["Range"], server.requests[1][1]["If-Range"]) == ("bytes=100000-", '"one"')
    assert server.sent == len(CONTENT)


def test_a_changed_entity_is_fetched_anew_not_patched_together(serve, tmp_path):
    half = web.file_of(CONTENT, stops_at=100_000, resets=False)
    changed = web.file_of(OTHER, etag='"two"')
    assert fetch(remote(serve(half, changed), is_known=False), tmp_path, timing=FAST).read_bytes() == OTHER

    def ignoring_if_range(handler):
        del handler.headers["If-Range"]
        web.file_of(OTHER, etag='"two"')(handler)

    server = serve(half, ignoring_if_range, changed)
    assert fetch(remote(server, is_known=False), tmp_path / "b", timing=FAST).read_bytes() == OTHER


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_tag_and_a_digest_a_broken_transfer_begins_anew(serve, tmp_path, etag):
    server = serve(web.file_of(CONTENT, etag=etag, stops_at=100_000, resets=False), web.file_of(CONTENT, etag=etag))
    assert fetch(remote(server, is_known=False), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert "Range" not in server.requests[1][1]


def test_a_server_without_ranges_sends_all_again(serve, tmp_path):
    server = serve(web.file_of(CONTENT, stops_at=100_000, resets=False), web.file_of(CONTENT, has_ranges=False))
    assert fetch(remote(server), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) + 100_000


@pytest.mark.parametrize("value", ["bytes 0-299999/300000", "bytes 99999-299999/300000", "bits 100000-299999", "", "x"])
def test_a_wrong_content_range_is_not_believed(serve, tmp_path, value):
    half = web.file_of(CONTENT, stops_at=100_000, resets=False)
    server = serve(half, web.file_of(CONTENT, headers={"Content-Range": value}), web.file_of(CONTENT))
    assert fetch(remote(server), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert "Range" not in server.requests[2][1]


def test_another_length_in_content_range_is_refused(serve, tmp_path):
    half = web.file_of(CONTENT, stops_at=100_000, resets=False)
    longer = serve(web.file_of(CONTENT + b"more", etag='"one"'))
    server = serve(half, web.redirect_to(longer.url()))
    with pytest.raises(WeightsError, match="300,004 bytes instead of 300,000"):
        fetch(remote(server), tmp_path, timing=FAST)


def test_416_for_a_whole_part_means_that_nothing_is_missing(serve, tmp_path):
    too_long = {"Content-Length": str(len(CONTENT) + 10)}
    server = serve(web.file_of(CONTENT, headers=too_long), web.file_of(CONTENT))
    assert fetch(remote(server, is_known=False), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_416_for_anything_else_begins_anew(serve, tmp_path):
    half = web.file_of(CONTENT, stops_at=100_000, resets=False)
    server = serve(half, web.status_of(416, {"Content-Range": "bytes */5"}), web.file_of(CONTENT))
    assert fetch(remote(server), tmp_path, timing=FAST).read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_wrong_content_length_is_noticed(serve, tmp_path, wrong):
    liar = serve(web.file_of(CONTENT, headers={"Content-Length": str(len(CONTENT) + wrong)}))
    with pytest.raises((WeightsError, ConnectionError), match=r"bytes instead of|ended after|broke"):
        fetch(remote(liar), tmp_path, timing=FAST)
    assert "model.bin" not in names(tmp_path)
    assert fetch(remote(liar, serve(web.file_of(CONTENT))), tmp_path, timing=FAST).read_bytes() == CONTENT


def test_a_body_that_ends_without_any_sign_of_its_length_is_refused(serve, tmp_path):
    def endless(handler):
        handler.begin(200, {"Connection": "close"})
        handler.send_body(CONTENT)

    server = serve(endless)
    with pytest.raises(ConnectionError, match="tells no length"):
        fetch(remote(server, is_known=False), tmp_path, timing=FAST)
    assert fetch(remote(server), tmp_path, timing=FAST).read_bytes() == CONTENT  # the caller knows it


def test_chunks_are_put_together_and_a_missing_end_is_noticed(serve, tmp_path):
    pieces = [CONTENT[i : i + 70_000] for i in range(0, len(CONTENT), 70_000)]
    server = serve(web.chunks_of(pieces, ends=False), web.chunks_of(pieces))
    assert fetch(remote(server, is_known=False), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "two members"])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_coded_body_is_never_stored_coded(serve, tmp_path, coding, is_known):
    text = b"to be or not to be " * 20_000
    coded = {"deflate": zlib.compress(text), "two members": gzip.compress(text[:999]) + gzip.compress(text[999:])}
    body = coded.get(coding, gzip.compress(text))
    headers = {"Content-Encoding": "gzip" if coding == "two members" else coding}
    torn = web.body_of(body[:-20], headers=headers)
    server = serve(torn, web.body_of(body, headers={**headers, "ETag": '"one"'}))
    assert fetch(remote(server, content=text, is_known=is_known), tmp_path, timing=FAST).read_bytes() == text


def test_an_unknown_coding_and_a_damaged_one_are_refused(serve, tmp_path):
    for body, coding in ((CONTENT, "br"), (CONTENT, "gzip"), (gzip.compress(CONTENT)[:-9] + b"x" * 9, "gzip")):
        server = serve(web.body_of(body, headers={"Content-Encoding": coding}))
        with pytest.raises(ConnectionError, match=coding):
            fetch(remote(server, is_known=False), tmp_path, timing=FAST)
        assert "model.bin" not in names(tmp_path)


def test_memory_is_bounded_even_for_a_compression_bomb(serve, tmp_path):
    n = 48 << 20
    coder = zlib.compressobj(1, wbits=31)
    body = b"".join(coder.compress(bytes(1 << 20)) for _ in range(n >> 20)) + coder.flush()
    server = serve(web.body_of(body, headers={"Content-Encoding": "gzip"}))
    tracemalloc.start()
    try:
        path = fetch(remote(server, is_known=False), tmp_path, timing=FAST)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == n
    assert peak < 8 * CHUNK


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_refusals_are_tried_again(serve, tmp_path, status):
    server = serve(web.status_of(status), web.status_of(status), web.file_of(CONTENT))
    assert fetch(remote(server), tmp_path, timing=FAST).read_bytes() == CONTENT


def test_the_number_of_tries_is_kept(serve, tmp_path):
    server = serve(web.status_of(500))
    with pytest.raises(ConnectionError, match="500 Internal Server Error"):
        fetch(remote(server), tmp_path, timing=FAST)
    assert len(server.requests) == FAST.tries
    assert names(tmp_path) == []


def test_retry_after_is_obeyed_up_to_the_longest_wait(serve, tmp_path):
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    patient = Timing(backoff=0, longest_wait=5)
    for value, timing, least, most in (
        (soon, patient, 0.5, 5.0),
        ("1", patient, 1.0, 4.0),
        ("1000", FAST, 0.1, 2.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", patient, 0.0, 2.0),
        ("soon", FAST, 0.0, 2.0),
    ):
        server = serve(web.status_of(429, {"Retry-After": value}), web.file_of(b"now"))
        folder = tmp_path / value.replace(":", "").replace(",", "")
        start = time.monotonic()
        fetch(remote(server, content=b"now"), folder, timing=timing)
        assert least <= time.monotonic() - start < most, value


def test_a_final_refusal_sends_to_the_mirror_at_once(serve, tmp_path):
    for status in (400, 403, 404, 410, 204):
        refusing, mirror = serve(web.status_of(status)), serve(web.file_of(CONTENT))
        folder = tmp_path / str(status)
        assert fetch(remote(refusing, mirror), folder, timing=FAST).read_bytes() == CONTENT
        assert len(refusing.requests) == 1


def test_404_everywhere_is_file_not_found_and_leaves_nothing(serve, tmp_path):
    with pytest.raises(FileNotFoundError, match="404"):
        fetch(remote(serve(web.status_of(404)), serve(web.status_of(404))), tmp_path, timing=FAST)
    assert names(tmp_path) == []
    with pytest.raises(ConnectionError, match=r"404.*500"):
        fetch(remote(serve(web.status_of(404)), serve(web.status_of(500))), tmp_path, timing=FAST)


def test_a_refused_right_names_the_token(serve, tmp_path):
    for status in (401, 403):
        with pytest.raises(ConnectionError, match=f"{status}.*HF_TOKEN"):
            fetch(remote(serve(web.status_of(status))), tmp_path, timing=FAST)


def test_the_final_error_is_one_sentence_with_addresses_reasons_and_remedies_but_no_secret(serve, tmp_path):
    server = serve(web.status_of(503))
    secret = server.url("/file?signature=hidden").replace("//", "//user:hidden@")
    with pytest.raises(ConnectionError) as caught:
        fetch(remote(secret, "http://files.invalid/b"), tmp_path, timing=FAST)
    said = str(caught.value)
    for word in (server.url(), "503", "http://files.invalid/b", "HTTPS_PROXY", "SSL_CERT_FILE", "HF_ENDPOINT"):
        assert word in said
    assert str(tmp_path / "model.bin") in said
    assert "hidden" not in said
    assert "\n" not in said


def test_an_unknown_host_is_tried_twice_then_the_mirror(serve, tmp_path):
    start = time.monotonic()
    file = remote("http://files.invalid/x", serve(web.file_of(CONTENT)))
    assert fetch(file, tmp_path, timing=FAST).read_bytes() == CONTENT
    assert time.monotonic() - start < 10


def test_a_closed_port_is_a_connection_error(tmp_path):
    with web.FaultServer() as server:
        url = server.url()
    with pytest.raises(ConnectionError, match="no answer"):
        fetch(remote(url), tmp_path, timing=FAST)


def test_redirects_are_followed_but_not_in_a_circle_nor_out_of_the_web(serve, tmp_path):
    target = serve(web.file_of(CONTENT))
    for location in (target.url(), target.url().replace("http:", "")):
        folder = tmp_path / str(len(location))
        assert fetch(remote(serve(web.redirect_to(location))), folder, timing=FAST).read_bytes() == CONTENT
    circle = serve(web.redirect_to("/file"))
    start = time.monotonic()
    assert fetch(remote(circle, target), tmp_path, timing=Timing()).read_bytes() == CONTENT
    assert time.monotonic() - start < 2  # at once, without the default waits
    assert len(circle.requests) == 11
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "https:///x"):
        with pytest.raises(ConnectionError, match="redirects to"):
            fetch(remote(serve(web.redirect_to(location))), tmp_path / "none", timing=FAST)


def test_the_endless_body_of_a_redirect_is_not_read(serve, tmp_path):
    target = serve(web.file_of(CONTENT))

    def endless(handler):
        handler.begin(302, {"Location": target.url(), "Connection": "close"})
        handler.send_body(bytes(1 << 20), piece=1, pause=0.01)

    assert fetch(remote(serve(endless)), tmp_path, timing=FAST).read_bytes() == CONTENT


def test_a_token_goes_to_the_first_host_only(serve, tmp_path):
    storage, mirror = serve(web.status_of(500)), serve(web.file_of(CONTENT))
    first = serve(web.redirect_to("/other"), web.redirect_to(storage.url()))
    fetch(remote(first, mirror), tmp_path, headers={"Authorization": "Bearer x"}, timing=FAST)
    assert [request[1].get("Authorization") for request in first.requests[:2]] == ["Bearer x"] * 2
    assert storage.requests
    assert mirror.requests
    assert not any("Authorization" in headers for _, headers in storage.requests + mirror.requests)


def test_a_netrc_entry_does_not_replace_the_token(serve, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve(web.file_of(CONTENT))
    fetch(remote(server), tmp_path, headers={"authorization": "Bearer x"}, timing=FAST)
    assert server.requests[0][1]["authorization"] == "Bearer x"


def test_a_transfer_that_crawls_is_abandoned(serve, tmp_path):
    crawling = serve(web.file_of(CONTENT, piece=1, pause=0.05))
    start = time.monotonic()
    assert fetch(remote(crawling, serve(web.file_of(CONTENT))), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert time.monotonic() - start < 10
    assert len(crawling.requests) == FAST.tries


def test_a_server_that_falls_silent_is_abandoned(serve, tmp_path):
    silent = serve(web.file_of(CONTENT, piece=100_000, pause=3))
    with pytest.raises(ConnectionError, match=r"sent nothing for 0\.2 s"):
        fetch(remote(silent), tmp_path, timing=Timing(timeout=0.2, tries=1))


def test_tries_begin_anew_while_the_file_grows(serve, tmp_path):
    content = random.Random(2).randbytes(5 * CHUNK)
    server = serve(web.file_of(content, stops_at=CHUNK, resets=False))
    assert fetch(remote(server, content=content), tmp_path, timing=Timing(tries=2, backoff=0)).read_bytes() == content
    assert server.sent == len(content)


def test_a_web_page_is_called_one_and_never_lands(serve, tmp_path):
    broken = serve(web.file_of(CONTENT, stops_at=100_000, resets=False), web.status_of(500))
    with pytest.raises(ConnectionError, match="500"):
        fetch(remote(broken), tmp_path, timing=FAST)
    for page in (b"<!DOCTYPE html>\n<p>Log in", b"\xef\xbb\xbf \n<HTML lang=en>", b"<html>" + bytes(2_000_000)):
        captive = serve(web.body_of(page))
        with pytest.raises(ConnectionError, match="web page"):
            fetch(remote(captive), tmp_path, timing=FAST)
        assert (tmp_path / "model.bin.part").read_bytes() == CONTENT[:100_000]  # good for later
    server = serve(web.file_of(CONTENT))
    assert fetch(remote(captive, server), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) - 100_000
    page = serve(web.body_of(b"<html>"))
    assert fetch(remote(page, is_known=False, name="a.html"), tmp_path, timing=FAST).read_bytes() == b"<html>"


def test_wrong_content_at_one_address_and_right_at_the_next_succeeds(serve, tmp_path):
    for wrong in (OTHER, CONTENT + b"x", CONTENT[:-1], b""):
        file = remote(serve(web.file_of(wrong)), serve(web.file_of(CONTENT)))
        assert fetch(file, tmp_path / str(len(wrong)), timing=FAST).read_bytes() == CONTENT


def test_wrong_content_everywhere_is_named_with_both_digests_and_not_kept(serve, tmp_path):
    with pytest.raises(WeightsError, match=f"{sha256(OTHER)} instead of {sha256(CONTENT)}"):
        fetch(remote(serve(web.file_of(OTHER)), serve(web.file_of(OTHER))), tmp_path, timing=FAST)
    assert names(tmp_path) == []


def test_a_part_goes_on_at_a_mirror_if_the_digest_is_known(serve, tmp_path):
    first = serve(web.file_of(CONTENT, stops_at=100_000, resets=False), web.status_of(404))
    mirror = serve(web.file_of(CONTENT, etag='"theirs"'))
    assert fetch(remote(first, mirror), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert mirror.sent == len(CONTENT) - 100_000


def test_a_mirror_is_not_blamed_for_what_another_address_sent(serve, tmp_path):
    bad = serve(web.file_of(OTHER, stops_at=100_000, resets=False), web.status_of(404))
    assert fetch(remote(bad, serve(web.file_of(CONTENT))), tmp_path, timing=FAST).read_bytes() == CONTENT


@pytest.mark.parametrize("is_on_redirect", [True, False])
def test_what_hugging_face_says_of_a_file_is_checked(serve, tmp_path, is_on_redirect):
    def hub(content: bytes) -> Any:
        headers = {"X-Linked-Size": str(len(CONTENT)), "X-Linked-Etag": f'"{sha256(CONTENT)}"'}
        if not is_on_redirect:
            return serve(web.file_of(content, headers=headers))
        return serve(web.redirect_to(serve(web.file_of(content)).url(), headers))

    assert fetch(remote(hub(CONTENT), is_known=False), tmp_path, timing=FAST).read_bytes() == CONTENT
    for bad, message in ((OTHER, "sha256"), (CONTENT[:-1], "bytes instead of 300,000")):
        with pytest.raises(WeightsError, match=message):
            fetch(remote(hub(bad), is_known=False, name="bad"), tmp_path, timing=FAST)
    assert names(tmp_path) == ["model.bin"]


@pytest.mark.parametrize("name", ["Content-MD5", "x-ms-blob-content-md5"])
def test_what_azure_says_of_a_file_is_checked_also_after_resuming(serve, tmp_path, name):
    headers = {name: base64.b64encode(hashlib.md5(CONTENT).digest()).decode()}
    half = web.file_of(CONTENT, headers=headers, stops_at=100_000, resets=False)
    rest_md5 = {"Content-MD5": base64.b64encode(hashlib.md5(CONTENT[100_000:]).digest()).decode()}
    server = serve(half, web.file_of(CONTENT, headers=rest_md5))
    assert fetch(remote(server, is_known=False), tmp_path, timing=FAST).read_bytes() == CONTENT
    for answers in ([web.file_of(OTHER, headers=headers)], [half, web.file_of(OTHER)]):
        with pytest.raises(WeightsError, match="md5"):
            fetch(remote(serve(*answers), is_known=False, name="bad"), tmp_path, timing=FAST)


def test_the_callers_digest_goes_before_the_servers(serve, tmp_path):
    headers = {"X-Linked-Etag": sha256(OTHER), "X-Linked-Size": "1", "Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
    assert fetch(remote(serve(web.file_of(CONTENT, headers=headers))), tmp_path, timing=FAST).read_bytes() == CONTENT


def test_a_name_that_is_a_path_or_a_device_is_refused():
    for name in ("", ".", "..", "a/b", "a\\b", "C:x", "a\0", "NUL", "con.txt", "com1 .x", "LPT¹", "x.", "x ", "a?"):
        with pytest.raises(ValueError, match="plain name"):
            RemoteFile(name=name, urls=("http://localhost/x",))
    for name in ("model.ckpt.data-00000-of-00001", "console", ".hidden", "com", "größe.json"):
        RemoteFile(name=name, urls=("http://localhost/x",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"urls": ()},
        {"urls": "http://localhost/x"},
        {"urls": ("file:///etc/passwd",)},
        {"urls": ("http:///x",)},
        {"urls": ("localhost/x",)},
        {"size": -1},
        {"sha256": "abc"},
        {"sha256": "A" * 64},
    ],
)
def test_a_file_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        RemoteFile(**{"name": "x", "urls": ("http://localhost/x",), **wrong})


@pytest.mark.parametrize("wrong", [{"tries": 0}, {"timeout": 0}, {"window": float("nan")}, {"backoff": -1}])
def test_a_timing_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Timing(**wrong)


def test_a_folder_in_the_files_place_is_named(tmp_path):
    (tmp_path / "model.bin").mkdir()
    with pytest.raises(IsADirectoryError, match="move it away"):
        fetch(remote("http://files.invalid/x"), tmp_path)


def test_a_disk_too_small_is_noticed_before_the_transfer(serve, tmp_path):
    huge = serve(web.body_of(bytes(1000), headers={"Content-Length": str(10**17)}))
    with pytest.raises(OSError, match=r"needs 100,000,000,000,000,000 bytes and [0-9,]+ are free") as caught:
        fetch(remote(huge, is_known=False), tmp_path, timing=FAST)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_disk_that_gets_full_leaves_no_part(serve, tmp_path):
    (tmp_path / "model.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"needs 300,000 bytes and [0-9,]+ are free") as caught:
        fetch(remote(serve(web.file_of(CONTENT))), tmp_path, timing=FAST)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_ctrl_c_keeps_the_part_and_the_next_call_goes_on(serve, tmp_path):
    content = random.Random(3).randbytes(4 * CHUNK)

    def interrupt(name: str, n_bytes: int, total: int | None) -> None:
        if n_bytes > CHUNK:
            raise KeyboardInterrupt

    server = serve(web.file_of(content))
    with pytest.raises(KeyboardInterrupt):
        fetch(remote(server, is_known=False), tmp_path, progress=interrupt, timing=FAST)
    kept = (tmp_path / "model.bin.part").stat().st_size
    assert kept > CHUNK
    server.answer(web.file_of(content))
    assert fetch(remote(server, is_known=False), tmp_path, timing=FAST).read_bytes() == content
    assert server.sent == len(content) - kept
    assert names(tmp_path) == ["model.bin"]


def test_a_foreign_or_damaged_part_does_no_harm(serve, tmp_path):
    server = serve()
    for what in ("no note", "torn note", "wrong note", "bad bytes", "too long", "whole"):
        folder = tmp_path / what
        server.answer(web.file_of(CONTENT, stops_at=100_000, resets=False), web.status_of(404))
        with pytest.raises(FileNotFoundError):
            fetch(remote(server), folder, timing=FAST)
        part, note = folder / "model.bin.part", folder / "model.bin.part.json"
        if what == "no note":
            note.unlink()
        elif what == "torn note":
            note.write_bytes(note.read_bytes()[:50])
        elif what == "wrong note":
            note.write_text('{"address": 1}', encoding="ascii")
        else:
            part.write_bytes({"bad bytes": OTHER[:100_000], "too long": OTHER + b"x", "whole": CONTENT}[what])
        server.answer(web.file_of(CONTENT))
        assert fetch(remote(server), folder, timing=FAST).read_bytes() == CONTENT, what
        assert names(folder) == ["model.bin"]
    assert server.requests == []  # the last one was whole


def test_threads_at_once_fetch_one_file_once(serve, tmp_path):
    server = serve(web.file_of(CONTENT, pause=0.01))
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch(remote(server), tmp_path, timing=FAST), range(6)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.sent == len(CONTENT)
    assert names(tmp_path) == ["model.bin"]


PROGRAM = """
import sys
import types
url, size, sha256, folder, source = sys.argv[1:]
package = sys.modules["gpt_weights"] = types.ModuleType("gpt_weights")
package.__path__ = [source]  # without its __init__, which imports torch: that takes longer than the download
from gpt_weights.download import RemoteFile, fetch
fetch(RemoteFile(name="model.bin", urls=(url,), size=int(size), sha256=sha256), folder)
"""


def start(server: Any, content: bytes, folder: Path) -> subprocess.Popen[bytes]:
    source = Path(fetch.__code__.co_filename).parent
    arguments = [server.url(), str(len(content)), sha256(content), str(folder), str(source)]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments])


def test_two_processes_at_once_fetch_one_file_once(serve, tmp_path):
    server = serve(web.file_of(CONTENT, piece=3_000, pause=0.01))
    processes = [start(server, CONTENT, tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "model.bin").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert names(tmp_path) == ["model.bin"]


def test_kill_9_costs_at_most_a_chunk(serve, tmp_path):
    content = random.Random(4).randbytes(3 * CHUNK)
    server = serve(web.file_of(content, piece=1 << 14, pause=0.005))
    process = start(server, content, tmp_path)
    while server.sent < CHUNK and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait(60)
    assert "model.bin" not in names(tmp_path)
    assert fetch(remote(server, content=content), tmp_path, timing=FAST).read_bytes() == content
    assert server.requests[1][1]["Range"] != "bytes=0-"
    assert server.sent <= len(content) + CHUNK
    assert names(tmp_path) == ["model.bin"]


def test_a_proxy_in_the_environment_is_used(serve, tmp_path, monkeypatch):
    proxy = serve(web.file_of(CONTENT))
    monkeypatch.setenv("HTTP_PROXY", proxy.url(""))
    monkeypatch.setenv("http_proxy", proxy.url(""))
    assert fetch(remote("http://files.invalid/x"), tmp_path, timing=FAST).read_bytes() == CONTENT
    assert proxy.requests[0][0] == "http://files.invalid/x"
    with web.FaultServer() as closed:
        monkeypatch.setenv("http_proxy", closed.url("").replace("//", "//user:hidden@"))
    with pytest.raises(ConnectionError, match="HTTPS_PROXY") as caught:
        fetch(remote("http://files.invalid/y", name="y"), tmp_path, timing=FAST)
    assert "hidden" not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the command openssl, which makes the certificate, is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this openssl makes no such certificate: {made.stderr!r}")
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return str(path)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_named_in_the_environment_is_trusted(serve, tmp_path, monkeypatch, certificate, variable):
    monkeypatch.setenv(variable, certificate)
    server = serve(web.file_of(CONTENT), certificate=certificate)
    assert fetch(remote(server), tmp_path, timing=FAST).read_bytes() == CONTENT


def test_an_unknown_certificate_sends_to_the_mirror_at_once(serve, tmp_path, certificate, monkeypatch):
    server = serve(web.file_of(CONTENT), certificate=certificate)
    start = time.monotonic()
    assert fetch(remote(server, serve(web.file_of(CONTENT))), tmp_path).read_bytes() == CONTENT
    assert time.monotonic() - start < 2  # at once, without the default waits
    assert server.requests == []
    with pytest.raises(ConnectionError, match=r"TLS fails.*certificate.*SSL_CERT_FILE"):
        fetch(remote(server, name="x"), tmp_path, timing=FAST)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(ConnectionError, match=r"missing\.pem"):
        fetch(remote(server, name="x"), tmp_path, timing=FAST)


def test_https_does_not_redirect_to_http(serve, tmp_path, monkeypatch, certificate):
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    server = serve(web.redirect_to(serve(web.file_of(CONTENT)).url()), certificate=certificate)
    with pytest.raises(ConnectionError, match="refused"):
        fetch(remote(server), tmp_path, timing=FAST)
