"""Checks of what users pass in and of what their functions return: one place decides what fits."""

from __future__ import annotations

import inspect
import math
from typing import Any, TypeGuard


def is_count(value: object, at_least: int = 1, at_most: int | None = None) -> TypeGuard[int]:
    """Tell whether a value is a whole number within bounds; ``True`` is none."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and at_least <= value and (at_most is None or value <= at_most)  # type: ignore[operator]


def is_number(value: object, above: float = 0, at_most: float = math.inf) -> TypeGuard[float]:
    """Tell whether a value is a finite number within bounds; ``True`` is none."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and above < value <= at_most and value < math.inf  # type: ignore[operator]


def check_counts(**counts: object) -> None:
    """Insist on whole numbers of at least 1.

    :raises ValueError: naming the argument and its value.
    """
    for name, value in counts.items():
        if not is_count(value):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_numbers(at_most: float = math.inf, **numbers: object) -> None:
    """Insist on finite numbers above 0, such as seconds.

    :param at_most: the largest that is accepted.
    :raises ValueError: naming the argument and its value.
    """
    for name, value in numbers.items():
        if not is_number(value, 0, at_most):
            upper = "" if math.isinf(at_most) else f" and at most {at_most:g}"
            raise ValueError(f"{name} must be a finite number above 0{upper}, not {value!r}")


def answer_of(answer: Any) -> bool:
    """Return a yes or no that a user's function gave.

    :raises TypeError: for an awaitable, which is always true without having said so.
    """
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError("what is asked for a decision may not be async")
    return bool(answer)
