"""What a limit is and what a decision about it says: plain values, no I/O.

Times inside the limiter are whole microseconds of the store's clock; the values here speak seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, get_args

from flask_redis_guard.core.arguments import is_count

SLIDING_WINDOW: Final = "sliding-window"
TOKEN_BUCKET: Final = "token-bucket"  # noqa: S105
FIXED_WINDOW: Final = "fixed-window"
#: The names of all algorithms, for users and their type checkers.
AlgorithmName = Literal["sliding-window", "token-bucket", "fixed-window"]
ALGORITHMS: Final[tuple[str, ...]] = get_args(AlgorithmName)

#: Counters are stored in four bytes.
MAX_LIMIT: Final = 2**32 - 1

#: Ten years, in seconds. Sums of clock readings and periods stay far below 2**53, where a Lua
#: number (a double) stops being able to hold every integer.
MAX_PERIOD: Final = 3650 * 86_400

#: A token bucket multiplies a remainder below ``limit`` by a cost of up to ``burst``; under 2**50
#: the product and its quotient by ``limit`` are exact in a double.
MAX_BUCKET_PRODUCT: Final = 2**50

#: Seconds in each unit; a month is 30 days and a year twelve of them, as in ``limits``.
UNITS: Final = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 30 * 86_400,
    "year": 360 * 86_400,
}

_SEPARATORS = re.compile(r"[,;|]")
_SINGLE = re.compile(
    r"\s*([0-9]{1,15})\s*(?:/|\s*per\s*)\s*([0-9]{1,15})?\s*([a-z]+?)s?\s*",
    re.IGNORECASE | re.ASCII,
)
_ACCEPTED = (
    "such as '5/minute', '5 per minute', '1 per 15 minutes' or several of them joined by ';' "
    f"(units: {', '.join(UNITS)})"
)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units of cost in so much time.

    :param limit: units of cost allowed in each period, at least 1.
    :param per_seconds: the period in whole seconds, at most ten years.
    :param burst: token bucket only: the most that may be taken at once; ``limit`` if not given.
        Giving it without an algorithm chooses the token bucket.
    :param algorithm: ``"sliding-window"``, ``"token-bucket"`` or ``"fixed-window"``; ``None`` means
        the first, or with a burst the second.
    :param name: what headers and signals call this limit; no part of what is counted.
    :raises ValueError: naming the argument and what it accepts.
    """

    limit: int
    per_seconds: int
    burst: int | None = None
    algorithm: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        _check_whole("limit", self.limit, MAX_LIMIT)
        _check_whole("per_seconds", self.per_seconds, MAX_PERIOD)
        if self.algorithm is None and self.burst is not None:
            object.__setattr__(self, "algorithm", TOKEN_BUCKET)
        if self.algorithm is not None and self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: {self.algorithm!r} is none of {', '.join(ALGORITHMS)}")
        if self.name is not None and not isinstance(self.name, str):
            raise ValueError(f"name: expected text or None, not {self.name!r}")
        if self.effective_algorithm == TOKEN_BUCKET:
            self._check_bucket()
        elif self.burst is not None:
            raise ValueError(f"burst: only {TOKEN_BUCKET} has one, not {self.algorithm}")

    def _check_bucket(self) -> None:
        if self.burst is not None:
            _check_whole("burst", self.burst, MAX_LIMIT)
        if self.limit * self.capacity > MAX_BUCKET_PRODUCT:
            raise ValueError(
                f"burst: limit x burst of a {TOKEN_BUCKET} may be at most {MAX_BUCKET_PRODUCT}, "
                f"not {self.limit} x {self.capacity}: beyond it the arithmetic is not exact"
            )
        if self.capacity * self.per_seconds > MAX_PERIOD * self.limit:
            raise ValueError(
                f"burst: {self.capacity} at {self} would take more than ten years to refill"
            )

    @property
    def effective_algorithm(self) -> str:
        """The algorithm that counts this rate: the chosen one or ``"sliding-window"``."""
        return self.algorithm or SLIDING_WINDOW

    @property
    def capacity(self) -> int:
        """The most that can be admitted at once: ``burst`` of a token bucket, else ``limit``."""
        return self.limit if self.burst is None else self.burst

    def __str__(self) -> str:
        """The canonical text of limit and period, which :func:`parse_rates` reads back."""
        unit = next(
            u for u in ("day", "hour", "minute", "second") if not self.per_seconds % UNITS[u]
        )
        count = self.per_seconds // UNITS[unit]
        return f"{self.limit}/{unit}" if count == 1 else f"{self.limit}/{count} {unit}s"


def _check_whole(name: str, value: object, maximum: int) -> None:
    if not is_count(value, 1, maximum):
        raise ValueError(f"{name}: expected a whole number from 1 to {maximum}, not {value!r}")


def check_cost(cost: object) -> int:
    """The cost if it is a positive whole number.

    :raises ValueError: if it is anything else, so that no odd cost is taken for a free one.
    """
    if not is_count(cost):
        raise ValueError(f"cost: expected a positive whole number, not {cost!r}")
    return cost


def parse_rates(
    rates: str | Rate | Iterable[str | Rate], *, algorithm: str | None = None
) -> tuple[Rate, ...]:
    """Rates from the notation that users of ``limits`` know, from :class:`Rate`, or from a mixture.

    :param rates: ``"5/minute; 100/day"``, a :class:`Rate`, or an iterable of either. ``,`` and
        ``|`` separate as ``;`` does.
    :param algorithm: the algorithm of those rates that name none.
    :returns: at least one rate, in the order given, without repetitions.
    :raises ValueError: naming what could not be read and what is accepted.
    """
    if isinstance(rates, str) and algorithm is None:
        return _parse_text(rates)
    given: object = (rates,) if isinstance(rates, (Rate, str)) else rates
    if isinstance(given, (bytes, bytearray)) or not isinstance(given, (tuple, Iterable)):
        raise _no_rate(given)
    found: list[Rate] = []
    for rate in given:
        if isinstance(rate, Rate):
            found.append(rate)
        elif isinstance(rate, str):
            found += _parse_text(rate)
        else:
            raise _no_rate(rate)
    if not found:
        raise ValueError(f"rates: expected at least one rate, {_ACCEPTED}")
    if algorithm is not None:
        found = [r if r.algorithm else replace(r, algorithm=algorithm) for r in found]
    return tuple(dict.fromkeys(found)) if len(found) > 1 else (found[0],)


@lru_cache(1024)
def _parse_text(text: str) -> tuple[Rate, ...]:
    return tuple(dict.fromkeys(_parse_single(part) for part in _SEPARATORS.split(text)))


def _no_rate(found: object) -> ValueError:
    shown = repr(found)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ValueError(f"rates: {shown} is no rate; accepted: Rate or text {_ACCEPTED}")


def _parse_single(text: str) -> Rate:
    match = _SINGLE.fullmatch(text)
    unit = UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise _no_rate(text.strip())
    return Rate(int(match[1]), unit * int(match[2] or 1))


class RateState(NamedTuple):
    """What one rate said about one request.

    :param rate: the rate.
    :param allowed: whether this rate had room for the cost.
    :param remaining: what could still be taken at once, after this request.
    :param reset_after: seconds until all of it can be taken again if nothing more is charged.
    :param retry_after: seconds until this rate has room for the refused cost; 0 if it had. A cost
        above the rate's capacity never fits: then this is the period.
    """

    rate: Rate
    allowed: bool
    remaining: int
    reset_after: float
    retry_after: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What the limiter says about one charge; it speaks for the most restrictive of its rates.

    Refused, that is the refusing rate that has room last, so that ``retry_after`` is the first
    moment at which every rate has room; admitted, it is the rate with the least remaining.

    :param allowed: whether every rate of the charge had room.
    :param limit: the limit of ``rate``.
    :param remaining: units of cost that ``rate`` would still admit at once.
    :param reset_after: seconds until ``rate`` is wholly free again.
    :param retry_after: seconds until the same charge fits; 0 if it did.
    :param rate: the rate that this decision speaks for.
    :param states: every rate's own state, in the order of the charge. A remembered refusal knows
        those rates only that were asked about together.
    :param remembered: answered from the local cache of refusals, without asking the store.
    :param receipt: what a refund needs; only refundable charges that consumed something have one.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_after: float
    retry_after: float
    rate: Rate
    states: tuple[RateState, ...] = ()
    remembered: bool = False
    receipt: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, states: Iterable[RateState], *, remembered: bool = False, receipt: Any = None
    ) -> Decision:
        """The decision that follows from the states of a charge's rates (at least one)."""
        states = tuple(states)
        if len(states) == 1:
            worst = states[0]
        elif refusing := [s for s in states if not s.allowed]:
            worst = max(refusing, key=lambda s: s.retry_after)
        else:
            worst = min(states, key=lambda s: (s.remaining, -s.reset_after))
        rate, allowed, remaining, reset, retry = worst
        return cls(allowed, rate.limit, remaining, reset, retry, rate, states, remembered, receipt)
