"""The Sentinel set-up and the cluster replace a primary that was killed."""

from __future__ import annotations

import threading

import redis

from tests.support import ClusterSetup, SentinelSetup, eventually


def test_sentinels_promote_the_replica() -> None:
    with SentinelSetup() as setup:
        first = setup.primary()
        first.client().set("k", "v")
        assert first.client().wait(1, 4000) == 1
        first.kill()
        eventually(lambda: setup.primary() is not first, 15, "a new primary")
        promoted = setup.primary().client()
        eventually(lambda: promoted.role()[0] == "master", 10, "the promotion")
        assert promoted.get("k") == "v"


def test_cluster_promotes_a_replica() -> None:
    with ClusterSetup() as setup:
        client = setup.client()
        assert client.set("k", "v")
        first = setup.primary_of("k")
        with first.client() as direct:
            direct.wait(1, 2000)
        first.kill()
        eventually(setup.settled, 15, "the fail-over")
        assert setup.primary_of("k") is not first
        assert setup.client().get("k") == "v"


def test_cluster_comes_up_though_a_node_gets_no_turn_for_a_while() -> None:
    setup = ClusterSetup()
    done = threading.Event()

    def starve() -> None:
        eventually(lambda: all(server.alive for server in setup.servers), 30)
        while not done.wait(0.05):
            setup.servers[-1].pause()
            done.wait(1.5)  # longer than the node timeout that the cluster has in the end
            setup.servers[-1].resume()

    starving = threading.Thread(target=starve)
    starving.start()
    try:
        with setup:
            done.set()
            starving.join()
            assert setup.settled()
    finally:
        done.set()
        starving.join()


def test_protected_sentinels_and_cluster_take_their_passwords() -> None:
    with SentinelSetup(password="data", sentinel_password="watch") as setup:
        sentinel = redis.Sentinel(
            [("127.0.0.1", server.port) for server in setup.sentinels],
            sentinel_kwargs={"password": "watch"},
            password="data",
        )
        assert sentinel.master_for("mymaster").ping()
