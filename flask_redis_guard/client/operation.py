"""One user-visible operation: its permit, its one deadline, and whose it is."""

from __future__ import annotations

import sys
import threading
import time
from contextvars import ContextVar
from typing import Any

from flask_redis_guard.core.breaker import Permit

INFINITE = float("inf")

_current: ContextVar[Operation | None] = ContextVar("redis_guard_operation", default=None)


def _whoami() -> Any:
    """Return what identifies the running greenlet or thread.

    A context variable is inherited by a greenlet or a thread that copies its parent's context
    (``gevent.spawn``, ``asyncio.to_thread``), so the variable alone does not tell whose it is.
    """
    greenlet = sys.modules.get("greenlet")
    return threading.get_ident() if greenlet is None else greenlet.getcurrent()


class Operation:
    """What the guard knows of a call in progress; every layer below finds it by :func:`current`.

    :param name: the command's name, for errors and metrics.
    :param timeout: seconds for all its waiting together.
    :param permit: the breaker's permit; ``None`` when the in-memory store serves it.
    """

    __slots__ = (
        "deadline",
        "in_memory",
        "name",
        "owner",
        "patience",
        "permit",
        "settled",
        "started",
    )

    def __init__(self, name: str, timeout: float, permit: Permit | None) -> None:
        self.name = name
        self.permit = permit
        #: Whether the development store serves this operation instead of Redis.
        self.in_memory = permit is None
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        #: Seconds by which a blocking command that was sent may exceed the deadline.
        self.patience = 0.0
        #: Whether the breaker has been told how it ended; an operation has one outcome.
        self.settled = False
        self.owner = _whoami()

    def remaining(self) -> float:
        """Return the seconds left; negative when the deadline has passed."""
        return self.deadline + self.patience - time.monotonic()

    def __enter__(self) -> Operation:
        _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.set(None)


def current() -> Operation | None:
    """Return the operation that the running thread or greenlet is in, if any."""
    operation = _current.get()
    if operation is None or operation.owner != _whoami():
        return None
    return operation
