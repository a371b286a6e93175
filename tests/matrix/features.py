"""The features under load, and what has to hold of each, whatever the fault."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import websocket

from tests.matrix.site import LIMIT, TOOK

#: Statuses of an answer that was no refusal, and of one that was.
SERVED, REFUSED = frozenset({101, 200, 204, 429}), frozenset({503, 1013})

#: Seconds that an operation may wait.
TIMEOUT = 0.5

#: Seconds that a client waits for an answer.
PATIENCE = 15.0


@dataclass
class Answer:
    """One request.

    :param at: when it was sent, on the monotonic clock.
    :param status: of the response, or the close code of a WebSocket; 0 where there was none.
    :param took: seconds that the app took, or where it did not say the client waited.
    :param text: the body.
    :param cookie: the session's, if it was set.
    """

    at: float
    status: int
    took: float
    text: str = ""
    cookie: str | None = None

    @property
    def ended(self) -> float:
        """When the answer was there, as far as it was the app's time."""
        return self.at + self.took


def ask(port: int, method: str, path: str, *, cookie: str | None = None, **headers: str) -> Answer:
    """Send one request over a connection of its own."""
    if cookie is not None:
        headers["Cookie"] = f"session={cookie}"
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    answer = Answer(began, 0, 0.0)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        answer.text = response.read().decode(errors="replace")
        answer.status = response.status
        answer.cookie = _session_of(response.headers.get_all("Set-Cookie") or ())
        answer.took = float(response.headers.get(TOOK, 0)) / 1000
    except (OSError, http.client.HTTPException) as error:
        answer.text = repr(error)
    connection.close()
    answer.took = answer.took or time.monotonic() - began
    return answer


def _session_of(cookies: Iterable[str]) -> str | None:
    for cookie in cookies:
        name, _, value = cookie.partition(";")[0].partition("=")
        if name == "session":
            return value
    return None


@dataclass
class Feature:
    """One column of the matrix: how it is asked, and what was answered.

    :param port: where the app listens.
    """

    port: int
    #: The column's name; how many operations one request may wait for; requests a second.
    name = ""
    operations = 1
    rate = 10.0
    answers: list[Answer] = field(default_factory=list)
    #: What must not happen, and how often it did.
    broken: Counter[str] = field(default_factory=Counter)

    def prepare(self) -> None:
        """Do what has to be done while all is well."""

    def turn(self, number: int) -> Answer:
        """Send one request."""
        raise NotImplementedError

    def verify(self, reader: Any) -> None:
        """Check, when all is well again, what was acknowledged.

        :param reader: a plain client of the servers.
        """

    def close(self) -> None:
        """Let go of what is kept."""

    @property
    def budget(self) -> float:
        """Seconds that an answer may wait for Redis."""
        return self.operations * TIMEOUT


class Stored(Feature):
    """Writes of the app's own; an acknowledged one is there afterwards."""

    path = ""
    keys: tuple[str, ...] = ()

    def turn(self, number: int) -> Answer:
        answer = ask(self.port, "GET", f"/{self.path}/{number}")
        answer.text = str(number)
        return answer

    def verify(self, reader: Any) -> None:
        for answer in self.answers:
            if answer.status == 200:
                kept = [reader.exists(key.format(answer.text)) for key in self.keys]
                self.broken["acknowledged write lost"] += not all(kept)


class ClientCall(Stored):
    name, path, keys = "client call", "client", ("app:client:{}",)


class Pipeline(Stored):
    name, path, keys = "pipeline", "pipeline", ("app:{{{}}}:one", "app:{{{}}}:two")


class Limited(Feature):
    """A limit: a new subject is admitted, and none is more often than its limit allows."""

    kind = ""
    #: Of each subject that is asked for again and again, how often it was admitted.
    admitted: Counter[str]

    def prepare(self) -> None:
        self.admitted = Counter()

    def send(self, who: str, ok: bool) -> Answer:
        """Send one request of a subject.

        :param ok: whether its charge is given back, where that is what is tested.
        """
        return ask(self.port, "GET", f"/limit/{self.kind}?who={who}")

    def turn(self, number: int) -> Answer:
        if number % 2:
            return self._again(f"again{number // 20}", ok=number % 4 == 3)
        answer = self.send(f"new{number}", ok=True)
        self.broken["429 below the limit"] += answer.status == 429
        return answer

    def _again(self, who: str, *, ok: bool) -> Answer:
        answer = self.send(who, ok)
        self.admitted[who] += answer.status in (101, 200)
        return answer

    def verify(self, reader: Any) -> None:
        for who in list(self.admitted):
            for _ in range(LIMIT + 1):
                self._again(who, ok=False)
        self.broken["admitted above the limit"] += sum(
            max(0, count - LIMIT) for count in self.admitted.values()
        )


class RouteLimit(Limited):
    name, kind = "limit, route", "route"


class DeferredLimit(Limited):
    name, kind = "limit, deferred", "deferred"


class AppLimit(Limited):
    name = "limit, app"

    def send(self, who: str, ok: bool) -> Answer:
        return ask(self.port, "GET", "/limit/app", **{"X-Subject": who})


class RefundedLimit(Limited):
    name, kind, operations = "limit, refund", "refund", 2

    def send(self, who: str, ok: bool) -> Answer:
        return ask(self.port, "GET", f"/limit/refund?who={who}" + "&ok" * ok)


class SessionRead(Feature):
    """Everybody sees their own session or a refusal, never another's and never none."""

    name = "session read"

    def prepare(self) -> None:
        self.cookies = [self.log_in(f"reader{n}") for n in range(4)]

    def log_in(self, user: str) -> str:
        answer = ask(self.port, "POST", f"/session/login/{user}")
        assert answer.status == 200, answer
        assert answer.cookie is not None
        return answer.cookie

    def turn(self, number: int) -> Answer:
        which = number % 4
        answer = ask(self.port, "GET", "/session/read", cookie=self.cookies[which])
        if answer.status == 200 and answer.text != f"reader{which}":
            self.broken["another session" if answer.text != "nobody" else "anonymous"] += 1
        return answer


class SessionWrite(SessionRead):
    """What is said to be saved is there afterwards."""

    name, operations = "session write", 2

    def prepare(self) -> None:
        self.cookies = [self.log_in(f"writer{n}") for n in range(2)]
        self.saved: set[tuple[int, str]] = set()

    def turn(self, number: int) -> Answer:
        which, name = number % 2, f"n{number % 300}"  # however long it goes on
        cookie = self.cookies[which]
        answer = ask(self.port, "POST", f"/session/write/{name}", cookie=cookie)
        if answer.cookie is not None:
            self.cookies[which] = answer.cookie
        if answer.status == 200:
            self.saved.add((which, name))
        return answer

    def verify(self, reader: Any) -> None:
        kept = [
            json.loads(ask(self.port, "GET", "/session/all", cookie=cookie).text)
            for cookie in self.cookies
        ]
        self.broken["acknowledged write lost"] += sum(
            name not in kept[which] for which, name in self.saved
        )


class Logout(SessionRead):
    """A session that was ended has ended."""

    name, operations, rate = "logout", 2, 5.0

    def prepare(self) -> None:
        self.waiting = [self.log_in(f"leaver{n}") for n in range(60)]
        self.gone: set[str] = set()

    def turn(self, number: int) -> Answer:
        cookie = self.waiting[number % len(self.waiting)]
        answer = ask(self.port, "POST", "/session/logout", cookie=cookie)
        if answer.status == 200:
            self.gone.add(cookie)
        return answer

    def verify(self, reader: Any) -> None:
        for cookie in self.gone:
            answer = ask(self.port, "GET", "/session/read", cookie=cookie)
            self.broken["ended session lives"] += answer.text != "nobody"


class SocketConnect(Limited):
    """Connections are admitted or refused with a status, and none above the limit."""

    name, operations, rate = "WebSocket, connect", 2, 6.0

    def send(self, who: str, ok: bool) -> Answer:
        return connect(self.port, "few", who)[0]


class SocketMessage(Feature):
    """Messages are echoed, or the connection is closed with a code that says why."""

    name, operations = "WebSocket, message", 2

    def prepare(self) -> None:
        self.open: dict[int, Any] = {}

    def turn(self, number: int) -> Answer:
        lane = number % 2
        if lane not in self.open:
            answer, ws = connect(self.port, "socket", f"lane{lane}")
            if ws is not None:
                self.open[lane] = ws
            return answer
        ws, began = self.open[lane], time.monotonic()
        try:
            ws.send(str(number))
            code, data = ws.recv_data()
        except (OSError, websocket.WebSocketException):
            code, data = websocket.ABNF.OPCODE_CLOSE, b"\x03\xee"  # 1006: no close frame
        took = time.monotonic() - began
        if code == websocket.ABNF.OPCODE_CLOSE:
            self.open.pop(lane).shutdown()
            return Answer(began, int.from_bytes(data[:2], "big"), took)
        self.broken["another's message"] += data != str(number).encode()
        return Answer(began, 200, took)

    def close(self) -> None:
        for ws in self.open.values():
            ws.close()
        self.open.clear()


def connect(port: int, path: str, who: str) -> tuple[Answer, Any]:
    """Open a WebSocket; its caller closes it."""
    began, ws = time.monotonic(), None
    try:
        address = f"ws://127.0.0.1:{port}/{path}?who={quote(who)}"
        ws = websocket.create_connection(address, timeout=PATIENCE)
        status = 101
    except websocket.WebSocketBadStatusException as error:
        status = error.status_code
    except (OSError, websocket.WebSocketException):
        status = 0
    answer = Answer(began, status, time.monotonic() - began)
    if ws is not None and path == "few":
        ws.close()
        ws = None
    return answer, ws


class Health(Feature):
    """Health answers, whatever is wrong; that a process can serve is never denied."""

    name, rate = "health", 6.0

    def turn(self, number: int) -> Answer:
        path = "ready" if number % 2 else "detailed"
        answer = ask(self.port, "GET", f"/api/v1/health/{path}")
        self.broken["not ready"] += path == "ready" and answer.status != 200
        return answer

    def verify(self, reader: Any) -> None:
        told = ask(self.port, "GET", "/api/v1/health/detailed").text
        self.broken["unhealthy afterwards"] += json.loads(told)["status"] != "pass"


FEATURES: tuple[type[Feature], ...] = (
    ClientCall,
    Pipeline,
    RouteLimit,
    AppLimit,
    DeferredLimit,
    RefundedLimit,
    SessionRead,
    SessionWrite,
    Logout,
    SocketConnect,
    SocketMessage,
    Health,
)

#: A worker that serves one request at a time would serve nobody else beside a WebSocket.
SOCKETS = (SocketConnect, SocketMessage)


class Load:
    """A steady load on all features at once while the block runs.

    :param features: what is asked, each in two threads.
    """

    def __init__(self, features: Iterable[Feature]) -> None:
        self._features = list(features)
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(feature, lane), daemon=True)
            for feature in self._features
            for lane in range(2)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _work(self, feature: Feature, lane: int) -> None:
        begun, pause = time.monotonic(), 2 / feature.rate
        for turn in itertools.count():
            due = begun + (turn + lane / 2) * pause
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return
            feature.answers.append(feature.turn(2 * turn + lane))
