"""A stopwatch that counts training only, not evaluation and saving."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts seconds while it runs."""

    def __init__(self) -> None:
        self.paused_seconds = 0.0  # in `paused` blocks
        self.reset()

    def reset(self, seconds: float = 0.0) -> None:
        """Stops at `seconds`, the count of an interrupted run."""
        self._counted = self._lap = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._counted + (0.0 if self._since is None else time.perf_counter() - self._since)

    def lap(self) -> float:
        """Seconds counted since the last call."""
        last, self._lap = self._lap, self.seconds
        return self._lap - last

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        self._counted, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside the block if it was running."""
        was_running, start = self._since is not None, time.perf_counter()
        self.stop()
        try:
            yield
        finally:
            self.paused_seconds += time.perf_counter() - start
            if was_running:
                self.start()
