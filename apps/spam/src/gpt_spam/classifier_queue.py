"""One thread that runs the classifier, and the requests that wait for it in a queue of fixed length.

A model computes with all cores already: two requests at once would take as long and twice the memory.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request

from gpt_spam.guard import RequestError

_logger = logging.getLogger(__name__)


class Prediction(Protocol):
    """What a classifier says of one text; ``probabilities`` has one entry a label and sums to 1."""

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def probabilities(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def n_tokens(self) -> int: ...  # noqa: D102
    @property
    def is_truncated(self) -> bool: ...  # noqa: D102


class SupportsClassify(Protocol):
    """The least that the server needs of a classifier."""

    @property
    def labels(self) -> tuple[str, ...]: ...  # noqa: D102

    def classify(self, texts: Sequence[str], /) -> Sequence[Prediction]:
        """Return one prediction for each text; the texts are never empty. It is called by one thread at a time."""
        ...


class ClassifierQueue:
    """One thread that runs the classifier, and the requests that wait for it."""

    def __init__(self, classifier: SupportsClassify, *, max_waiting: int) -> None:
        self._classifier = classifier
        self._max_waiting = max_waiting
        self._places = threading.BoundedSemaphore(max_waiting + 1)
        self._executor: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def open(self, app: object) -> AsyncIterator[None]:
        """Keep the thread while the application runs; what still waits at its end is dropped."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="classifier")
        try:
            yield
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def classify(self, texts: list[str], request: Request) -> list[dict[str, Any]]:
        """Return the results, one a text.

        Raises RequestError: 429 if too many wait, 500 if the classifier fails. If the client goes away before its
        turn, its place is given up.
        """
        assert self._executor is not None, "the application runs inside its lifespan"
        if not self._places.acquire(blocking=False):
            message = f"{self._max_waiting} requests wait already; try again in a second"
            raise RequestError(429, message, headers={"Retry-After": "1"})
        work = self._executor.submit(self._results, texts)
        work.add_done_callback(self._give_place_back)
        answer = asyncio.wrap_future(work)
        departure = asyncio.ensure_future(_departure(request))
        either: set[asyncio.Future[Any]] = {answer, departure}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        except (ClientDisconnect, asyncio.CancelledError):
            answer.cancel()
            raise
        except Exception as error:
            # Escaped: what the classifier says may quote the message, and a terminal obeys control characters.
            _logger.error("the classifier failed: %s", ascii(error).encode("unicode_escape").decode("ascii"))
            raise RequestError(500, "the classifier failed; the server's log says how") from error
        finally:
            departure.cancel()

    def _results(self, texts: list[str]) -> list[dict[str, Any]]:
        predictions = self._classifier.classify(texts)
        return [
            {
                "label": prediction.label,
                "probability": prediction.probabilities[prediction.label],
                "probabilities": dict(prediction.probabilities),
                "n_tokens": prediction.n_tokens,
                "truncated": prediction.is_truncated,
            }
            for _, prediction in zip(texts, predictions, strict=True)
        ]

    def _give_place_back(self, work: Future[list[dict[str, Any]]]) -> None:
        self._places.release()


async def _departure(request: Request) -> None:
    """Return when the client has gone, or has its answer; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
