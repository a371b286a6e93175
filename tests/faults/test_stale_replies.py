"""No reply goes to the wrong thread while sockets are cut and hang in the middle of replies."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

from flask_redis_guard import RedisUnavailable
from tests.support import Proxy, RedisServer
from tests.support.guarded import NEVER_OPENS, PROTOCOLS, Guarded


def echoes(client: Any, own: list[bytes]) -> Any:
    if len(own) == 1:
        return [client.echo(own[0])]
    pipeline = client.pipeline(transaction=False)
    for number in own:
        pipeline.echo(number)
    return pipeline.execute()


def test_no_thread_gets_the_reply_of_another(redis_server: RedisServer) -> None:
    numbers = itertools.count()
    counts = {"answered": 0, "refused": 0}
    wrong: list[Any] = []
    stop = threading.Event()
    with Proxy(redis_server.port) as proxy:
        options = {"REDIS_GUARD_TIMEOUT": 0.2, "REDIS_GUARD_MAX_CONNECTIONS": 4, **NEVER_OPENS}
        both = [Guarded(f"{proxy.url}?protocol={number}", **options) for number in PROTOCOLS]

        def ask() -> None:
            while not stop.is_set():
                own = [b"%d" % next(numbers) for _ in range(random.choice((1, 3)))]
                try:
                    replies = echoes(random.choice(both).client, own)
                except RedisUnavailable:
                    counts["refused"] += 1
                    continue
                counts["answered"] += 1
                if replies != own:
                    wrong.append((own, replies))

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        rounds = 0
        while rounds < 12 or counts["refused"] <= 10:  # the test's timeout ends it otherwise
            rounds += 1
            random.choice([proxy.cut_after, proxy.hang_after])(random.randrange(1, 3000))
            time.sleep(random.uniform(0.1, 0.3))
            proxy.resume()
            time.sleep(0.05)
        proxy.resume()
        stop.set()
        for thread in threads:
            thread.join(10)
        for guarded in both:
            guarded.close()
    assert wrong == []
    assert counts["answered"] > 200, counts


def test_a_reply_that_nobody_waited_for_meets_nobody(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        guarded = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5, **NEVER_OPENS)
        guarded.client.ping()
        proxy.delay(0.1)  # it comes when the next caller has sent
        pool = guarded.client.connection_pool
        connection = pool.get_connection("ECHO")
        connection.send_command("ECHO", "of somebody else")
        pool.release(connection)
        assert guarded.client.echo("own") == b"own"
        guarded.close()
