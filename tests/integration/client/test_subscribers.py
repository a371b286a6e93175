"""Subscribers: what they may take for a message."""

from __future__ import annotations

from time import monotonic

import pytest

from tests.support import HandshakeStaller, eventually
from tests.support.guarded import PROTOCOLS, Guarded


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seconds", [0, 0.05])
def test_replies_to_the_handshake_are_no_message(protocol: int, seconds: float) -> None:
    with HandshakeStaller(replies=protocol) as server:  # as many commands as the handshake has
        guarded = Guarded(f"{server.url}?protocol={protocol}")
        with guarded.client.pubsub() as subscriber:
            subscriber.subscribe("channel")
            assert subscriber.connection.is_greeting or protocol == 3

            def look() -> bool:
                began = monotonic()
                assert subscriber.get_message(timeout=seconds) is None
                assert monotonic() - began < seconds + 0.4
                return not subscriber.connection.is_greeting

            eventually(look)
        guarded.close()
