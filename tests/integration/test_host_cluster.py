"""What the workers of a host share of a cluster: commands, and no primary's circuit."""

from __future__ import annotations

from flask import Flask

from flask_redis_guard import CircuitState, RedisGuard, runtime
from flask_redis_guard.core.breaker import Outcome, Permit
from flask_redis_guard.core.hostview import FORCE_OPEN, RESET
from tests.support import ClusterSetup, eventually


def test_workers_of_a_host_share_commands_and_no_shard(cluster_setup: ClusterSetup) -> None:
    apps = []
    for _ in range(2):
        app = Flask("workers")
        app.config.update(REDIS_URL=cluster_setup.url)
        RedisGuard(app).start(app)
        assert runtime.of(app).client.set("key", "1")
        apps.append(runtime.of(app))
    first, second = apps
    shard = next(iter(first.breaker.primaries.values()))
    for _ in range(5):
        permit = shard.try_acquire()
        assert isinstance(permit, Permit)
        shard.settle(permit, Outcome.FAILURE)
    assert first.breaker.state is CircuitState.OPEN
    second.look()
    assert second.breaker.state is CircuitState.CLOSED
    assert first.operators is not None
    for action, state in ((FORCE_OPEN, CircuitState.FORCED_OPEN), (RESET, CircuitState.CLOSED)):
        first.operators.give(action, "a test")
        for each in apps:
            eventually(lambda each=each, state=state: each.breaker.state is state, 2)  # type: ignore[misc]
            assert {one.state for one in each.breaker.primaries.values()} == {state}
    for each in apps:
        each.monitor.stop()
        each.client.close()
