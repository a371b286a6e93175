"""Checks of numbers that callers pass in; every complaint is a plain ``ValueError``."""

from __future__ import annotations

import math


def check_counts(**counts: object) -> None:
    """Insist on whole numbers of at least 1.

    :raises ValueError: naming the argument and its value.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_numbers(at_most: float = math.inf, **numbers: object) -> None:
    """Insist on finite numbers above 0, such as seconds.

    :param at_most: the largest that is accepted.
    :raises ValueError: naming the argument and its value.
    """
    for name, value in numbers.items():
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not 0 < value <= at_most or math.isinf(value):  # type: ignore[operator, arg-type]
            upper = "" if math.isinf(at_most) else f" and at most {at_most:g}"
            raise ValueError(f"{name} must be a finite number above 0{upper}, not {value!r}")
