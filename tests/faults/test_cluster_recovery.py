"""A part of a cluster is away: the rest is served, and all of it as soon as the cluster is well.

At default settings; each test prints the seconds from the cluster's state being ok to the last
refusal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from flask_redis_guard.core.breaker import CircuitState
from tests.support import ClusterSetup, RedisServer, eventually
from tests.support.guarded import Guarded
from tests.support.writers import Writers

pytestmark = pytest.mark.timing

#: Seconds after the cluster's state is ok within which everything is served.
PROMISED = 1.5


@pytest.fixture
def cluster() -> Iterator[ClusterSetup]:
    with ClusterSetup(options={"cluster-require-full-coverage": "no"}) as setup:
        yield setup


@pytest.fixture
def guarded(cluster: ClusterSetup) -> Iterator[Guarded]:
    guarded = Guarded(cluster.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=5)
    yield guarded
    guarded.app.extensions["redis_guard"].monitor.stop()
    guarded.close()


def prefixes(cluster: ClusterSetup) -> dict[str, RedisServer]:
    """One prefix, with a hash tag, for each primary."""
    found: dict[RedisServer, str] = {}
    for number in range(100):
        found.setdefault(cluster.primary_of(f"{{{number}}}"), f"{{{number}}}")
        if len(found) == cluster.primary_count:
            break
    return {prefix: server for server, prefix in found.items()}


class Measured:
    """What users saw of an outage, at default settings."""

    def __init__(self, cluster: ClusterSetup, guarded: Guarded, homes: list[str]) -> None:
        self.cluster, self.guarded = cluster, guarded
        self.writers = Writers(guarded.client, homes)

    def __enter__(self) -> Measured:
        self.writers.__enter__()
        began = time.monotonic()
        eventually(lambda: self.writers.all_written_since(began), 10, "written")
        time.sleep(0.5)
        return self

    def __exit__(self, *args: object) -> None:
        self.writers.__exit__(*args)

    def until_well(self) -> float:
        """Wait until the cluster is well, and then until all is served.

        :returns: seconds from the one to the last refusal.
        """
        eventually(self.cluster.serves, 60, "the cluster is well", interval=0.01)
        well = time.monotonic()
        eventually(lambda: self.writers.all_written_since(well), 40, "served again")
        time.sleep(2)
        return self.writers.refused_since(well)


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_lost_primary_stops_only_what_lies_on_it(
    cluster: ClusterSetup, guarded: Guarded, fault: str, capsys: Any
) -> None:
    homes = prefixes(cluster)
    lost, victim = next(iter(homes.items()))
    with Measured(cluster, guarded, list(homes)) as measured:
        getattr(victim, fault)()
        late = measured.until_well()
    refused = measured.writers.refused
    elsewhere = [entry for entry in refused if entry[1] != lost]
    with capsys.disabled():
        print(f"\nprimary, {fault}: {late:.2f} s; refused {len(refused)}, not there {elsewhere}")
    assert refused
    assert elsewhere == []
    assert late < PROMISED
    assert guarded.gate.breaker.state is CircuitState.CLOSED


@pytest.mark.parametrize("fault", ["restart", "pause"])
def test_a_cluster_that_was_away_as_a_whole_is_served_when_it_is_back(
    cluster: ClusterSetup, guarded: Guarded, fault: str, capsys: Any
) -> None:
    with Measured(cluster, guarded, list(prefixes(cluster))) as measured:
        for server in cluster.servers:
            server.pause() if fault == "pause" else server.kill()
        eventually(lambda: guarded.gate.breaker.refusing, 10, "the breakers open")
        time.sleep(2)
        for server in cluster.servers:
            server.resume() if fault == "pause" else server.start()
        late = measured.until_well()
    with capsys.disabled():
        print(f"\nwhole cluster, {fault}: {late:.2f} s")
    assert late < PROMISED
    assert guarded.gate.breaker.state is CircuitState.CLOSED
