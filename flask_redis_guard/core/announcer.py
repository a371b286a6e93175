"""Telling others what happened: in order, outside any lock, each mishap contained."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from flask_redis_guard.core.process import ProcessLock

logger = logging.getLogger("flask_redis_guard")

T = TypeVar("T")


class Announcer(Generic[T]):
    """Hand items to a callback one at a time, in the order in which they were added.

    Whoever finds items waiting delivers them, unless somebody is at it already: then that one
    goes on until none is left. So a callback may itself cause further items.

    :param callback: receives each item; what it raises is logged and changes nothing.
    """

    def __init__(self, callback: Callable[[T], object]) -> None:
        self._callback = callback
        self._waiting: deque[T] = deque()
        self._lock = ProcessLock()
        self._busy_pid: int | None = None  # a pid: a fork meanwhile must not silence the child

    def add(self, item: T) -> None:
        """Queue an item; allowed under a caller's lock."""
        self._waiting.append(item)

    def deliver(self) -> None:
        """Deliver what waits; to be called after the caller's lock was released."""
        interruption: BaseException | None = None
        while self._waiting:
            with self._lock:
                if self._busy_pid == os.getpid():
                    break
                self._busy_pid = os.getpid()
            try:
                while self._waiting:
                    interruption = self._deliver_one() or interruption
            finally:
                self._busy_pid = None
        if interruption is not None:
            raise interruption

    def _deliver_one(self) -> BaseException | None:
        try:
            self._callback(self._waiting.popleft())
        except Exception:
            logger.exception("A receiver of a circuit breaker transition failed")
        except BaseException as exc:  # noqa: BLE001 - a killed greenlet: the rest must be told
            return exc
        return None
