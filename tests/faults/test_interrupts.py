"""A signal in the middle of an operation, whose handler raises."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support import Proxy, RedisServer
from tests.support.guarded import Guarded


class Alarm(BaseException):
    """What the signal handler raises."""


# Where it rings in a finalizer, nobody sees what it raises.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_raises_leaves_no_reply_behind(redis_server: RedisServer) -> None:
    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    with Proxy(redis_server.port) as proxy:
        guarded = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5, REDIS_GUARD_MAX_CONNECTIONS=1)
        guarded.client.ping()
        proxy.delay(0.01)
        rung = 0
        for number in range(40):
            own = str(number).encode()
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0008 * number)
            try:
                assert guarded.client.echo(own) == own
                time.sleep(1)  # the alarm rings here, if it has not before
            except Alarm:
                rung += 1
        signal.signal(signal.SIGALRM, before)
        assert rung > 30
        assert guarded.client.echo("at last") == b"at last"
        assert {outcome for _, outcome, _ in guarded.finished} == {"success", "neutral"}
        assert guarded.client.connection_pool.in_use == 0
        guarded.close()
