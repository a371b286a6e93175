"""A host of several worker processes with one app, each of which does what a test tells it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.apps import ROOT, _environment
from tests.support.orphans import death_signal
from tests.support.waiting import eventually

# The workers are forked off a process that has imported everything: that takes milliseconds each.
SCRIPT = """
import json, os, resource, socket, sys, threading, time, traceback
import signal as signals
from flask import Flask
from flask_redis_guard import RedisGuard, RedisUnavailable, redis_recovered, runtime
from flask_redis_guard.events import Checked

ALERTS = os.path.join(sys.argv[1], "alerts")

def deliver(alert):
    with open(ALERTS + ".begun", "a") as file:
        print(os.getpid(), alert.kind, file=file, flush=True)
    while os.path.exists(ALERTS + ".wait"):
        time.sleep(0.02)
    with open(ALERTS, "a") as file:
        print(json.dumps(alert.as_dict()), file=file, flush=True)

def serve(number):
    app = Flask("hosted")
    app.config.update(json.loads(sys.argv[2]), REDIS_GUARD_ALERT_DELIVERY=deliver)
    guard = RedisGuard(app)
    part = runtime.of(app)
    client = guard.client_for(app)

    tried = [0]  # background checks

    def count(_):
        tried[0] += 1

    part.bus.subscribe(Checked, count)

    recoveries = []
    redis_recovered.connect(lambda *_, **__: recoveries.append(time.time()), app, weak=False)

    def ask():
        try:
            client.incr("n")
        except RedisUnavailable as error:
            return error.reason
        return "served"

    known = dict(globals(), **locals())
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.join(sys.argv[1], f"{number}.sock"))
    server.listen()
    stream = server.accept()[0].makefile("rw")
    for line in stream:
        try:
            answer = {"result": eval(json.loads(line), known)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=stream, flush=True)

pids = []
for number in range(int(sys.argv[3])):
    pid = os.fork()
    if not pid:
        try:
            serve(number)
        finally:
            os._exit(0)
    pids.append(pid)
print(json.dumps(pids), flush=True)
while pids:
    pids.remove(os.wait()[0])
"""


class HostWorker:
    """One process.

    :param pid: its id.
    :param path: of its socket.
    """

    def __init__(self, pid: int, path: Path) -> None:
        self.pid = pid
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)

        def connect() -> bool:
            return path.exists() and connection.connect_ex(str(path)) == 0

        eventually(connect, 10, f"the worker {pid} listens")
        self._connection = connection
        self._stream = connection.makefile("rw")

    def send(self, expression: str) -> None:
        """Have it begin with what :meth:`receive` waits for."""
        print(json.dumps(expression), file=self._stream, flush=True)

    def receive(self) -> Any:
        """What the expression that was sent came to."""
        answer = json.loads(self._stream.readline())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def __call__(self, expression: str) -> Any:
        """What an expression comes to in it."""
        self.send(expression)
        return self.receive()

    @property
    def state(self) -> str:
        """Of its breaker, as it is, without looking at what others know."""
        return str(self("part.breaker.state.value"))

    def ask(self) -> str:
        """Call Redis once: ``served``, or the reason why not."""
        return str(self("ask()"))

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._connection.close()


class HostSetup:
    """So many workers of one app; a context manager.

    :param url: of their Redis.
    :param workers: how many.
    :param env: added to the environment.
    :param settings: of the app.
    """

    def __init__(
        self, url: str, workers: int, env: dict[str, str] | None = None, **settings: Any
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="host-"))
        self.board = self.directory / "board"
        config = {"REDIS_URL": url, "REDIS_GUARD_HOST_STATE": str(self.board), **settings}
        self._log = (self.directory / "log").open("wb")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", SCRIPT, str(self.directory)),
                *(json.dumps(config), str(workers)),
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(env),
            start_new_session=True,
            preexec_fn=death_signal(),
            text=True,
        )
        assert self._process.stdout is not None
        self._pids = json.loads(self._process.stdout.readline() or "[]")
        assert len(self._pids) == workers, self.log()
        self.workers = [
            HostWorker(pid, self.directory / f"{number}.sock")
            for number, pid in enumerate(self._pids)
        ]

    def __getitem__(self, number: int) -> HostWorker:
        return self.workers[number]

    @property
    def file(self) -> Path:
        """The board."""
        (found,) = self.board.glob("*.board")
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Those that the workers have delivered."""
        path = self.directory / "alerts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def delivering(self) -> list[int]:
        """The processes that have begun to deliver one."""
        path = self.directory / "alerts.begun"
        return [int(line.split()[0]) for line in path.read_text().splitlines()]

    def hold_alerts(self, held: bool) -> None:
        """Have deliveries wait, or go on."""
        path = self.directory / "alerts.wait"
        path.touch() if held else path.unlink()

    def states(self) -> list[str]:
        """Of all workers' breakers."""
        return [worker.state for worker in self.workers]

    def log(self) -> str:
        """All that the workers have logged."""
        return (self.directory / "log").read_text()

    def __enter__(self) -> HostSetup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers:
            worker.close()
        for pid in self._pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        if error is not None:
            print(self.log())


#: The app as a shell of its operator finds it.
HOSTED = """
from flask import Flask
from flask_redis_guard import RedisGuard

app = Flask("hosted")
RedisGuard(app)
"""


class Shell:
    """Runs ``flask redis-guard`` as an operator of an app named ``hosted`` does.

    :param directory: where it runs.
    :param board: where its workers share what they know.
    :param url: of their Redis.
    """

    def __init__(self, directory: Path, board: Path, url: str) -> None:
        self._directory = directory
        (directory / "hosted.py").write_text(HOSTED)
        self._env = _environment(
            {
                "REDIS_URL": url,
                "REDIS_GUARD_HOST_STATE": str(board),
                "USER": "carol",
                "LOGNAME": "carol",
            }
        )

    def __call__(self, *words: str) -> tuple[int, str]:
        """Its exit code, and what it wrote."""
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "hosted", "redis-guard", *words],
            cwd=self._directory,
            env={**self._env, "PYTHONPATH": f"{ROOT}:{self._directory}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        return done.returncode, done.stdout
