"""Every metric through a real scrape of two workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from flask_redis_guard import ConfigurationError, RedisGuard
from tests.support import GunicornApp, RedisServer, eventually, run_python

TOKEN = "metrics-test-token-0123456789"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

APP = """
import os
from flask import Flask, request, current_app
from flask_redis_guard import RateLimitExceeded, RedisGuard, Rate

app = Flask("shop")
app.config.update(
    REDIS_GUARD_METRICS=True,
    REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
    REDIS_GUARD_FAILURE_THRESHOLD=3,
    REDIS_GUARD_OPEN_SECONDS=0.3,
    REDIS_GUARD_SUCCESS_THRESHOLD=1,
)
guard = RedisGuard(app)

@app.get("/")
def index():
    guard.client.incr("n")
    return str(os.getpid())

@app.get("/login")
def login():
    who = request.args["who"]
    decision = guard.limiter.hit(Rate(2, 3600, name="login"), who, scope="login")
    if not decision.allowed:
        raise RateLimitExceeded(decision)
    return str(os.getpid())

@app.get("/session")
def session():
    return str(guard.sessions.get("0" * 64))
"""
GUNICORN = """
from prometheus_client import multiprocess

def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


def scrape(app: GunicornApp) -> Samples:
    response = app.get("/api/v1/health/metrics", headers=AUTHORIZED)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset({"app": "shop", **labels}.items())), 0.0)


def from_both(app: GunicornApp, path: str) -> int:
    """Ask until both workers have answered; how often that was."""
    seen: set[str] = set()
    asked = 0

    def ask() -> bool:
        nonlocal asked
        response = app.get(path)
        asked += 1
        seen.add(response.text)
        return len(seen) == 2

    eventually(ask, 20, "both workers answer")
    return asked


def test_every_metric_over_two_workers(own_server: RedisServer, tmp_path: Path) -> None:
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text(GUNICORN)
    directory = tmp_path / "metrics"
    directory.mkdir()
    env = {
        "REDIS_URL": own_server.url,
        "REDIS_GUARD_HEALTH_TOKEN": TOKEN,
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
    }
    with GunicornApp(
        APP,
        worker_class="sync",
        workers=2,
        env=env,
        arguments=("--config", str(configuration)),
        ready_path="/api/v1/health/live",
    ) as app:
        asked = from_both(app, "/")
        samples = scrape(app)
        assert value(samples, "redis_guard_calls_total", outcome="success", reason="") == asked
        assert value(samples, "redis_guard_call_seconds_count") == asked
        assert 0 < value(samples, "redis_guard_call_seconds_sum") < asked
        assert value(samples, "redis_guard_call_seconds_bucket", le="+Inf") == asked
        assert value(samples, "redis_guard_circuit_state", state="closed") == 2
        assert value(samples, "redis_guard_circuit_state", state="open") == 0

        assert app.get("/session").text == "None"  # there is none, which is no failure
        for _ in range(2):
            assert app.get("/login?who=alice").status_code == 200
        denied = 0
        while not value(scrape(app), "redis_guard_denial_cache_hits_total"):
            assert app.get("/login?who=alice").status_code == 429
            denied += 1
            assert denied < 200
        samples = scrape(app)
        name = "redis_guard_rate_limit_decisions_total"
        assert value(samples, name, rate="login", decision="allowed") == 2
        assert value(samples, name, rate="login", decision="denied") == denied
        assert not any("alice" in str(key) for key in samples)

        own_server.kill()

        def both_open() -> bool:
            app.get("/")
            return value(scrape(app), "redis_guard_circuit_state", state="closed") == 0

        eventually(both_open, 20, "both breakers open")
        app.get("/")
        eventually(
            lambda: (
                app.get("/").status_code == 503
                and value(
                    scrape(app), "redis_guard_calls_total", outcome="refused", reason="circuit-open"
                )
            ),
            10,
            "a call that the breaker refused",
        )
        for _ in range(3):
            assert app.get("/session").status_code == 503
        samples = scrape(app)
        assert value(samples, "redis_guard_session_failures_total", operation="load") == 3
        refusals = "redis_guard_refusals_total"
        failed = value(samples, "redis_guard_calls_total", outcome="failure", reason="connection")
        assert failed >= 3  # the other worker need not meet as many before it refuses, too
        assert value(samples, refusals, reason="connection") == failed
        assert value(samples, refusals, reason="circuit-open") == value(
            samples, "redis_guard_calls_total", outcome="refused", reason="circuit-open"
        )
        transitions = "redis_guard_transitions_total"
        assert value(samples, transitions, previous="closed", current="open") == 2

        own_server.start()

        def both_closed() -> bool:
            app.get("/")
            return value(scrape(app), "redis_guard_circuit_state", state="closed") == 2

        eventually(both_closed, 20, "both breakers closed again")
        samples = scrape(app)
        # One that only followed the other worker may go the straight way back.
        closed = [
            value(samples, transitions, previous=previous, current="closed")
            for previous in ("half-open", "open")
        ]
        assert sum(closed) == 2
        assert value(samples, "redis_guard_circuit_state", state="open") == 0
        assert app.get("/api/v1/health/metrics").status_code == 401


def test_rates_without_number_share_a_label(redis_server: RedisServer) -> None:
    # In a process of its own, since the registry is one for the process.
    run_python(
        f"""
        from flask import Flask
        from flask_redis_guard import RedisGuard, Rate
        from flask_redis_guard.web.metrics import MOST_RATES

        app = Flask("computed")
        app.config.update(
            REDIS_URL={redis_server.url!r},
            REDIS_GUARD_METRICS=True,
            REDIS_GUARD_HEALTH_TOKEN={TOKEN!r},
        )
        guard = RedisGuard(app)
        with app.app_context():
            for limit in range(1, MOST_RATES + 11):
                guard.limiter.hit(Rate(limit, 60), "somebody")
        text = app.test_client().get(
            "/api/v1/health/metrics", headers={{"Authorization": "Bearer {TOKEN}"}}
        ).text
        lines = [
            line for line in text.splitlines()
            if line.startswith("redis_guard_rate_limit_decisions_total")
        ]
        assert len(lines) == MOST_RATES + 1, len(lines)
        (other,) = [line for line in lines if 'rate="other"' in line]
        assert other.endswith(" 10.0"), other
        """
    )


def test_metrics_without_the_extra_say_what_to_install() -> None:
    run_python(
        """
        import sys
        sys.modules["prometheus_client"] = None  # as where it is not installed
        from flask import Flask
        from flask_redis_guard import ConfigurationError, RedisGuard

        app = Flask("without")
        app.config["REDIS_GUARD_METRICS"] = True
        try:
            RedisGuard(app)
        except ConfigurationError as error:
            assert "flask-redis-guard[prometheus]" in str(error), error
        else:
            raise AssertionError("no error")
        """
    )


def test_no_metrics_unless_asked_for(redis_server: RedisServer) -> None:
    app = Flask("plain")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_TOKEN=TOKEN)
    RedisGuard(app)
    path = "/api/v1/health/metrics"
    assert app.test_client().get(path, headers=AUTHORIZED).status_code == 404


@pytest.mark.parametrize("value", ["maybe", 2, None])
def test_flag_is_true_or_false(value: object) -> None:
    app = Flask("flag")
    app.config["REDIS_GUARD_METRICS"] = value
    with pytest.raises(ConfigurationError, match="true or false"):
        RedisGuard(app)
