"""How replies of scripts are read."""

from __future__ import annotations

import pytest

from flask_redis_guard import RedisUnavailable
from flask_redis_guard.client.script import Script

SCRIPT = Script("RATE LIMIT", "return 1")


def test_numbers_are_read_from_one_text() -> None:
    assert SCRIPT.read_numbers(b"1 -20 300", 3) == [1, -20, 300]


@pytest.mark.parametrize(
    "reply",
    [None, b"", b"1 2", b"1 2 3 4", b"1 2 x", b"1 2 3.0", 1, [], [1, 2, 3], b"OK", {}, True],
)
def test_a_reply_of_another_shape_is_no_answer(reply: object) -> None:
    with pytest.raises(RedisUnavailable) as caught:
        SCRIPT.read_numbers(reply, 3)
    assert caught.value.reason == "rejected"
