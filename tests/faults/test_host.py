"""Workers of one host share what they know of Redis, and survive one another."""

from __future__ import annotations

import time

from tests.support import Proxy, RedisServer, eventually
from tests.support.hosts import HostSetup

#: Seconds between recovery checks and their jitter, and room for a busy machine.
SOON = 3.0


def opened_by_one(host: HostSetup, server: RedisServer, opener: int = 1) -> None:
    """Have all workers served once, then kill Redis and have one of them find out."""
    for worker in host.workers:
        assert worker.ask() == "served"
    server.kill()
    for _ in range(5):
        assert host[opener].ask() == "connection"
    assert host[opener].state == "open"


def test_one_finds_out_and_all_refuse_without_having_failed(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 4) as host:
        opened_by_one(host, own_server)
        time.sleep(0.1)
        assert [worker.ask() for worker in host.workers] == ["circuit-open"] * 4
        assert [worker("part.breaker.failure_count") for worker in host.workers[2:]] == [0, 0]
        own_server.start()
        eventually(lambda: {w.ask() for w in host.workers} == {"served"}, SOON, "all are served")
        assert host.states() == ["closed"] * 4


def test_idle_workers_follow_without_a_request(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 3) as host:
        opened_by_one(host, own_server)
        eventually(lambda: host.states() == ["open"] * 3, 1.5, "all have opened")
        own_server.start()
        eventually(lambda: host.states() == ["closed"] * 3, SOON, "all have closed")


def test_one_worker_asks_for_all_whether_redis_is_back(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 4) as host:
        opened_by_one(host, own_server)
        eventually(lambda: host.states() == ["open"] * 4, 1.5, "all have opened")
        before = [worker("tried[0]") for worker in host.workers]
        time.sleep(4)
        after = [worker("tried[0]") for worker in host.workers]
        tries = [late - early for early, late in zip(before, after, strict=True)]
        assert 3 <= sum(tries) <= 6, tries
        assert sorted(tries)[:3] == [0, 0, 0], tries


def test_worker_that_is_cut_off_alone_takes_nobody_along(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 3) as host:
        for worker in host.workers:
            assert worker.ask() == "served"
        # It has no file descriptor left for a connection.
        host[1]("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))")
        host[1]("client.connection_pool.disconnect()")
        for _ in range(5):
            assert host[1].ask() == "connection"
            time.sleep(0.06)
            assert host[0].ask() == host[2].ask() == "served"
        assert host[1].state == "open"
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert host[0].ask() == host[2].ask() == "served"
            time.sleep(0.02)


def test_one_that_is_not_answered_opens_nobody_who_is_answered_late(
    own_server: RedisServer,
) -> None:
    with (
        Proxy(own_server.port) as slow,
        Proxy(own_server.port) as hung,
        HostSetup(slow.url, 6) as host,
    ):
        for worker in host.workers:
            assert worker.ask() == "served"
        host[0](f"client.connection_pool.connection_kwargs.update(port={hung.port})")
        host[0]("client.connection_pool.reset()")
        assert host[0].ask() == "served"
        hung.hang()
        slow.delay(0.16)  # there and back again: all wait for more than half of their time
        for worker in host.workers[1:]:
            worker.send("[ask() for _ in range(6)]")
        time.sleep(0.1)
        # Its time is used up while all the others wait for their second answer.
        assert host[0].ask() == "timeout"
        for worker in host.workers[1:]:
            assert worker.receive() == ["served"] * 6


def test_who_waits_in_vain_gives_up_when_all_refuse(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 5) as host:
        for worker in host.workers:
            assert worker.ask() == "served"
        own_server.pause()
        host[0].send("ask()")
        time.sleep(0.1)
        for worker in host.workers[1:]:
            worker.send("ask()")
        assert host[0].receive() == "timeout"
        assert [worker.receive() for worker in host.workers[1:]] == ["given-up"] * 4
        assert host.states() == ["open"] * 5
