"""The sliding window above 16: seventeen counters of a sixteenth of the period each.

It never admits more than the limit in any period, and refuses for at most a sixteenth longer than
an exact log would. Rules in Redis: sliding_window.lua. Model of its promise: ``LogModel`` in
``tests/integration/limiting/models.py``.
"""

from __future__ import annotations

from typing import Final

from flask_redis_guard.core import rates
from flask_redis_guard.limiting.algorithms.base import Algorithm
from flask_redis_guard.limiting.algorithms.windows import Windows


def _counter(rate: rates.Rate) -> Windows:
    width = rate.per_seconds * 1_000_000 // 16
    return Windows(rate.limit, width, 17 * width)


SLIDING_WINDOW: Final = Algorithm(rates.SLIDING_WINDOW, b"w", "sliding_window.lua", _counter)
