"""The sliding window up to 16: the time of every admission within the period, so it is exact.

Rules in Redis: exact_log.lua. Model of its promise: ``LogModel`` in
``tests/integration/limiting/models.py``.
"""

from __future__ import annotations

from typing import Final

from flask_redis_guard.core import rates
from flask_redis_guard.limiting.algorithms.base import Algorithm
from flask_redis_guard.limiting.algorithms.windows import Windows


def _counter(rate: rates.Rate) -> Windows:
    return Windows(rate.limit, 1, rate.per_seconds * 1_000_000)


EXACT_LOG: Final = Algorithm(rates.SLIDING_WINDOW, b"l", "exact_log.lua", _counter, up_to=16)
