"""Requests to an app in this process, each in a thread that is given up after a while."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Flask, got_request_exception
from flask.testing import FlaskClient

from flask_redis_guard.testing.examples import Example
from flask_redis_guard.testing.findings import Cause, cause_of, cause_of_hang

#: How many requests are under way at once.
_AT_ONCE: Final = 24


class Attempt(threading.Thread):
    """One request.

    :param app: the app.
    :param example: what to ask.
    :param client: asks it; cookies are its own.
    :param address: the client's address, as the app sees it.
    :param base_url: scheme and host that the app sees.
    :param patience: seconds after which it is given up.
    :param times: how often to ask, one after the other, as long as it is served.
    """

    def __init__(
        self,
        app: Flask,
        example: Example,
        client: FlaskClient,
        address: str,
        *,
        base_url: str | None,
        patience: float,
        times: int = 1,
    ) -> None:
        super().__init__(name="redis-guard-audit", daemon=True)
        self._app = app
        self.example = example
        self._client = client
        self._arguments = {**example.arguments(), "environ_overrides": {"REMOTE_ADDR": address}}
        if base_url is not None:
            self._arguments["base_url"] = base_url
        self._patience = patience
        self.times = times
        #: How often it was served.
        self.served = 0
        self._began = 0.0
        self._done: queue.SimpleQueue[Attempt] | None = None
        self._errors: list[BaseException] = []
        self.status: int | None = None
        #: The path to which a response leads on.
        self.leads_to = ""
        #: Seconds until the response, or until it was given up.
        self.seconds = 0.0
        #: Where it waits, if it was given up.
        self.waits: Cause | None = None

    @property
    def hangs(self) -> bool:
        """Whether it was given up."""
        return self.waits is not None

    @property
    def cause(self) -> Cause | None:
        """Where an error came from, or where it waits."""
        if self.waits is not None:
            return self.waits
        return cause_of(self._errors[0], self._app.root_path) if self._errors else None

    def run(self) -> None:
        """Ask, and read the response as far as it comes."""
        _running.call = self
        try:
            for _ in range(self.times):
                response = self._client.open(**self._arguments, buffered=False)
                try:
                    self._read(response)
                finally:
                    response.close()
                self.status = response.status_code
                self.leads_to = urlsplit(response.headers.get("Location", "")).path
                if self.status >= 400 or self.hangs:
                    break
                self.served += 1
        except BaseException as exc:  # noqa: BLE001 - no answer: sys.exit(), gevent.Timeout
            self._errors.append(exc)
            self.status = 500
        finally:
            self.seconds = time.monotonic() - self._began
            if self._done is not None:
                self._done.put(self)

    def _read(self, response: Any) -> None:
        for _ in response.iter_encoded():
            if time.monotonic() - self._began > self._patience / 2:
                return  # a stream without an end, which goes on

    def note(self, error: BaseException) -> None:
        """Note what the app raised in this request."""
        self._errors.append(error)

    def begin(self, done: queue.SimpleQueue[Attempt]) -> None:
        """Ask in a thread of its own.

        :param done: told when it is over.
        """
        self._done, self._began = done, time.monotonic()
        self.start()

    @property
    def left(self) -> float:
        """Seconds until it is given up."""
        return self._began + self._patience - time.monotonic()

    def give_up(self) -> None:
        """Wait for it no longer."""
        frame = sys._current_frames().get(self.ident or 0)
        self.waits = cause_of_hang(frame, self._app.root_path)
        self.seconds = time.monotonic() - self._began


_running = threading.local()


def run_all(calls: list[Attempt]) -> Iterator[Attempt]:
    """Make requests, several at once; give each when it is over or given up.

    :param calls: the requests.
    """
    done: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
    waiting, active = list(reversed(calls)), set[Attempt]()
    while waiting or active:
        while waiting and len(active) < _AT_ONCE:
            call = waiting.pop()
            active.add(call)
            call.begin(done)
        try:
            finished = done.get(timeout=max(0.0, min(call.left for call in active)))
        except queue.Empty:
            for call in [call for call in active if call.left <= 0]:
                active.remove(call)
                call.give_up()
                yield call
        else:
            if finished in active:  # else it was given up before
                active.remove(finished)
                yield finished


@contextlib.contextmanager
def as_served(app: Flask) -> Iterator[None]:
    """Have an app answer as it does under a server: errors are 500s, not exceptions.

    :param app: the app.
    """
    before = app.config.get("PROPAGATE_EXCEPTIONS")
    app.config["PROPAGATE_EXCEPTIONS"] = False

    def note(_: Any, exception: BaseException, **__: Any) -> None:
        call = getattr(_running, "call", None)
        if call is not None:
            call.note(exception)

    try:
        with got_request_exception.connected_to(note, app):
            yield
    finally:
        app.config["PROPAGATE_EXCEPTIONS"] = before
