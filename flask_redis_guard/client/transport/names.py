"""Names to addresses, without waiting for a resolver longer than an operation may.

``getaddrinfo`` knows no timeout: a resolver that hangs keeps its caller for as long as the system's
configuration says, under gevent in one of few threads that all greenlets share.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from flask_redis_guard.client.operation import Operation

#: Seconds for which an answer is used without asking again; all callers of a moment share one.
FRESH = 1.0


class _LookUp:
    """One question to the resolver, in a thread of its own, and those who wait for its answer.

    :param question: host, port and address family.
    :param known: where a good answer is put, also if nobody waits for it any more.
    """

    def __init__(self, question: tuple[str, int, int], known: dict[Any, Any]) -> None:
        self.answer: list[Any] | None = None
        self.error: OSError | None = None
        self.done = threading.Event()
        self.began = monotonic()
        self._question, self._known = question, known

    def start(self, finished: Callable[[], object]) -> None:
        """Ask.

        :param finished: called when the answer is there, or there will be none.
        :raises OSError: if there can be no thread.
        """

        def ask() -> None:
            try:
                self._ask()
            finally:
                finished()
                self.done.set()

        try:
            threading.Thread(target=ask, name="redis-guard-resolver", daemon=True).start()
        except BaseException as exc:
            finished()
            self.error = OSError("nobody can ask the resolver")
            self.done.set()
            if not isinstance(exc, RuntimeError):
                raise

    def _ask(self) -> None:
        host, port, family = self._question
        try:
            self.answer = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            self._known[self._question] = monotonic(), self.answer
        except OSError as exc:
            self.error = exc
        except UnicodeError as exc:  # no host can have that name
            self.error = OSError(f"a name that cannot be looked up: {exc}")


class Names:
    """Look up names, each by one look-up at a time, and remember the last good answer."""

    def __init__(self) -> None:
        # By process, and whether gevent has patched threads: another one's threads do not run.
        self._under_way: dict[tuple[object, ...], _LookUp] = {}
        self._known: dict[tuple[str, int, int], tuple[float, list[Any]]] = {}

    def addresses(self, host: str, port: int, family: int, operation: Operation) -> list[Any]:
        """Return what :func:`socket.getaddrinfo` tells.

        While the resolver does not answer, the last good answer is used.

        :param host: a name or an address.
        :param port: the port.
        :param family: the address family, 0 for any.
        :param operation: whose time bounds the wait.
        :raises TimeoutError: if there is no answer before the operation's time is used up.
        :raises OSError: if the answer is that there is no such name.
        """
        numeric = _numeric(host, port, family)
        if numeric:
            return numeric
        question = (host, port, family)
        known = self._known.get(question)
        if known is not None and monotonic() - known[0] < FRESH:
            return known[1]
        look_up = self._look_up(question)
        if known is None:
            answered = operation.wait(look_up.done.wait)
        else:
            answered = look_up.done.wait(self._patience(look_up, operation))
        if look_up.answer is not None:
            return look_up.answer
        temporary = isinstance(look_up.error, socket.gaierror) and look_up.error.errno in (
            socket.EAI_AGAIN,
            socket.EAI_FAIL,
        )
        if known is not None and (not answered or temporary):
            return known[1]
        if look_up.error is not None:
            raise look_up.error
        raise TimeoutError("the name was not resolved in time")

    def _look_up(self, question: tuple[str, int, int]) -> _LookUp:
        key = (os.getpid(), threading.Thread, *question)
        mine = _LookUp(question, self._known)
        look_up = self._under_way.setdefault(key, mine)
        if look_up is mine:
            mine.start(lambda: self._under_way.pop(key, None))
        return look_up

    @staticmethod
    def _patience(look_up: _LookUp, operation: Operation) -> float:
        """Return how long to wait where there is an answer to fall back on."""
        return max(0.0, look_up.began + operation.next_part() - monotonic())


def _numeric(host: str, port: int, family: int) -> list[Any]:
    """Return the address that a host already is, without asking; none for a name."""
    for kind, place in ((socket.AF_INET, (port,)), (socket.AF_INET6, (port, 0, 0))):
        if family in (0, kind):
            try:
                socket.inet_pton(kind, host)
            except (OSError, ValueError):
                continue
            return [(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, *place))]
    return []


NAMES = Names()
