"""A part of a cluster dies, or hands its slots on, in the middle of what spans several nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.cluster import ClusterPipeline

from flask_redis_guard import RateLimiter, RedisUnavailable
from flask_redis_guard.core.rates import parse_rates
from flask_redis_guard.limiting.keys import KeyMaker
from flask_redis_guard.limiting.plan import Charge
from flask_redis_guard.limiting.slots import ConcurrencyLimiter
from tests.support import ClusterSetup, RedisServer, eventually
from tests.support.guarded import NEVER_OPENS, Guarded

# Elections have to end in a bounded time, which they do not on a machine that is busy.
pytestmark = pytest.mark.timing

RATES = parse_rates("10/minute; 20/hour")


@pytest.fixture
def guarded(cluster_setup: ClusterSetup) -> Iterator[Guarded]:
    guarded = Guarded(cluster_setup.url, REDIS_GUARD_TIMEOUT=1, **NEVER_OPENS)
    guarded.client.ping(target_nodes=guarded.client.PRIMARIES)
    guarded.finished.clear()
    yield guarded
    guarded.close()
    for server in cluster_setup.servers:
        if not server.alive:
            server.start()
    eventually(cluster_setup.settled, 60, "the cluster is well again")


def by_server(setup: ClusterSetup, keys: list[str]) -> dict[RedisServer, str]:
    """One of the keys for each primary."""
    return {setup.primary_of(key): key for key in keys}


def test_a_limiter_gives_back_what_it_took_before_a_node_died(
    cluster_setup: ClusterSetup, guarded: Guarded
) -> None:
    limiter = RateLimiter(guarded.client)
    names = {limiter.keys.of(RATES[0], str(n), "").decode(): str(n) for n in range(20)}
    (_, first), (dying, second) = list(by_server(cluster_setup, list(names)).items())[:2]
    charges = [Charge(RATES, names[first]), Charge(RATES, names[second])]
    assert all(decision.allowed for decision in limiter.judge(charges))
    dying.kill()
    guarded.finished.clear()
    with pytest.raises(RedisUnavailable) as refusal:
        limiter.judge(charges)
    assert refusal.value.reason == "connection"
    assert [outcome for _, outcome, _ in guarded.finished] == ["success", "failure", "success"]
    assert limiter.peek(RATES, names[first]).remaining == 9
    eventually(cluster_setup.serves, 60, "a replica is elected")
    eventually(lambda: allowed(limiter, charges), 5, "the promoted replica serves")


def allowed(limiter: RateLimiter, charges: list[Charge]) -> bool:
    try:
        return all(decision.allowed for decision in limiter.judge(charges))
    except RedisUnavailable:
        return False


def test_a_pipeline_of_which_a_node_died_fails_as_one_and_sends_nothing_twice(
    cluster_setup: ClusterSetup, guarded: Guarded
) -> None:
    keys = [f"pipeline:{number}" for number in range(12)]
    servers = by_server(cluster_setup, keys)
    dying = next(iter(servers))
    lost = {key for key in keys if cluster_setup.primary_of(key) is dying}
    dying.kill()
    pipeline = guarded.client.pipeline()
    for key in keys:
        pipeline.incr(key)
    with pytest.raises(RedisUnavailable) as refusal:
        pipeline.execute(raise_on_error=False)
    assert refusal.value.reason in ("connection", "cluster-down")
    assert [outcome for _, outcome, _ in guarded.finished] == ["failure"]
    with cluster_setup.client() as other:
        assert {other.get(key) for key in keys if key not in lost} <= {"1", None}


def test_a_session_is_saved_or_refused_while_a_node_is_dead(
    cluster_setup: ClusterSetup, guarded: Guarded
) -> None:
    saved, refused = [], []
    next(iter(by_server(cluster_setup, ["k"]))).kill()
    with guarded.app.app_context():
        store = guarded.guard.sessions
        for number in range(12):
            try:
                store.set(f"session-{number}", {"number": number})
            except RedisUnavailable as error:
                refused.append(error.reason)
            else:
                saved.append(number)
        for number in saved:
            assert store.get(f"session-{number}") == {"number": number}
    assert saved
    assert refused
    assert set(refused) <= {"connection", "cluster-down"}


class Move:
    """One slot on its way from one primary to another.

    :param setup: the cluster.
    :param key: a key in the slot.
    """

    def __init__(self, setup: ClusterSetup, key: str) -> None:
        self.setup = setup
        self.source = setup.primary_of(key)
        self.target = setup.primary_of(
            next(f"k{n}" for n in range(99) if setup.primary_of(f"k{n}") is not self.source)
        )
        self.slot = int(setup._ask(self.source, "KEYSLOT", key))

    def begin(self) -> None:
        """New keys go to the target from now on."""
        names = self.setup._ask(self.source, "MYID"), self.setup._ask(self.target, "MYID")
        self.setup._ask(self.target, "SETSLOT", self.slot, "IMPORTING", names[0])
        self.setup._ask(self.source, "SETSLOT", self.slot, "MIGRATING", names[1])

    def hand_on(self, *keys: bytes) -> None:
        """Move these keys."""
        with self.source.client() as client:
            client.execute_command(
                "MIGRATE", "127.0.0.1", self.target.port, "", 0, 2000, "KEYS", *keys
            )

    def finish(self) -> None:
        """The slot is the target's, and everybody knows."""
        name = self.setup._ask(self.target, "MYID")
        for server in (self.target, self.source, *self.setup.servers):
            try:
                self.setup._ask(server, "SETSLOT", self.slot, "NODE", name)
            except redis.ResponseError:
                continue  # a replica hears of it from its primary


def test_limits_hold_while_a_slot_moves(cluster_setup: ClusterSetup, guarded: Guarded) -> None:
    limiter = RateLimiter(guarded.client, denial_cache_size=0)
    rates = parse_rates("3/minute; 100/hour")
    first, second = (limiter.keys.of(rate, "somebody", "") for rate in rates)
    move = Move(cluster_setup, first.decode())
    outcomes = [limiter.hit(rates, "somebody").allowed]
    move.begin()
    outcomes.append(limiter.hit(rates, "somebody").allowed)  # where it was
    move.hand_on(first)  # the counters of one request are on two nodes: TRYAGAIN
    with pytest.raises(RedisUnavailable) as refusal:
        limiter.hit(rates, "somebody")
    assert refusal.value.reason == "rejected"
    move.hand_on(second)
    outcomes.append(limiter.hit(rates, "somebody").allowed)  # ASK, and the script is not known
    move.finish()
    outcomes.append(limiter.hit(rates, "somebody").allowed)  # MOVED
    assert outcomes == [True, True, True, False]
    # The nodes have answered, each time.
    assert guarded.finished == [("EVALSHA", "success", None)] * 5


def test_places_on_other_nodes_are_renewed_while_one_is_away(
    cluster_setup: ClusterSetup, guarded: Guarded
) -> None:
    limiter = ConcurrencyLimiter(guarded.client, KeyMaker("guard:", None))
    leases = [limiter.lease(str(number), 1) for number in range(300)]
    assert {answer for _, answer, _ in limiter.renew(leases)} == {None}
    # The script was unknown to each of three primaries.
    assert len(guarded.finished) <= 6, guarded.finished
    with cluster_setup.client() as plain:
        ports = {lease: plain.get_node_from_key(lease.key.decode()).port for lease in leases}
    homes = {lease: cluster_setup.by_port(port) for lease, port in ports.items()}
    dying = homes[leases[0]]
    dying.kill()
    guarded.finished.clear()
    answers = {lease: answer for lease, answer, _ in limiter.renew(leases)}
    assert len(guarded.finished) == 3
    for lease, answer in answers.items():
        assert isinstance(answer, RedisUnavailable) == (homes[lease] is dying)

    def renewed() -> bool:
        return {answer for _, answer, _ in limiter.renew(leases)} == {None}

    eventually(cluster_setup.serves, 60, "a replica is elected")
    eventually(renewed, 5, "the promoted replica serves")
    assert {answer for _, answer, _ in limiter.release_all(leases)} == {None}


def in_transaction(client: Any, key: str) -> Any:
    pipeline = client.pipeline(transaction=True)
    pipeline.set(key, "new")
    return pipeline.execute()


def watching(client: Any, key: str) -> Any:
    with client.pipeline(transaction=True) as pipeline:
        pipeline.watch(key)
        assert pipeline.get(key) == b"old"
        pipeline.multi()
        pipeline.set(key, "new")
        return pipeline.execute()


def by_function(client: Any, key: str) -> Any:
    return client.transaction(lambda pipeline: pipeline.multi() or pipeline.set(key, "new"), key)


@pytest.mark.skipif(
    "transaction" not in inspect.signature(ClusterPipeline.__init__).parameters,
    reason="redis-py before 6 has no transactions on clusters",
)
@pytest.mark.parametrize("write", [in_transaction, watching, by_function])
def test_a_transaction_follows_its_slot(
    cluster_setup: ClusterSetup, guarded: Guarded, write: Callable[[Any, str], Any]
) -> None:
    key = f"moved:{write.__name__}"
    guarded.client.set(key, "old")
    guarded.finished.clear()
    move = Move(cluster_setup, key)
    move.begin()
    move.hand_on(key.encode())
    move.finish()
    assert write(guarded.client, key) in ([True], [b"OK"])
    assert guarded.client.get(key) == b"new"
    assert {outcome for _, outcome, _ in guarded.finished} == {"success"}


def test_a_connect_function_is_called_for_each_connection(cluster_setup: ClusterSetup) -> None:
    seen: list[Any] = []

    def note(connection: Any) -> None:
        connection.send_command("CLIENT", "SETNAME", "noted")
        assert connection.read_response() in (b"OK", "OK")
        seen.append(connection)

    options = {"redis_connect_func": note}
    guarded = Guarded(cluster_setup.url, REDIS_GUARD_CLIENT_OPTIONS=options)
    names = guarded.client.client_getname(target_nodes=guarded.client.PRIMARIES)
    assert set(names.values()) == {"noted"}
    assert len(seen) >= 3
    guarded.close()
