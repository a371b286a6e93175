"""What a response tells of its limits: ``RateLimit``, ``RateLimit-Policy``, ``X-RateLimit-*``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from flask import Response

from flask_redis_guard.core.rates import Decision, Rate, RateState


def rate_limit_headers(response: Response, decisions: Iterable[Decision], style: str) -> None:
    """Add the headers that name every limit of the request.

    :param response: the response.
    :param decisions: the decisions of the limits that can refuse.
    :param style: ``draft`` (draft-ietf-httpapi-ratelimit-headers-10), ``legacy``, ``both`` or
        ``none``.
    """
    states = [state for decision in decisions for state in decision.states]
    if not states or style == "none":
        return
    if style in ("draft", "both"):
        names = policy_names(state.rate for state in states)
        response.headers["RateLimit-Policy"] = ", ".join(
            f'"{name}";q={state.rate.limit};w={state.rate.per_seconds}'
            for name, state in zip(names, states, strict=True)
        )
        response.headers["RateLimit"] = ", ".join(
            f'"{name}";r={state.remaining};t={_seconds(state)}'
            for name, state in zip(names, states, strict=True)
        )
    if style in ("legacy", "both"):
        worst = min(states, key=lambda state: (state.allowed, state.remaining))
        response.headers["X-RateLimit-Limit"] = str(worst.rate.limit)
        response.headers["X-RateLimit-Remaining"] = str(worst.remaining)
        response.headers["X-RateLimit-Reset"] = str(math.ceil(time.time()) + _seconds(worst))


def policy_names(rates: Iterable[Rate]) -> list[str]:
    """Return a name for each rate, unique within the list, as a structured field can hold it."""
    names: list[str] = []
    for rate in rates:
        plain = "".join(c for c in rate.name or str(rate) if " " <= c <= "~" and c not in '"\\')
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain} ({number})"
        names.append(name)
    return names


def _seconds(state: RateState) -> int:
    """Return the seconds until more is available: never earlier than it is."""
    return math.ceil(state.reset_after if state.allowed else state.retry_after)
