"""An application with limited WebSockets, the servers that run it, and clients for it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from types import TracebackType
from typing import Any, TypeVar

import requests
import websocket

from tests.support.apps import GunicornApp, _environment
from tests.support.ports import PortLease
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

T = TypeVar("T")

UNAVAILABLE = "Rate limiting service temporarily unavailable"

#: Both libraries in one app. Who is counted stands in the query, so that tests do not meet.
APP = """
import gc, os, sys, threading
from flask import Flask, current_app, request
from flask_sock import Sock
from flask_socketio import SocketIO, emit
from flask_redis_guard import RedisGuard, websocket_limited
from flask_redis_guard.contrib.socketio import SocketIOLimits

app = Flask(__name__)
app.config["SECRET_KEY"] = "for the tests"
guard = RedisGuard(app)
sock = Sock(app)
# Engine.IO has a thread for each connection that ends with the ping after its end.
socketio = SocketIO(app, async_mode="threading", ping_interval=0.25)
baseline = None


def user():
    return request.args["user"]


@app.get("/")
def state():
    # What serves requests stays; all else has to go with its connection.
    names = [t.name for t in threading.enumerate()]
    keep = "MainThread", "ThreadPoolExecutor", "redis-guard-monitor", "redis-guard-engine", "Dummy"
    gevent = sys.modules.get("gevent")
    greenlets = [] if gevent is None else [
        repr(o) for o in gc.get_objects() if isinstance(o, gevent.Greenlet) and not o.dead]
    return {
        "pid": os.getpid(),
        "threads": sorted(n for n in names if not n.startswith(keep)),
        "greenlets": len(greenlets),
        "places": len(current_app.extensions["redis_guard"].places),
        "memory": int(open("/proc/self/statm").read().split()[1]) * 4096,
    }


@sock.route("/few")
@websocket_limited(connections="150/minute", concurrent=5, key=user, lease=4)
def few(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/one")
@websocket_limited(concurrent=1, messages="10000/minute", key=user)
def one(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/chat")
@websocket_limited(messages="60/minute", max_message_size=1024, key=user)
def chat(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/guarded")
@websocket_limited(concurrent=50, messages="10000/minute", key=user, lease=2)
def guarded(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/sized")
@websocket_limited(concurrent=40, max_message_size=1024, key=user)
def sized(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/large")
@websocket_limited(concurrent=5, key=user)
def large(ws):
    ws.send("x" * 5_000_000)
    ws.send("end")


busy = threading.Event()


@sock.route("/busy")
@websocket_limited(concurrent=5, max_message_size=1024, key=user)
def is_busy(ws):
    ws.receive()
    busy.wait(60)
    count = 1
    while ws.receive() != "end":
        count += 1
    ws.send(str(count))


@app.get("/busy/end")
def end_of_work():
    busy.set()
    return "", 204


def limited(namespace, **options):
    limits = SocketIOLimits(key=user, **options)

    @socketio.on("connect", namespace=namespace)
    @limits.connect
    def connect():
        pass

    @socketio.on("say", namespace=namespace)
    @limits.message
    def say(text):
        emit("said", text)


limited("/few", connections="150/minute", concurrent=5, lease=4)
limited("/one", concurrent=1, messages="10000/minute")
limited("/chat", messages="60/minute", max_message_size=1024)
limited("/guarded", concurrent=50, messages="10000/minute", lease=2)
limited("/sized", concurrent=40, max_message_size=1024)
"""

PYWSGI = """
from gevent import monkey; monkey.patch_all()
import sys
from gevent.pywsgi import WSGIServer
{app}
WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None).serve_forever()
"""


class PywsgiApp:
    """The app under gevent's own server, in a process of its own.

    :param app: source of a module that defines ``app``.
    :param env: added to the environment.
    """

    def __init__(self, app: str, *, env: Mapping[str, str] | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="pywsgi-")
        self._source = PYWSGI.format(app=app)
        self._env = _environment(env)
        self._lease = PortLease()
        self.port = self._lease.port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str = "/", *, timeout: float = 10.0) -> requests.Response:
        """GET a path."""
        return requests.get(self.url + path, timeout=timeout)

    def __enter__(self) -> PywsgiApp:
        script = Path(self._directory.name, "script.py")
        script.write_text(self._source)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.port)],
            stdin=subprocess.DEVNULL,
            env=self._env,
            start_new_session=True,
        )
        try:
            eventually(self._answers, 30, "pywsgi answers")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
        self._lease.release()
        self._directory.cleanup()

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "pywsgi ended"
        with contextlib.suppress(requests.ConnectionError):
            return self.get().status_code == 200
        return False


def serve(kind: str, redis_url: str, **env: str) -> GunicornApp | PywsgiApp:
    """Run :data:`APP` under ``pywsgi``, ``gevent`` or ``gthread`` of gunicorn, as a context."""
    settings = {"REDIS_URL": redis_url, **env}
    if kind == "pywsgi":
        return PywsgiApp(APP, env=settings)
    threads = 230 if kind == "gthread" else None
    return GunicornApp(APP, worker_class=kind, threads=threads, env=settings)


@dataclass
class Refused(Exception):
    """The server did not admit the connection.

    :param code: the HTTP status, or the close code that Socket.IO was told.
    """

    code: int
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Closed(Exception):
    """The server closed the connection."""

    code: int
    reason: str


class SockClient:
    """A WebSocket client of a flask-sock handler."""

    def __init__(self, url: str, path: str, user: str) -> None:
        address = f"{url.replace('http', 'ws', 1)}/{path}?user={user}"
        try:
            self.ws = websocket.create_connection(address, timeout=15)
        except websocket.WebSocketBadStatusException as error:
            body = json.loads(error.resp_body or b"")
            reason = f"{body['detail']} {body.get('violated-policies', '')}"
            raise Refused(error.status_code, reason, error.resp_headers or {}) from None

    def send(self, text: str) -> None:
        """Send a message."""
        self.ws.send(text)

    def receive(self) -> str:
        """Return the next message.

        :raises Closed: if the server closes instead.
        """
        opcode, data = self.ws.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise Closed(int.from_bytes(data[:2], "big"), data[2:].decode())
        return str(data, "utf-8")

    def close(self) -> None:
        """Close it."""
        self.ws.close()
        self.ws.shutdown()  # type: ignore[no-untyped-call]


class SocketIOClient:
    """A Socket.IO client, spoken over one WebSocket without the many threads of a library's."""

    def __init__(self, url: str, path: str, user: str) -> None:
        address = url.replace("http", "ws", 1)
        query = f"EIO=4&transport=websocket&user={user}"
        self.ws = websocket.create_connection(f"{address}/socket.io/?{query}", timeout=15)
        self.namespace = f"/{path}"
        assert self._packet().startswith("0")
        self.ws.send(f"40{self.namespace},")
        answer = self._packet()
        if answer.startswith("44"):
            self.ws.close()
            notice = json.loads(answer.partition(",")[2])
            raise Refused(notice.get("data", {}).get("code", 0), notice["message"])
        assert answer.startswith(f"40{self.namespace}"), answer

    def send(self, text: str) -> None:
        """Send an event with a text."""
        self.ws.send(f"42{self.namespace},{json.dumps(['say', text])}")

    def receive(self) -> str:
        """Return the text of the next event.

        :raises Closed: if it is one that says that the limit is reached.
        """
        event, argument = json.loads(self._packet().partition(",")[2])
        if event == "rate_limited":
            assert self._packet().startswith(f"41{self.namespace}")
            raise Closed(argument["code"], argument["message"])
        assert event == "said"
        return str(argument)

    def close(self) -> None:
        """Close it."""
        self.ws.close()
        self.ws.shutdown()  # type: ignore[no-untyped-call]

    def _packet(self) -> str:
        while (packet := str(self.ws.recv())) == "2":  # a ping
            self.ws.send("3")
        return packet


Client = SockClient | SocketIOClient
CLIENTS: dict[str, type[Client]] = {
    "flask-sock": SockClient,
    "socketio": SocketIOClient,
}


def decisions(server: RedisServer) -> int:
    """Return how often a server was asked; who does not know that it has a script sends it."""
    return server.calls("evalsha") + server.calls("eval")


def upgraded(url: str, path: str, headers: str = "") -> socket.socket:
    """Return the bare socket of a connection, for frames that no library would send.

    :param url: of the server.
    :param path: where the handler is, with a query.
    :param headers: more of them, each with its line end.
    """
    client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=15)
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n{headers}\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += client.recv(1)
    assert b" 101 " in answer, answer
    return client


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, compressed: bool = False
) -> bytes:
    """Return a frame of RFC 6455, section 5.2, masked with zeros."""
    first = bytes([final << 7 | compressed << 6 | opcode])
    if len(payload) < 126:
        length = bytes([0x80 | len(payload)])
    elif len(payload) < 2**16:
        length = b"\xfe" + len(payload).to_bytes(2, "big")
    else:
        length = b"\xff" + len(payload).to_bytes(8, "big")
    return first + length + b"\0\0\0\0" + payload


def all_at_once(count: int, function: Callable[[int], T]) -> list[T | BaseException]:
    """Call a function in threads that start together; return results and exceptions in order."""
    barrier = Barrier(count)

    def call(number: int) -> T:
        barrier.wait(60)
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(call, number) for number in range(count)]
        errors: list[Any] = [future.exception(60) for future in futures]
    return [error or future.result() for error, future in zip(errors, futures, strict=True)]
