"""The fixed window, aligned to the Unix epoch.

Rules in Redis: fixed_window.lua. Model of its promise: ``CalendarModel`` in
``tests/integration/limiting/models.py``.
"""

from __future__ import annotations

from typing import Final

from flask_redis_guard.core import rates
from flask_redis_guard.limiting.algorithms.base import Algorithm
from flask_redis_guard.limiting.algorithms.windows import Windows


def _counter(rate: rates.Rate) -> Windows:
    period = rate.per_seconds * 1_000_000
    return Windows(rate.limit, period, period)


FIXED_WINDOW: Final = Algorithm(rates.FIXED_WINDOW, b"f", "fixed_window.lua", _counter)
