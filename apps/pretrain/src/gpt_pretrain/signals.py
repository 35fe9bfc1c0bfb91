"""Ctrl-C and SIGTERM: the first asks the training loop to stop at its next step, the second stops at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """The command was told to stop; ``exit_code`` is the shell's convention, 128 + the signal's number.

    ``saved``: the step after which all was saved, where a training loop stopped by itself.
    """

    def __init__(self, number: int, *, saved: int | None = None) -> None:
        done = "" if saved is None else f" and saved after step {saved:,}"
        super().__init__(f"stopped by {signal.Signals(number).name}{done}")
        self.exit_code = 128 + number


class StopSignals:
    """While entered, remembers the first signal if someone waits for it, else raises ``Interrupted``.

    Set ``wait_for_step`` where a loop looks at ``received`` after each step; outside such a loop there is
    nothing to save, so the first signal ends the command as the second would.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.wait_for_step = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.wait_for_step or self.received is not None:
            raise Interrupted(number)
        self.received = number
