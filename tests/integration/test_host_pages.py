"""What health routes and metrics tell of the workers of a host, and who may command them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_redis_guard import RedisGuard, runtime
from tests.support import RedisServer, eventually

TOKEN = "a-token-that-is-long-enough"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}
COMMAND = {**ALLOWED, "X-Redis-Guard": "test"}
PATH = "/api/v1/health"


@pytest.fixture
def apps(redis_server: RedisServer) -> Iterator[list[Flask]]:
    """Two workers of one app, in one process."""
    made = []
    for _ in range(2):
        app = Flask("shop")
        app.config.update(
            REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_TOKEN=TOKEN, REDIS_GUARD_METRICS=True
        )
        RedisGuard(app).start(app)
        made.append(app)
    yield made
    for app in made:
        runtime.of(app).monitor.stop()
        runtime.of(app).client.connection_pool.disconnect()


@pytest.fixture
def client(apps: list[Flask]) -> FlaskClient:
    return apps[0].test_client()


def states(apps: list[Flask]) -> list[str]:
    return [runtime.of(app).breaker.state.value for app in apps]


def test_authorised_see_all_workers_and_strangers_none(client: FlaskClient) -> None:
    workers = client.get(f"{PATH}/status.json", headers=ALLOWED).json["workers"]  # type: ignore[index]
    assert [(worker["slot"], worker["state"]) for worker in workers] == [
        (0, "closed"),
        (1, "closed"),
    ]
    assert set(client.get(f"{PATH}/detailed").json or ()) == {"status", "redis"}


def test_metrics_count_all_workers(client: FlaskClient, apps: list[Flask]) -> None:
    runtime.of(apps[1]).breaker.force_open()
    told = client.get(f"{PATH}/metrics", headers=ALLOWED).text
    assert 'redis_guard_host_workers{app="shop",state="closed"} 1.0' in told
    assert 'redis_guard_host_workers{app="shop",state="forced-open"} 1.0' in told


def test_page_commands_all_workers(
    client: FlaskClient, apps: list[Flask], caplog: pytest.LogCaptureFixture
) -> None:
    for action, state in (("force-open", "forced-open"), ("reset", "closed")):
        answer = client.post(f"{PATH}/breaker", json={"action": action}, headers=COMMAND)
        assert answer.status_code == 204
        eventually(lambda state=state: states(apps) == [state] * 2, 1, "both follow")  # type: ignore[misc]
        assert (
            f"carried out: {action}, given by the status page, asked from 127.0.0.1" in caplog.text
        )


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"X-Redis-Guard": "1"}, {"action": "disable"}, 401),
        (ALLOWED, {"action": "disable"}, 403),
        ({**COMMAND, "Sec-Fetch-Site": "cross-site"}, {"action": "disable"}, 403),
        ({**COMMAND, "Sec-Fetch-Site": "same-site"}, {"action": "disable"}, 403),
        (COMMAND, {"action": "explode"}, 400),
        (COMMAND, ["disable"], 400),
    ],
)
def test_commands_of_others_are_refused(
    client: FlaskClient, apps: list[Flask], headers: dict[str, str], body: object, status: int
) -> None:
    assert client.post(f"{PATH}/breaker", json=body, headers=headers).status_code == status
    form = client.post(f"{PATH}/breaker", data={"action": "disable"}, headers=COMMAND)
    assert form.status_code == 400
    assert client.get(f"{PATH}/breaker", headers=COMMAND).status_code == 405
    for app in apps:
        runtime.of(app).look()
    assert states(apps) == ["closed"] * 2


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"REDIS_GUARD_HOST_STATE": "auto"}, True),
        ({"REDIS_GUARD_HOST_STATE": "off"}, False),
        ({"REDIS_GUARD_HOST_STATE": "auto", "TESTING": True}, False),
        ({"REDIS_GUARD_HOST_STATE": "auto", "ENVIRONMENT": "development"}, False),
        ({"ENVIRONMENT": "development"}, True),  # where the test's directory is named
        ({"ENVIRONMENT": "development", "REDIS_URL": "memory://"}, False),
    ],
)
def test_processes_under_test_are_no_workers_of_one_app(
    settings: dict[str, object], shares: bool
) -> None:
    app = Flask("alone")
    app.config.update({"REDIS_URL": "redis://localhost:1", **settings})
    guard = RedisGuard(app)
    assert (runtime.of(app).host is not None) is shares
    if not shares:
        assert guard.workers(app) == []
