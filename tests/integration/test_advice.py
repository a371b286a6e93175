"""The start-up check warns once about what makes a guard unsafe."""

from __future__ import annotations

import logging

import pytest

from flask_redis_guard.observe.diagnosis import _about_worker, advise
from tests.support import RedisServer, eventually, run_python
from tests.support.guarded import Guarded


def test_an_eviction_policy_is_warned_about_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    guarded = Guarded(redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.05)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "flask_redis_guard"):
        guarded.client.ping()
        eventually(lambda: caplog.records, message="a warning")
        eventually(lambda: len([f for f in guarded.finished if f[0] == "PROBE"]) >= 4)
    guarded.app.extensions["redis_guard"].monitor.stop()
    (record,) = caplog.records
    assert "allkeys-lru" in record.getMessage()
    assert "noeviction" in record.getMessage()
    guarded.close()


def test_a_user_who_may_not_ask_is_not_bothered(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(acl=["user app on >secret ~* +@all -info"]) as server:
        guarded = Guarded(f"redis://app:secret@127.0.0.1:{server.port}/0")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "flask_redis_guard"):
            advise(guarded.client, 0.5)
        assert caplog.records == []
        guarded.close()


@pytest.mark.parametrize(
    ("argv", "environment", "warned"),
    [
        (["/bin/gunicorn", "--timeout", "2", "app:app"], "", True),
        (["/bin/gunicorn", "-t2", "app:app"], "", True),
        (["/bin/gunicorn", "app:app"], "--timeout=3", True),
        (["/bin/gunicorn", "--timeout", "0", "app:app"], "", False),
        (["/bin/gunicorn", "app:app"], "", False),
        (["/bin/flask", "--timeout", "2"], "", False),
    ],
)
def test_a_timeout_above_the_workers_is_warned_about(
    argv: list[str], environment: str, warned: bool
) -> None:
    warnings = list(_about_worker(3.0, argv, {"GUNICORN_CMD_ARGS": environment}))
    assert bool(warnings) is warned


def test_patching_after_connections_were_made_is_warned_about(redis_server: RedisServer) -> None:
    run_python(
        f"""
        import warnings; warnings.simplefilter("ignore")
        import logging
        lines = []
        handler = logging.Handler(); handler.emit = lambda record: lines.append(record.getMessage())
        logging.getLogger("flask_redis_guard").addHandler(handler)
        from tests.support.guarded import Guarded
        guarded = Guarded({redis_server.url!r})
        guarded.client.ping()
        lines.clear()
        from gevent import monkey; monkey.patch_all()
        import gevent
        workers = [gevent.spawn(guarded.client.echo, str(n)) for n in range(20)]
        gevent.joinall(workers, timeout=5)
        assert [w.value for w in workers] == [str(n).encode() for n in range(20)], workers
        assert len(lines) == 1 and "monkey.patch_all()" in lines[0], lines
        """
    )
