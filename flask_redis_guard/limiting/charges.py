"""What one request asks of the limiter, laid out as the counters that a script sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from flask_redis_guard.core.rates import (
    EXACT_LIMIT,
    FIXED_WINDOW,
    MAX_LIMIT,
    TOKEN_BUCKET,
    Decision,
    Rate,
    RateState,
    check_cost,
)

from .keys import KeyMaker, Subject

#: Numbers that the script answers for each counter.
REPLY_WIDTH: Final = 6


@dataclass(frozen=True, slots=True)
class Charge:
    """One limit as it applies to one request.

    :param rates: its rates, at least one; all of them have to have room.
    :param subject: who is counted.
    :param cost: units to charge to each rate.
    :param scope: what is counted: the same rates in the same scope share their counters.
    :param refundable: may be given back afterwards. Such a charge is always asked of the store,
        since a remembered refusal could be undone by a refund elsewhere; charges that share a
        counter should agree on it.
    :param shadow: counts, but refuses nothing.
    :raises ValueError: for no rates, or a cost that is no positive whole number.
    """

    rates: tuple[Rate, ...]
    subject: Subject
    cost: int = 1
    scope: str = ""
    refundable: bool = False
    shadow: bool = False

    def __post_init__(self) -> None:
        if not self.rates:
            raise ValueError("rates: a charge needs at least one rate")
        check_cost(self.cost)


@dataclass(slots=True, eq=False)
class Row:
    """One counter in one request, and what became of it.

    :param head: what scripts are told of the rate; see :func:`rate_head`.
    :param group: 0 if the counter can refuse the request, a number of its own for each shadow.
    :param owner: the charge that named it first.
    """

    key: bytes
    rate: Rate
    head: bytes
    cost: int
    group: int
    refundable: bool
    owner: int
    state: RateState | None = None
    charged: bool = False
    marks: tuple[int, int] = (0, 0)

    def join(self, cost: int, group: int, refundable: bool) -> None:
        """The counter is named again: the strictest of both applies, once."""
        self.cost = max(self.cost, cost)
        self.group = min(self.group, group)
        self.refundable = self.refundable and refundable

    def judge_argument(self) -> bytes:
        """What judge.lua is told about the counter."""
        enforced = self.head + self.cost.to_bytes(5, "big")
        return enforced + b"%d" % self.group if self.group else enforced

    def refund_argument(self) -> bytes:
        """What refund.lua is told about the counter."""
        first, second = self.marks
        return b"%b%b%b%b" % (
            self.head,
            self.cost.to_bytes(5, "big"),
            first.to_bytes(7, "big"),
            second.to_bytes(7, "big"),
        )


@lru_cache(1024)
def rate_head(rate: Rate) -> bytes:
    """Algorithm (a byte), limit (4), period in microseconds (7) and capacity (4) for scripts."""
    if rate.effective_algorithm == TOKEN_BUCKET:
        code = b"t"
    elif rate.effective_algorithm == FIXED_WINDOW:
        code = b"f"
    else:
        code = b"l" if rate.limit <= EXACT_LIMIT else b"w"
    period = rate.per_seconds * 1_000_000
    numbers = ((rate.limit, 4), (period, 7), (rate.capacity, 4))
    return code + b"".join(number.to_bytes(width, "big") for number, width in numbers)


@dataclass(slots=True, eq=False)
class Receipt:
    """What a refundable charge took; good for one refund."""

    rows: list[Row] = field(default_factory=list)

    def redeem(self) -> list[Row]:
        """The rows to give back, the first time; nothing afterwards."""
        rows, self.rows = self.rows, []
        return rows


class Plan:
    """The counters of one request: each once, however many charges name it.

    :param charges: what is asked.
    :param keys: names the counters.
    :raises TypeError: for a subject of an unknown type.
    """

    def __init__(self, charges: Sequence[Charge], keys: KeyMaker) -> None:
        self.charges = charges
        self.rows: list[Row] = []
        self.refused = False
        self._by_charge: list[list[Row]] = []
        by_key: dict[bytes, Row] = {}
        for index, charge in enumerate(charges):
            group = index + 1 if charge.shadow else 0
            cost = min(charge.cost, MAX_LIMIT + 1)  # no limit is higher, and a double holds it
            mine = []
            tag = keys.tag(charge.subject)
            for rate in charge.rates:
                key = keys.limit(rate, charge.scope) + tag
                row = by_key.get(key)
                if row is None:
                    head = rate_head(rate)
                    row = by_key[key] = Row(key, rate, head, cost, group, charge.refundable, index)
                    self.rows.append(row)
                else:
                    row.join(cost, group, charge.refundable)
                mine.append(row)
            self._by_charge.append(mine)

    def take_reply(self, rows: Sequence[Row], reply: Sequence[int], *, hit: bool) -> None:
        """Read what judge.lua answered about these rows."""
        full = set()
        for at, row in enumerate(rows):
            room, remaining, reset, retry, first, second = reply[
                REPLY_WIDTH * at : REPLY_WIDTH * (at + 1)
            ]
            row.state = RateState(row.rate, room == 1, remaining, reset / 1e6, retry / 1e6)
            row.marks = (first, second)
            if room != 1:
                full.add(row.group)
        for row in rows:
            row.charged = hit and 0 not in full and row.group not in full
        self.refused = self.refused or 0 in full

    def returned(self, rows: Sequence[Row]) -> None:
        """Note that these rows were given back what they were charged."""
        for row in rows:
            row.charged = False
            if row.state is not None:
                remaining = min(row.rate.capacity, row.state.remaining + row.cost)
                row.state = replace(row.state, remaining=remaining)

    def states(self) -> dict[bytes, RateState]:
        """What is known of the counters, by key."""
        return {row.key: row.state for row in self.rows if row.state is not None}

    def decisions(
        self, states: Mapping[bytes, RateState] | None = None, *, remembered: bool = False
    ) -> list[Decision]:
        """One decision for each charge.

        :param states: what is known of the counters instead of what the store just said.
        """
        found = []
        for index, (charge, rows) in enumerate(zip(self.charges, self._by_charge, strict=True)):
            pairs = zip(rows, charge.rates, strict=True)
            if states is None:
                mine = [_named(row.state, rate) for row, rate in pairs if row.state is not None]
            else:
                mine = [_named(states[r.key], rate) for r, rate in pairs if r.key in states]
            if not mine:
                found.append(_unasked(charge.rates[0]))
                continue
            receipt = None
            if charge.refundable:
                kept = [r for r in rows if r.refundable and r.owner == index and r.charged]
                receipt = Receipt(kept) if kept else None
            found.append(Decision.of(mine, remembered=remembered, receipt=receipt))
        return found


def _named(state: RateState, rate: Rate) -> RateState:
    """The same state under the name that a charge gives its rate."""
    return state if state.rate is rate else replace(state, rate=rate)


def _unasked(rate: Rate) -> Decision:
    """For a charge that nothing is known about, since another one's refusal was remembered."""
    return Decision(True, rate.limit, 0, 0.0, 0.0, rate, (), True)
