"""A reply that has arrived in time counts, however late the caller's turn to read it comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import Proxy, RedisServer, TLSIdentity, run_python

GREENLETS = """
    from gevent import monkey; monkey.patch_all()
    from gevent import spawn
"""
THREADS = """
    import sys, threading
    sys.setswitchinterval(1.3)  # who computes is not interrupted before
    def spawn(work):
        thread = threading.Thread(target=work)
        thread.start()
        return thread
"""
# The reply is on its way when others take the processor until the deadline is over.
ASK = """
    import os, time
    from flask_redis_guard import RedisUnavailable
    from tests.support.guarded import Guarded

    guarded = Guarded(os.environ["TEST_URL"], REDIS_GUARD_TIMEOUT=1)
    guarded.client.set("k", "x" * 100_000)  # more than one read
    guarded.finished.clear()

    def ask():
        try:
            guarded.client.pipeline(transaction=False).incr("sent").get("k").execute()
        except RedisUnavailable:
            pass

    asking = spawn(ask)
    watching = Guarded(os.environ["DIRECT_URL"])
    while not watching.client.exists("sent"):
        time.sleep(0.005)
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        pass
    asking.join()
    print(guarded.finished)
"""


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("others", [GREENLETS, THREADS], ids=["greenlets", "threads"])
def test_late_turn(others: str, tls: bool, redis_server: RedisServer, tmp_path: Path) -> None:
    identity = TLSIdentity(str(tmp_path)) if tls else None
    with Proxy(redis_server.port, tls=identity) as proxy:
        proxy.delay(0.03)
        env = {"TEST_URL": proxy.url, "DIRECT_URL": redis_server.url}
        told = run_python(others + ASK, env=env)
    assert told.strip() == "[('PIPELINE', 'success', None)]"
