"""Scripts on a cluster go straight to the node of their keys, and so does every command."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis

from flask_redis_guard import RateLimiter
from flask_redis_guard.client.topology.nodes import note
from flask_redis_guard.client.topology.shards import Passage
from tests.support import ClusterSetup
from tests.support.guarded import Guarded


@pytest.fixture
def limiter(cluster_setup: ClusterSetup) -> Iterator[RateLimiter]:
    guarded = Guarded(cluster_setup.url)
    yield RateLimiter(guarded.client)
    guarded.close()


def test_a_node_that_has_lost_its_scripts_is_given_them_again(
    cluster_setup: ClusterSetup, limiter: RateLimiter
) -> None:
    subjects = [f"subject {number}" for number in range(30)]  # on each of the nodes
    assert [limiter.hit("2/minute", each).remaining for each in subjects] == [1] * 30
    for server in cluster_setup.servers:
        with server.client() as client:
            client.script_flush()
    assert [limiter.hit("2/minute", each).remaining for each in subjects] == [0] * 30
    assert not any(limiter.hit("2/minute", each).allowed for each in subjects)


def test_a_line_end_in_a_prefix_hides_no_key(cluster_setup: ClusterSetup) -> None:
    guarded = Guarded(cluster_setup.url)
    limiter = RateLimiter(guarded.client, prefix="odd\r\n:")
    assert [limiter.hit("2/minute", "x").allowed for _ in range(3)] == [True, True, False]
    guarded.close()


def test_threads_share_nodes_without_sharing_replies(
    cluster_setup: ClusterSetup, limiter: RateLimiter
) -> None:
    admitted: list[str] = []

    def hit(subject: str) -> None:
        answers = (limiter.hit("100/minute", subject) for _ in range(30))
        admitted.extend(subject for answer in answers if answer.allowed)

    threads = [threading.Thread(target=hit, args=(f"user {n % 4}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {user: admitted.count(user) for user in set(admitted)} == {
        f"user {n}": 100 for n in range(4)
    }


def test_commands_of_two_words_find_their_key_the_first_time(cluster_setup: ClusterSetup) -> None:
    calls = (
        ("XGROUP CREATE", "stream", "group", "$", "MKSTREAM"),
        ("MEMORY USAGE", "stream"),
        ("XINFO GROUPS", "stream"),
        ("OBJECT ENCODING", "stream"),
    )
    for call in calls:
        guarded = Guarded(cluster_setup.url)  # one that knows no more than common commands
        assert guarded.client.execute_command(*call)
        guarded.close()


def test_what_another_caller_of_a_batch_has_counted_says_nothing_of_a_node(
    cluster_setup: ClusterSetup,
) -> None:
    guarded = Guarded(cluster_setup.url)
    operation = guarded.gate.begin("ECHO")
    passage = operation.permit
    assert isinstance(passage, Passage)
    note(operation, "node:1", redis.ConnectionError("Batch lost: the connection broke"))
    assert (passage.answered, passage.broken) == (set(), {})
    note(operation, "node:1", redis.ConnectionError("refused"))
    assert (passage.answered, set(passage.broken)) == (set(), {"node:1"})
    guarded.gate.abandon(operation)
    guarded.close()
