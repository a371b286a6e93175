"""Applications under gunicorn and code in interpreters of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import requests

from tests.support.orphans import death_signal
from tests.support.ports import PortLease
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """This process's, less what configures the guard, plus ``extra``."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("REDIS_URL", "ENVIRONMENT")
        and (not key.startswith("REDIS_GUARD_") or key == "REDIS_GUARD_TEST_SERVER")
    }
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def run_python(code: str, *, timeout: float = 30.0, env: Mapping[str, str] | None = None) -> str:
    """Run code in an interpreter of its own and return what it printed.

    :param code: source; it may be indented as a whole. ``tests`` and the package can be imported.
    :param timeout: seconds before it and all its children are killed.
    :param env: added to the environment.
    :raises AssertionError: with all its output, if it fails or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="script-") as directory:
        script = Path(directory, "script.py")
        # A file, so that a traceback shows the lines.
        script.write_text(textwrap.dedent(code))
        with subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(
                {"REDIS_GUARD_HOST_STATE": str(Path(directory, "board")), **(env or {})}
            ),
            start_new_session=True,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                raise AssertionError(f"not done in {timeout:g} s:\n{out}\n{err}") from None
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    assert process.returncode == 0, f"ended with {process.returncode}:\n{out}\n{err}"
    return out


class GunicornApp:
    """A WSGI application under gunicorn on a free loopback port.

    A context manager: it answers inside the block and is gone after it.

    :param app: source of a module that defines ``app`` (it may be indented), or a file's path.
    :param worker_class: ``"gevent"``, ``"gthread"``, ``"sync"``.
    :param workers: how many processes.
    :param threads: of each process, for ``gthread``.
    :param arguments: more for gunicorn's command line, such as ``--preload``.
    :param env: added to the environment.
    :param ready_path: asked until it answers, with whatever status.
    """

    #: What it logs for each worker.
    _booted = "Booting worker"

    def __init__(
        self,
        app: str | Path,
        *,
        worker_class: str = "gevent",
        workers: int = 1,
        threads: int | None = None,
        arguments: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        ready_path: str = "/",
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gunicorn-"))
        self.workers = workers
        self.ready_path = ready_path
        self.process: subprocess.Popen[bytes] | None = None
        # The host of this test alone.
        board = {"REDIS_GUARD_HOST_STATE": str(self.directory / "board")}
        self._env = _environment({**board, **(env or {})})
        source = app.read_text() if isinstance(app, Path) else textwrap.dedent(app)
        (self.directory / "app_under_test.py").write_text(source)
        self._lease = PortLease()
        self.port = self._lease.port
        self._command = [
            *(sys.executable, "-m", "gunicorn", "app_under_test:app"),
            *("--chdir", str(self.directory), "--bind", f"127.0.0.1:{self.port}"),
            *("--worker-class", worker_class, "--workers", str(workers)),
            *("--graceful-timeout", "2", "--log-level", "info"),
            *(("--threads", str(threads)) if threads else ()),
            *arguments,
        ]

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> GunicornApp:
        """Start it and wait until every worker was booted and the first request is answered."""
        with (self.directory / "gunicorn.log").open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # HOME: where gunicorn puts its control socket.
                env={**self._env, "HOME": str(self.directory)},
                start_new_session=True,
                preexec_fn=death_signal(),
            )
        eventually(self._answers, 30, f"gunicorn answers\n{self.log()}")
        return self

    def get(
        self, path: str = "/", *, headers: Mapping[str, str] | None = None, timeout: float = 10.0
    ) -> requests.Response:
        """GET a path.

        :param timeout: seconds between two bytes.
        """
        return requests.get(self.url + path, timeout=timeout, headers=headers)

    def log(self) -> str:
        """All that gunicorn and the application have written."""
        path = self.directory / "gunicorn.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End it and remove its directory; may be called twice."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        if self.process is not None:
            # Whatever is left of the session that we started for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self._lease.release()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> GunicornApp:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"it ended:\n{self.log()}"
        if self.log().count(self._booted) < self.workers:
            return False
        try:
            self.get(self.ready_path)
        except (requests.ConnectionError, requests.Timeout):
            return False  # on a busy machine workers take long to import the application
        return True


class UwsgiApp(GunicornApp):
    """The same under uWSGI: workers that are forked off a master which has loaded the app.

    :param app: source of a module that defines ``app``.
    :param workers: how many processes.
    :param arguments: of uWSGI: how each of them does several things at once.
    :param env: added to the environment.
    """

    _booted = "spawned uWSGI worker"

    def __init__(
        self, app: str, *, workers: int, arguments: tuple[str, ...], env: Mapping[str, str]
    ) -> None:
        super().__init__(app, workers=workers, env=env)
        self._command = [
            *(str(Path(sys.executable).with_name("uwsgi")), "--module", "app_under_test:app"),
            *("--chdir", str(self.directory), "--http-socket", f"127.0.0.1:{self.port}"),
            *("--master", "--processes", str(workers), "--enable-threads", "--need-app"),
            *("--die-on-term", "--worker-reload-mercy", "3", *arguments),
            *("--touch-workers-reload", str(self._touched)),
        ]

    @property
    def _touched(self) -> Path:
        return self.directory / "reload"

    def start(self) -> UwsgiApp:
        """Start it and wait until every worker was booted and the first request is answered."""
        self._touched.touch()
        super().start()
        return self

    def reload(self) -> None:
        """Have all workers end what they do, and the master fork others."""
        os.utime(self._touched, (0, os.stat(self._touched).st_mtime + 2))
