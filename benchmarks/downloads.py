"""Every fault that a network has, met by a download many times over: is the file right, what did it cost?

    uv run python benchmarks/downloads.py
    uv run python benchmarks/downloads.py --runs 10 --no-giving-up

A server on 127.0.0.1, that of gpt-weights' tests, breaks the transfer of a file of 4 MiB in one way, at places drawn
from a seed, and then works, or leaves it to a second one that does. Counted are right files, and the bytes that the
servers sent beyond the file's size; the waits are a tenth of the defaults. The second table has the same faults without
an end, with the default waits: the seconds until ``fetch`` gives up, and with what.

Results go to ``benchmarks/results``: downloads.md and .png. The exit code is 0 only if every file was right.
"""

import argparse
import contextlib
import gzip
import hashlib
import importlib.util
import multiprocessing
import os
import platform
import random
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from gpt_weights.download import RemoteFile, Timing, fetch

_SPEC = importlib.util.spec_from_file_location(
    "fault_server", Path(__file__).parents[1] / "packages" / "gpt-weights" / "tests" / "fault_server.py")
web = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(web)

CHUNK = 1 << 20
SIZE = 4 * CHUNK + 12_345
QUICK = Timing(timeout=2.0, backoff=0.1, longest_wait=6.0, window=3.0)
SLOW: dict[str, Any] = {"piece": 1 << 16, "pause": 0.002}  # so that little is on its way when the connection breaks
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["gpt_weights.download"])  # it imports torch: four seconds, once


@dataclass(frozen=True)
class Run:
    """One download that met a fault."""

    is_right: bool
    extra: int
    seconds: float


@dataclass(frozen=True)
class Scene:
    """A file, its servers' scripts, and what happens to the client."""

    content: bytes
    servers: tuple[Any, ...]
    """A script (tuple of answers) or an address each."""

    n_clients: int = 1
    kills: tuple[float, ...] = ()
    """Shares of the file after which the client is killed."""


def right(content: bytes) -> tuple[Any, ...]:
    """Return the script of a server that works."""
    return (web.file_of(content),)


def torn(content: bytes, draw: random.Random, *, resets: bool = True) -> Any:
    """Break the connection at a random byte of what is sent."""
    return web.file_of(content, stops_at=draw.randrange(1, len(content)), resets=resets, **SLOW)


def breaking(content: bytes, draw: random.Random, *, resets: bool = True) -> Scene:
    """Break the connection one to four times."""
    breaks = [torn(content, draw, resets=resets) for _ in range(draw.randint(1, 4))]
    return Scene(content, ((*breaks, web.file_of(content)),))


def no_range(content: bytes, draw: random.Random) -> Scene:
    """Answer 200 with the whole file to the request for its rest."""
    return Scene(content, ((torn(content, draw), web.file_of(content, has_ranges=False)),))


def wrong_range(content: bytes, draw: random.Random) -> Scene:
    """Answer 206 with another range than asked."""
    wrong = {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}
    return Scene(content, ((torn(content, draw), web.file_of(content, headers=wrong), web.file_of(content)),))


def wrong_length(content: bytes, draw: random.Random) -> Scene:
    """Announce more or fewer bytes than there are; a mirror has it right."""
    length = len(content) + draw.choice([-1, 1]) * draw.randint(1, len(content) - 1)
    return Scene(content, ((web.file_of(content, headers={"Content-Length": str(length)}),), right(content)))


def coded(content: bytes, draw: random.Random) -> Scene:
    """Compress the body, though asked not to."""
    text = bytes(byte & draw.choice([1, 3, 7]) for byte in content[:CHUNK])
    body = gzip.compress(text, compresslevel=1)
    return Scene(text, ((web.body_of(body, headers={"Content-Encoding": "gzip"}),),))


def refusing(content: bytes, draw: random.Random, status: int, headers: dict[str, str] | None = None) -> Scene:
    """Refuse one to four times, with a status that passes."""
    n = draw.randint(1, 1 if headers else 4)
    return Scene(content, ((*[web.status_of(status, headers)] * n, web.file_of(content)),))


def once_then_right(content: bytes, answer: Any) -> Scene:
    """Meet the fault at the first request only."""
    return Scene(content, ((answer, web.file_of(content)),))


def then_mirror(content: bytes, first: Any) -> Scene:
    """Meet the fault at the first address always; a mirror works."""
    return Scene(content, (first, right(content)))


def crawling(content: bytes) -> Any:
    """Answer with a byte a second."""
    return web.file_of(content, piece=1, pause=1.0)


def silent(content: bytes, at: int) -> Any:
    """Send ``at`` bytes and then nothing for an hour."""
    return web.file_of(content, piece=max(at, 1), pause=3600.0)


def other(content: bytes) -> tuple[Any, ...]:
    """Return the script of a server with another file of the same length."""
    return right(content[::-1])


PAGE = web.body_of(b"<!DOCTYPE html><title>Log in</title>" + bytes(2000))
UNKNOWN = "http://files.invalid/file"
Fault = Callable[[bytes, random.Random, str], Scene]
FAULTS: dict[str, Fault] = {
    "none": lambda c, draw, tls: Scene(c, (right(c),)),
    "reset at random bytes, 1 to 4 times": lambda c, draw, tls: breaking(c, draw),
    "closed at random bytes, 1 to 4 times": lambda c, draw, tls: breaking(c, draw, resets=False),
    "reset, then 200 instead of 206": lambda c, draw, tls: no_range(c, draw),
    "reset, then another range than asked": lambda c, draw, tls: wrong_range(c, draw),
    "wrong Content-Length; mirror": lambda c, draw, tls: wrong_length(c, draw),
    "gzip-coded body": lambda c, draw, tls: coded(c, draw),
    "429 with Retry-After: 1": lambda c, draw, tls: refusing(c, draw, 429, {"Retry-After": "1"}),
    "500, 1 to 4 times": lambda c, draw, tls: refusing(c, draw, 500),
    "redirect loop; mirror": lambda c, draw, tls: then_mirror(c, (web.redirect_to("/file"),)),
    "1 B/s once": lambda c, draw, tls: once_then_right(c, crawling(c)),
    "silence from a random byte on, once": lambda c, draw, tls: once_then_right(c, silent(c, draw.randrange(len(c)))),
    "unknown host (DNS); mirror": lambda c, draw, tls: then_mirror(c, UNKNOWN),
    "unknown certificate (TLS); mirror": lambda c, draw, tls: then_mirror(c, tls),
    "login page instead of the file; mirror": lambda c, draw, tls: then_mirror(c, (PAGE,)),
    "wrong sha256; mirror": lambda c, draw, tls: then_mirror(c, other(c)),
    "two processes at once": lambda c, draw, tls: Scene(c, ((web.file_of(c, **SLOW),),), n_clients=2),
    "kill -9 at random moments, 1 to 3 times": lambda c, draw, tls: Scene(
        c, ((web.file_of(c, **SLOW),),), kills=tuple(sorted(draw.uniform(0, 1) for _ in range(draw.randint(1, 3))))),
}
IN_PROCESSES = ("two processes at once", "kill -9 at random moments, 1 to 3 times")

ENDLESS: dict[str, Callable[[bytes, str], Any]] = {
    "500": lambda c, tls: (web.status_of(500),),
    "404": lambda c, tls: (web.status_of(404),),
    "429 with Retry-After: 3600": lambda c, tls: (web.status_of(429, {"Retry-After": "3600"}),),
    "redirect loop": lambda c, tls: (web.redirect_to("/file"),),
    "1 B/s": lambda c, tls: (crawling(c),),
    "silence": lambda c, tls: (silent(c, 0),),
    "reset before the end, no ranges": lambda c, tls: (web.file_of(c, stops_at=len(c) - 1, has_ranges=False),),
    "unknown host (DNS)": lambda c, tls: UNKNOWN,
    "unknown certificate (TLS)": lambda c, tls: tls,
    "login page instead of the file": lambda c, tls: (PAGE,),
    "wrong sha256": lambda c, tls: other(c),
    "wrong Content-Length": lambda c, tls: (web.file_of(c, headers={"Content-Length": str(len(c) + 1)}),),
}


def play(fault: Fault, seed: int, tls: str) -> Run:
    """Download a file of random bytes through the fault."""
    draw = random.Random(seed)
    scene = fault(draw.randbytes(SIZE), draw, tls)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(web.FaultServer(*script)) for script in scene.servers if script != tls
                   and not isinstance(script, str)]
        ready = iter(servers)
        urls = tuple(s if isinstance(s, str) else next(ready).url() for s in scene.servers)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = RemoteFile(name="file", urls=urls, size=len(scene.content),
                          sha256=hashlib.sha256(scene.content).hexdigest())
        start = time.perf_counter()
        if scene.n_clients > 1 or scene.kills:
            in_processes(file, folder, servers[0], scene)
        with contextlib.suppress(OSError, ValueError):  # counted as not right
            fetch(file, folder, timing=QUICK)
        seconds = time.perf_counter() - start
        found = [path.name for path in folder.iterdir()]
        is_right = found == ["file"] and (folder / "file").read_bytes() == scene.content
        return Run(is_right, sum(server.sent for server in servers) - len(scene.content), seconds)


def in_processes(file: RemoteFile, folder: Path, server: Any, scene: Scene) -> None:
    """Let the clients of the scene fetch the file, and kill each after its share of the bytes."""
    for share in scene.kills or (None,):
        clients = [FORKS.Process(target=fetch, args=(file, folder)) for _ in range(scene.n_clients)]
        for client in clients:
            client.start()
        while share is not None and server.sent < share * SIZE and clients[0].is_alive():
            time.sleep(0.001)
        for client in clients:
            if share is not None:
                client.kill()
            client.join()


def give_up(fault: Callable[[bytes, str], Any], tls: str) -> tuple[float, str]:
    """Return the seconds until ``fetch`` with its default timing gives up, and the name of what it raises."""
    content = random.Random(0).randbytes(SIZE)
    script = fault(content, tls)
    with contextlib.ExitStack() as stack:
        is_script = not isinstance(script, str)
        url = stack.enter_context(web.FaultServer(*script)).url() if is_script else script
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        file = RemoteFile(name="file", urls=(url,), size=SIZE, sha256=hashlib.sha256(content).hexdigest())
        start = time.perf_counter()
        try:
            fetch(file, folder)
        except (OSError, ValueError) as error:
            return time.perf_counter() - start, type(error).__name__
    raise SystemExit("a fault without an end was survived")


@contextlib.contextmanager
def untrusted() -> Iterable[str]:
    """Yield the address of a server with a certificate of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path, key = Path(folder) / "both.pem", Path(folder) / "key.pem"
        subprocess.run([shutil.which("openssl") or "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
                        "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key),
                        "-out", str(path)], check=True, capture_output=True)
        path.write_bytes(path.read_bytes() + key.read_bytes())
        with web.FaultServer(web.status_of(404), certificate=str(path)) as server:
            yield server.url()


def as_table(results: dict[str, list[Run]], endings: dict[str, tuple[float, str]]) -> str:
    """Return the results as Markdown."""
    lines = ["# Downloads through faults", "",
             f"Python {platform.python_version()}, requests {requests.__version__}, {ssl.OPENSSL_VERSION}, "
             f"{os.cpu_count()} cores, server and client on one machine.", "",
             f"A file of {SIZE:,} bytes; waits are a tenth of the defaults. Extra: bytes that the servers sent beyond "
             "its size, also those that nobody received when a connection broke or a process was killed; a chunk is 1 "
             "MiB. More is sent where a server gives no range, another one or another content: none of that can be "
             "kept. A killed client has written all that it had received; there the extra bytes are what the server "
             "sent until it noticed.", "",
             "| fault | runs | right file | extra bytes, mean % | extra, most, chunks | seconds, median | most |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, runs in results.items():
        # A compressed body has fewer bytes than the file.
        extras = [max(0, run.extra) for run in runs]
        seconds = [run.seconds for run in runs]
        lines.append(f"| {name} | {len(runs)} | {sum(run.is_right for run in runs)} | "
                     f"{100 * statistics.mean(extras) / SIZE:.2f} | {max(extras) / CHUNK:.2f} | "
                     f"{statistics.median(seconds):.2f} | {max(seconds):.2f} |")
    if endings:
        lines += ["", "## Giving up", "",
                  "The same faults without an end, one address, the default waits (5 tries).", "",
                  "| fault | seconds | ends with |", "| --- | ---: | --- |",
                  *(f"| {name} | {seconds:.1f} | {error} |" for name, (seconds, error) in endings.items())]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[Run]], path: Path) -> None:
    """Draw the extra bytes and the seconds of each run, a row a fault."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), dpi=90, layout="constrained", sharey=True)
    for row, runs in enumerate(reversed(results.values())):
        axes[0].plot([max(0, run.extra) / CHUNK for run in runs], [row] * len(runs), "|", color="C0")
        axes[1].plot([run.seconds for run in runs], [row] * len(runs), "|", color="C1")
    axes[0].set_yticks(range(len(results)), list(results)[::-1])
    axes[0].axvline(1, color="grey", linewidth=0.5)
    axes[0].set_xlabel(f"MiB beyond the file's {SIZE / CHUNK:.0f}")
    axes[1].set_xlabel("seconds to the right file")
    figure.savefig(path)


def main() -> int:
    """Play every fault, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--no-giving-up", dest="giving_up", action="store_false", help="leave the second table out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results, endings = {}, {}
    with untrusted() as tls, ThreadPoolExecutor(len(ENDLESS)) as pool:
        if options.giving_up:
            giving_up = pool.map(lambda fault: give_up(fault, tls), ENDLESS.values())
        for name, fault in FAULTS.items():
            # Mostly waiting, so several at once; one at a time where processes share the cores.
            n_at_once = 1 if name in IN_PROCESSES else 10
            with ThreadPoolExecutor(n_at_once) as few:
                results[name] = list(few.map(lambda seed, fault=fault: play(fault, seed, tls), range(options.runs)))
            print(name, sum(run.is_right for run in results[name]), file=sys.stderr)
        if options.giving_up:
            endings = dict(zip(ENDLESS, giving_up, strict=True))
    options.out.mkdir(parents=True, exist_ok=True)
    plot(results, options.out / "downloads.png")
    (options.out / "downloads.md").write_text(as_table(results, endings), encoding="utf-8")
    print(as_table(results, endings))
    return 0 if all(run.is_right for runs in results.values() for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
