"""Threads that write without end, and what became of each write."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from flask_redis_guard import RedisUnavailable


class Writers:
    """Write keys of their own without end while the block runs.

    :param client: the guarded client.
    :param prefixes: of the keys, one thread for each.
    """

    def __init__(self, client: Any, prefixes: Sequence[str] = ("a", "b", "c", "d")) -> None:
        self._client = client
        self._ended = threading.Event()
        self.acknowledged: list[str] = []
        #: When each prefix was last written, on the monotonic clock.
        self.written_at = dict.fromkeys(prefixes, 0.0)
        #: When, which prefix, and the reason.
        self.refused: list[tuple[float, str, str]] = []
        self._threads = [threading.Thread(target=self._write, args=(p,)) for p in prefixes]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _write(self, prefix: str) -> None:
        count = 0
        while not self._ended.wait(0.002):
            count += 1
            key = f"{prefix}:{count}"
            try:
                self._client.set(key, "1")
            except RedisUnavailable as error:
                self.refused.append((time.monotonic(), prefix, error.reason))
            else:
                self.written_at[prefix] = time.monotonic()
                self.acknowledged.append(key)

    @property
    def reasons(self) -> set[str]:
        """Why writes were refused."""
        return {reason for _, _, reason in self.refused}

    def all_written_since(self, moment: float) -> bool:
        """Whether each prefix was written after a moment."""
        return all(at > moment for at in self.written_at.values())

    def refused_since(self, moment: float) -> float:
        """Seconds from a moment to the last refusal after it; 0 where there was none."""
        return max((at - moment for at, _, _ in self.refused if at > moment), default=0.0)
