"""Applications under gunicorn and code in its own interpreter."""

from __future__ import annotations

import pytest

from tests.support import GunicornApp, run_python

APP = """
    import os
    from flask import Flask
    app = Flask(__name__)

    @app.get("/")
    def index():
        app.logger.warning("asked")
        return os.environ["GREETING"]
"""


@pytest.mark.parametrize(("worker_class", "threads"), [("gevent", None), ("gthread", 4)])
def test_app_answers_and_logs_until_stopped(worker_class: str, threads: int | None) -> None:
    env = {"GREETING": "hello"}
    with GunicornApp(
        APP, worker_class=worker_class, workers=2, threads=threads, env=env
    ) as running:
        assert running.get("/").text == "hello"
        assert running.get("/none").status_code == 404
        assert "asked" in running.log()
        assert running.process is not None
        assert running.process.poll() is None
    assert running.process.returncode == 0


def test_app_that_cannot_be_imported_fails_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match="NoSuchName"), GunicornApp("NoSuchName"):
        pass


def test_run_python_returns_the_output_and_shows_a_failure() -> None:
    assert run_python("print('out')") == "out\n"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python("1 / 0")
    with pytest.raises(AssertionError, match="not done in"):
        run_python("import time; time.sleep(60)", timeout=0.5)
