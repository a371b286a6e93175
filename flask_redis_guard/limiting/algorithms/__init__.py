"""The algorithms: each stands in one module, with its script beside it.

To add one: a module that defines an :class:`.base.Algorithm`, its ``.lua`` file, an entry in
:data:`ALGORITHMS`, and its name in :data:`flask_redis_guard.core.rates.ALGORITHMS`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from flask_redis_guard.core.rates import Rate
from flask_redis_guard.limiting.algorithms.base import Algorithm, Counter
from flask_redis_guard.limiting.algorithms.exact_log import EXACT_LOG
from flask_redis_guard.limiting.algorithms.fixed_window import FIXED_WINDOW
from flask_redis_guard.limiting.algorithms.sliding_window import SLIDING_WINDOW
from flask_redis_guard.limiting.algorithms.token_bucket import TOKEN_BUCKET

__all__ = ["ALGORITHMS", "Algorithm", "Counter", "algorithm_of", "by_code"]

#: For a name that two of them have, the first that takes a rate counts it.
ALGORITHMS: Final = (EXACT_LOG, SLIDING_WINDOW, TOKEN_BUCKET, FIXED_WINDOW)

_BY_CODE: Final = {algorithm.code[0]: algorithm for algorithm in ALGORITHMS}


@lru_cache(1024)
def algorithm_of(rate: Rate) -> Algorithm:
    """Return what counts a rate."""
    return next(
        algorithm
        for algorithm in ALGORITHMS
        if algorithm.name == rate.effective_algorithm and rate.limit <= algorithm.up_to
    )


def by_code(code: int) -> Algorithm:
    """Return the algorithm that scripts know by this byte."""
    return _BY_CODE[code]
