"""`gpt-spam serve`: a JSON endpoint and a page to paste texts into."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from gpt_spam import server
from gpt_spam.device import Device
from gpt_spam.messages import SYNTHETIC
from gpt_spam.run_folder import open_classifier, source_of
from gpt_spam.synthetic import SYNTHETIC_NOTE
from gpt_spam.terminal import say


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer over HTTP, with a page to paste texts into, until Ctrl-C."""

    run: tyro.conf.Positional[Path]
    """A folder that `gpt-spam train` made, or a classifier's checkpoint directory."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond this machine's own a token is asked for: set GPT_SPAM_TOKEN to it."""

    port: int = 8000
    """Port to listen on; 0 takes a free one."""

    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""


def run(settings: Serve) -> int:
    """Serve until a signal, and return the exit code."""
    classifier = open_classifier(settings.run, device=settings.device)
    if source_of(settings.run) == SYNTHETIC:
        say(SYNTHETIC_NOTE)
    server.serve(
        classifier, name=settings.run.resolve().name, host=settings.host, port=settings.port,
        token=os.environ.get("GPT_SPAM_TOKEN") or None,
        on_ready=lambda url: say(f"the page is at {url} (Ctrl-C ends)"),
    )
    return 0
