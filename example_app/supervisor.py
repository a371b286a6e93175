"""Starts everything, takes orders for the embedded server, and ends everything together."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

import redis
from werkzeug.serving import make_server

from example_app.embedded import EmbeddedServer, die_with_parent, find_binary
from example_app.laboratory import DEEDS, Laboratory

#: Shorter than the defaults of 5, 300, 300, 1 and 30 seconds, for visitors who watch, and who break
#: Redis again before it has been well for a minute: that doubles the interval of recovery checks.
IMPATIENCE = {
    "REDIS_GUARD_HEALTH_CHECK_INTERVAL": "2",
    "REDIS_GUARD_DOWNTIME_ALERT_SECONDS": "30",
    "REDIS_GUARD_ALERT_COOLDOWN_SECONDS": "10",
    "REDIS_GUARD_RECOVERY_INTERVAL": "0.25",
    "REDIS_GUARD_OPEN_SECONDS": "10",
}
#: Each WebSocket of the chat takes one.
THREADS = 24
TOLD = {
    "kill": ("Redis was killed: SIGKILL, its connections are cut", "bad"),
    "hang": ("Redis hangs: it accepts connections and answers nothing", "bad"),
    "slow": ("Redis is slow: answers take seconds", "bad"),
    "empty": ("Redis was emptied: FLUSHALL", "note"),
    "start": ("Redis is up", "good"),
}


class Supervisor:
    """The laboratory's first process.

    :param port: where the page is served on 127.0.0.1; 0 for any.
    :raises OSError: if the port is taken.
    """

    def __init__(self, port: int) -> None:
        self._page = _listener(port)
        self._plain = _listener(0)
        self._children: list[subprocess.Popen[bytes]] = []
        binary = find_binary()
        self._server = EmbeddedServer(binary) if binary else None
        self._lab = Laboratory(
            Path(tempfile.mkdtemp(prefix="redis-guard-lab-")),
            self._server.url if self._server else None,
            self._plain.getsockname()[1] if self._server else 0,
        )
        self._deeds: dict[str, Callable[[], None]] = {}
        if self._server is not None:
            self._deeds = {deed: getattr(self._server, deed) for deed in DEEDS}
        self._seen = "dead"

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
        try:
            self._start()
            print(f"Open http://127.0.0.1:{self._page.getsockname()[1]}/ (Ctrl-C ends it)")
            if self._server is None:
                print("No Redis server here: ENVIRONMENT=development, on the in-memory store.")
            sys.stdout.flush()
            self._watch()
        finally:
            self._end()

    def _start(self) -> None:
        # What the workers share lies beside the timeline, and is removed with it.
        ours = {**IMPATIENCE, "REDIS_GUARD_HOST_STATE": str(self._lab.directory)}
        environment = {**ours, **os.environ, **self._lab.as_environment()}
        serve = self._fork if _has_gunicorn() else self._thread
        # Counters in the memory of one process know nothing of another's.
        workers = int(os.environ.get("WORKERS") or min(4, max(2, os.cpu_count() or 1)))
        if self._server is not None:
            self._order("start")
            serve("unguarded", self._plain, workers, environment)
        else:
            workers = 1
        serve("app", self._page, workers, environment)

    def _fork(
        self, module: str, listener: socket.socket, workers: int, env: dict[str, str]
    ) -> None:
        """Serve an app with gunicorn's threads, in so many workers."""
        number = listener.fileno()
        command = [
            *(sys.executable, "-m", "gunicorn", f"example_app.{module}:for_worker()"),
            *("--bind", f"fd://{number}", "--worker-class", "gthread"),
            *("--workers", str(workers), "--threads", str(THREADS), "--keep-alive", "0"),
            *("--graceful-timeout", "1", "--log-level", "warning"),
        ]
        child = subprocess.Popen(
            command,
            env={**env, "HOME": str(self._lab.directory)},  # what gunicorn leaves there
            pass_fds=(number,),
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            preexec_fn=die_with_parent,
        )
        self._children.append(child)

    def _thread(
        self, module: str, listener: socket.socket, workers: int, env: dict[str, str]
    ) -> None:
        """Serve an app from this process, where there is no gunicorn."""
        os.environ.update(env)
        app = importlib.import_module(f"example_app.{module}").for_worker()
        port = listener.getsockname()[1]
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server("127.0.0.1", port, app, threaded=True, fd=listener.fileno())
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def _watch(self) -> None:
        """Take orders, one after the other, and look after the processes in between."""
        with ExitStack() as stack:
            orders = stack.enter_context(socket.socket(socket.AF_UNIX))
            orders.bind(str(self._lab.control))
            orders.listen(64)
            while True:
                pause = 0.5
                if self._server is not None:
                    pause = self._server.turn() or pause
                    self._notice_death()
                orders.settimeout(pause)
                for child in self._children:
                    if child.poll() is not None:
                        sys.exit("A server of the laboratory has ended.")
                with suppress(TimeoutError):
                    connection, _ = orders.accept()
                    with connection:
                        self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(1)
        with suppress(OSError):  # a worker that went away meanwhile
            order = connection.makefile().readline().strip()
            answer = {"state": self._state()} if order == "state" else self._order(order)
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _order(self, order: str) -> dict[str, str]:
        if order not in self._deeds:
            return {"state": self._state(), "error": f"Nobody knows how to {order!r}."}
        if self._state() == "dead" and order != "start":
            return {"state": "dead", "error": "There is no server: start it first."}
        try:
            self._deeds[order]()
        except (redis.RedisError, RuntimeError) as error:
            return {"state": self._state(), "error": str(error)}
        self._seen = self._state()
        text, mood = TOLD[order]
        self._lab.tell("redis", text, mood, state=self._seen, deed=order)
        return {"state": self._seen}

    def _state(self) -> str:
        return self._server.state if self._server else "dead"

    def _notice_death(self) -> None:
        """Tell of a server that somebody has killed by other means."""
        if self._state() == "dead" != self._seen:
            self._seen = "dead"
            self._lab.tell("redis", "Redis has ended", "bad", state="dead", deed="kill")

    def _end(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if self._server is not None:
            self._server.close()
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + 3
        for child in self._children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        shutil.rmtree(self._lab.directory, ignore_errors=True)


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    listener.listen(128)
    return listener


def _has_gunicorn() -> bool:
    return hasattr(os, "fork") and importlib.util.find_spec("gunicorn") is not None


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
