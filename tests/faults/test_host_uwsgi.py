"""Workers that uWSGI forks off a master which has loaded the app are one host."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection
from pathlib import Path

import pytest
import requests

from tests.faults.test_host_gunicorn import APP, at_once, living
from tests.support import GunicornApp, RedisServer, eventually
from tests.support.apps import UwsgiApp
from tests.support.hosts import Shell

pytestmark = pytest.mark.skipif(
    not Path(sys.executable).with_name("uwsgi").exists(),
    reason="no uWSGI: there is no wheel of pyuwsgi for this platform",
)

WORKERS = 4


def results(app: GunicornApp) -> list[str]:
    """What becomes of requests of which each worker gets some."""
    return [answer.split()[1] for answer in at_once(app, "/nap", [0.0] * 16)]


def meet_all(app: GunicornApp, but: Collection[str] = ()) -> set[str]:
    """The processes that answer, once it is as many as there are to be."""
    seen: set[str] = set()

    def met() -> bool:
        with contextlib.suppress(requests.ConnectionError):  # a worker ended
            seen.update(answer.split()[0] for answer in at_once(app, "/nap", [0.0] * 16))
        return len(seen - set(but)) == WORKERS

    eventually(met, 15, "all have answered")
    return seen - set(but)


@pytest.mark.parametrize(
    "arguments",
    [("--threads", "4"), ("--gevent", "20", "--gevent-monkey-patch")],
    ids=["threads", "gevent"],
)
def test_forked_workers_of_uwsgi_are_one_host(
    own_server: RedisServer, arguments: tuple[str, ...]
) -> None:
    env = {"REDIS_URL": own_server.url}
    app = UwsgiApp(APP, workers=WORKERS, arguments=arguments, env=env)
    with app:
        pids = meet_all(app)
        assert {str(worker["pid"]) for worker in living(app)} == pids

        own_server.kill()
        eventually(lambda: "circuit-open" in results(app), 5, "one has opened")
        time.sleep(0.5)  # in which all have to notice
        assert set(results(app)) == {"circuit-open"}
        own_server.start()
        eventually(lambda: set(results(app)) == {"served"}, 4, "all serve again")

        shell = Shell(app.directory, app.directory / "board", own_server.url)
        for action, result in (("force-open", "circuit-open"), ("reset", "served")):
            code, said = shell("breaker", action)
            assert (code, f"{WORKERS} of {WORKERS} workers" in said) == (0, True), said
            assert set(results(app)) == {result}

        app.reload()
        others = meet_all(app, but=pids)
        workers = eventually(
            lambda: now if len(now := living(app)) == WORKERS else [], 5, "the old ones left"
        )
        assert {str(worker["pid"]) for worker in workers} == others
        # The slots of those that went are taken again.
        assert max(int(str(worker["slot"])) for worker in workers) < 2 * WORKERS
        assert "Traceback" not in app.log()
