"""The server with a classifier that looks for words, for the tests to talk to: a process of its own.

Its classifier calls "spam" what holds the word, sleeps for messages like "sleep 0.5", fails for "explode", and says
that a message above 50 characters is truncated. Flags set the limits of time in seconds.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_spam import deadlines, request_body
from gpt_spam.server import serve


@dataclass(frozen=True)
class KeywordPrediction:
    label: str
    probabilities: dict[str, float]
    n_tokens: int
    is_truncated: bool


class KeywordClassifier:
    labels = ("ham", "spam")

    def classify(self, texts: Sequence[str]) -> list[KeywordPrediction]:
        return [self._classify(text) for text in texts]

    def _classify(self, text: str) -> KeywordPrediction:
        words = text.lower().split()
        if words[0] == "sleep":
            time.sleep(float(words[1]))
        if words[0] == "explode":
            raise RuntimeError(f"no answer to {text}")
        spam = 0.98 if "spam" in words else 0.25 if "prize" in words else 0.0004
        label = "spam" if spam > 0.5 else "ham"
        return KeywordPrediction(label, {"ham": 1 - spam, "spam": spam}, len(words), len(text) > 50)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--token")
    parser.add_argument("--connection-seconds", type=float, default=10)
    parser.add_argument("--body-seconds", type=float, default=10)
    flags = parser.parse_args()
    deadlines.CONNECTION_SECONDS = flags.connection_seconds
    request_body.BODY_SECONDS = flags.body_seconds
    serve(
        KeywordClassifier(),
        name="keyword",
        host=flags.host,
        port=0,
        token=flags.token,
        on_ready=lambda url: print(url, flush=True),
    )
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
