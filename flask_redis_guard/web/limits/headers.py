"""What a response tells of its limits: ``RateLimit``, ``RateLimit-Policy``, ``X-RateLimit-*``.

The fields are those of draft-ietf-httpapi-ratelimit-headers-11.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from flask_redis_guard.core.rates import Decision, Rate, RateState

#: Statuses whose answer a client follows at once: what is left is no reason to wait with that.
_REDIRECTS = frozenset({"300", "301", "302", "303", "307", "308"})

#: How the names of the draft's fields may begin; those of others begin with ``X-``.
_BEGINNINGS = frozenset({"RateLimit", "Ratelimit", "ratelimit", "RATELIMIT"})


class Policy(NamedTuple):
    """One rate of one limit, and how it stands."""

    rate: Rate
    #: ``None`` where nothing is known of it now, since another refusal was remembered.
    state: RateState | None
    #: Whether it is about what goes on at once.
    concurrent: bool = False


def policies_of(rates: Sequence[Rate], decision: Decision) -> list[Policy]:
    """Return the policies of a limit.

    :param rates: its rates.
    :param decision: the decision about them.
    """
    states = decision.states
    if len(states) == len(rates):  # what stands in for Redis has its own share of each rate
        return [Policy(state.rate, state) for state in states]
    known = {state.rate: state for state in states}
    return [Policy(rate, known.get(rate)) for rate in rates]


Header = tuple[str, str]


def rate_limit_fields(policies: Sequence[Policy], style: str) -> list[Header]:
    """Return the headers that name every limit of a request.

    :param policies: of the limits that can refuse.
    :param style: ``draft``, ``legacy``, ``both`` or ``none``.
    """
    found: list[Header] = []
    if not policies or style == "none":
        return found
    known = [policy.state for policy in policies if policy.state is not None]
    if style != "legacy":
        allowed, items = _policy_field(tuple((p.rate, p.concurrent) for p in policies))
        found.append(("RateLimit-Policy", allowed))
        told = [
            f"{item};r={policy.state.remaining}{_reset(policy.state, policy.concurrent)}"
            for item, policy in zip(items, policies, strict=True)
            if policy.state is not None
        ]
        if told:
            found.append(("RateLimit", ", ".join(told)))
    if style != "draft" and known:
        worst = min(known, key=lambda state: (state.allowed, state.remaining))
        found.append(("X-RateLimit-Limit", str(worst.rate.limit)))
        found.append(("X-RateLimit-Remaining", str(worst.remaining)))
        reset = math.ceil(time.time()) + _seconds(worst)
        found.append(("X-RateLimit-Reset", str(reset)))
    return found


def with_fields(status: str, headers: list[Header], fields: list[Header]) -> list[Header]:
    """Return the headers of a response together with what it tells of its limits.

    :param status: of the response, such as ``200 OK``.
    :param fields: take the place of headers of the same names.
    """
    if status[:3] in _REDIRECTS:
        return headers
    for name, _ in headers:
        if name[:9] in _BEGINNINGS or name[:2] in ("X-", "x-"):
            names = {field.lower() for field, _ in fields}
            headers = [header for header in headers if header[0].lower() not in names]
            break
    return headers + fields


class Fields:
    """The fields of limits that are the same at every request, as far as they never change.

    :param policies: the rates, and whether each is about what goes on at once.
    """

    __slots__ = ("_items", "_policy")

    def __init__(self, policies: tuple[tuple[Rate, bool], ...]) -> None:
        self._policy, self._items = _policy_field(policies)

    def of(self, decisions: Sequence[Decision]) -> list[Header] | None:
        """Return the fields of the draft, as :func:`rate_limit_fields`.

        :returns: ``None`` where something of the limits is unknown.
        """
        if len(decisions) == 1:
            states = decisions[0].states
        else:
            states = tuple([state for decision in decisions for state in decision.states])
        if len(states) != len(self._items):
            return None
        return [("RateLimit-Policy", self._policy), ("RateLimit", self._told(states))]

    def violated(self, decisions: Sequence[Decision]) -> tuple[str, ...] | None:
        """Return the names of the policies that refuse; ``None`` where not all is known."""
        states = tuple([state for decision in decisions for state in decision.states])
        if len(states) != len(self._items):
            return None
        pairs = zip(self._items, states, strict=True)
        return tuple([item[1:-1] for item, state in pairs if not state.allowed])

    def _told(self, states: Sequence[RateState]) -> str:
        told, between = "", ""
        for item, state in zip(self._items, states, strict=True):
            rate, allowed, remaining, reset, retry = state
            after = int(-(-(reset if allowed else retry) // 1))
            least = -(-remaining * rate.per_seconds // rate.limit)
            seconds = least if least > after else after  # noqa: FURB136 - twice as fast as max()
            told = f"{told}{between}{item};r={remaining};t={seconds}"
            between = ", "
        return told


def violated(policies: Sequence[Policy]) -> list[str]:
    """Return the names, as the header has them, of the policies that refuse."""
    names = policy_names(policy.rate for policy in policies)
    return [
        name
        for name, policy in zip(names, policies, strict=True)
        if policy.state is not None and not policy.state.allowed
    ]


@lru_cache(1024)
def _policy_field(policies: tuple[tuple[Rate, bool], ...]) -> tuple[str, list[str]]:
    """Return ``RateLimit-Policy``, which is the same at every request, and the names in it."""
    items = [f'"{name}"' for name in policy_names(rate for rate, _ in policies)]
    field = ", ".join(
        f'{item};q={rate.limit};qu="concurrent-requests"'
        if concurrent
        else f"{item};q={rate.limit};w={rate.per_seconds}"
        for item, (rate, concurrent) in zip(items, policies, strict=True)
    )
    return field, items


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


def _reset(state: RateState, concurrent: bool) -> str:
    if concurrent and state.allowed:  # nobody knows when one of those that go on will end
        return ""
    return f";t={_seconds(state)}"


def _seconds(state: RateState) -> int:
    """Return the seconds until more is available: never earlier than it is.

    A client that spends what remains within them keeps to the rate.
    """
    rate = state.rate
    after = state.reset_after if state.allowed else state.retry_after
    return max(math.ceil(after), -(-state.remaining * rate.per_seconds // rate.limit))
