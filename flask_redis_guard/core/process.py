"""A lock that is right after a fork and after ``monkey.patch_all()``."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class ProcessLock:
    """A mutex made on first use, and anew in every process and once gevent has patched threads.

    After a fork another thread of the parent may have left the old one locked; a lock made before
    ``monkey.patch_all()`` would stop all greenlets at once. Hold it for a few lines of pure code
    only, never across I/O or a foreign callback.
    """

    def __init__(self) -> None:
        self._locks: dict[object, threading.Lock] = {}

    def __enter__(self) -> None:
        # dict.setdefault is atomic: two threads that come first together agree on one lock.
        key = (os.getpid(), threading.Lock)
        lock = self._locks.get(key) or self._locks.setdefault(key, threading.Lock())
        lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._locks[(os.getpid(), threading.Lock)].release()
