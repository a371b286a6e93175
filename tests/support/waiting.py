"""Waiting for something to become true, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    condition: Callable[[], T],
    timeout: float = 5.0,
    message: str = "",
    *,
    interval: float = 0.02,
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    :param condition: called at least once, and once more when the time is over. What it raises
        comes out at once.
    :param timeout: seconds to keep trying.
    :param message: what was waited for; it stands in the failure.
    :param interval: seconds between two calls.
    :raises AssertionError: if the condition did not come true in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        over = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if over:
            what = message or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"not within {timeout:g} s: {what} (last value: {value!r})")
        time.sleep(interval)
