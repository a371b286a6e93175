"""What one request asks of the limiter, laid out as the counters that a script sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Protocol

from flask_redis_guard.client.script import Script, read_lua
from flask_redis_guard.core.rates import MAX_LIMIT, Decision, Rate, RateState, check_cost
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.limiting.algorithms import by_code
from flask_redis_guard.limiting.keys import KeyMaker, Subject

#: The first byte of what judge.lua is told: to charge, or only to look.
HIT: Final = b"h"
PEEK: Final = b"p"

#: Numbers that the script answers for each counter.
REPLY_WIDTH: Final = 6
#: Where the parts of algorithms stand in judge.lua and refund.lua.
_PLACE: Final = "-- [algorithms]\n"


@cache
def judge_script(algorithms: bytes) -> Script:
    """The script that judges rates of these algorithms.

    :param algorithms: their codes in order, as in :func:`.keys.rate_head`.
    """
    express = by_code(algorithms[0]).lua("express") if len(algorithms) == 1 else ""
    text = read_lua(__package__, "clock.lua") + express + _composed("judge", algorithms)
    return Script("rate limit", text)


@cache
def refund_script(algorithms: bytes) -> Script:
    """The script that gives back what rates of these algorithms were charged."""
    text = read_lua(__package__, "clock.lua") + _composed("refund", algorithms)
    return Script("rate limit refund", text)


def _composed(section: str, algorithms: bytes) -> str:
    parts = "".join(by_code(code).lua(section) for code in algorithms)
    return read_lua(__package__, "codec.lua", f"{section}.lua").replace(_PLACE, parts)


def algorithms_of(rows: Iterable[Row]) -> bytes:
    """Return the codes of the algorithms that count these rows, in order."""
    return bytes(sorted({row.head[0] for row in rows}))


@dataclass(slots=True)  # not frozen: one is made for each request, and freezing it takes longest
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
        if type(self.cost) is not int or self.cost < 1:
            check_cost(self.cost)


@dataclass(slots=True, eq=False)
class Row:
    """One counter in one request, and what became of it.

    :param head: what scripts are told of the rate; see :func:`.keys.rate_head`.
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

    def refund_argument(self) -> bytes:
        """What refund.lua is told about the counter."""
        first, second = self.marks
        return b"%b%b%b%b" % (
            self.head,
            self.cost.to_bytes(5, "big"),
            first.to_bytes(7, "big"),
            second.to_bytes(7, "big"),
        )


def judge_argument(head: bytes, cost: int, group: int = 0) -> bytes:
    """What judge.lua is told about a counter: its head, cost (5 bytes) and group (2)."""
    return head + (cost << 16 | group).to_bytes(7, "big")


class Issuer(Protocol):
    """Who charged: nobody else can give back what it took."""

    def give_back(self, rows: Sequence[Row]) -> None:
        """Give these rows back what they were charged, as far as it still counts."""


@dataclass(slots=True, eq=False)
class Receipt:
    """What a refundable charge took, and from whom; good for one refund."""

    issuer: Issuer
    rows: list[Row] = field(default_factory=list)

    def redeem(self) -> list[Row]:
        """The rows to give back, the first time; nothing afterwards."""
        rows, self.rows = self.rows, []
        return rows


def refund(decisions: Iterable[Decision]) -> None:
    """Give back what refundable charges took, each where it was charged.

    :raises RedisUnavailable: if one of them cannot; the others have been given back all the same.
    """
    by_issuer: dict[Issuer, list[Row]] = {}
    for decision in decisions:
        if isinstance(decision.receipt, Receipt):
            rows = decision.receipt.redeem()
            by_issuer.setdefault(decision.receipt.issuer, []).extend(rows)
    failure: RedisUnavailable | None = None
    for issuer, rows in by_issuer.items():
        try:
            issuer.give_back(rows)
        except RedisUnavailable as error:
            failure = error
    if failure is not None:
        raise failure


class Plan:
    """The counters of one request: each once, however many charges name it.

    :param charges: what is asked.
    :param keys: names the counters.
    :param issuer: who charges them.
    :raises TypeError: for a subject of an unknown type.
    """

    def __init__(self, charges: Sequence[Charge], keys: KeyMaker, issuer: Issuer) -> None:
        self.charges = charges
        self._issuer = issuer
        self.refused = False
        self._by_charge: list[list[Row]] = []
        by_key: dict[bytes, Row] = {}
        for index, charge in enumerate(charges):
            group = index + 1 if charge.shadow else 0
            cost = min(charge.cost, MAX_LIMIT + 1)  # no limit is higher, and a double holds it
            mine = []
            tag = keys.tag(charge.subject)
            for rate, prefix, head in keys.limits(charge.rates, charge.scope):
                key = prefix + tag
                row = by_key.get(key)
                if row is None:
                    row = by_key[key] = Row(key, rate, head, cost, group, charge.refundable, index)
                else:
                    row.join(cost, group, charge.refundable)
                mine.append(row)
            self._by_charge.append(mine)
        self.rows = list(by_key.values())

    def take_reply(self, rows: Sequence[Row], reply: Sequence[int], *, hit: bool) -> None:
        """Read what judge.lua answered about these rows."""
        full = set()
        for at, row in zip(range(0, len(reply), REPLY_WIDTH), rows, strict=True):
            room, remaining, reset, retry, first, second = reply[at : at + REPLY_WIDTH]
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
                row.state = row.state._replace(remaining=remaining)

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
            mine = []
            for row, rate in zip(rows, charge.rates, strict=True):
                state = row.state if states is None else states.get(row.key)
                if state is not None:  # under the name that the charge gives its rate
                    mine.append(state if state.rate is rate else state._replace(rate=rate))
            if remembered:
                found.append(remembered_decision(mine, charge.rates[0]))
                continue
            receipt = None
            if charge.refundable:
                # Each once: two rates of one charge may be one counter under two names.
                mine_alone = (r for r in rows if r.refundable and r.owner == index and r.charged)
                kept = list(dict.fromkeys(mine_alone))
                receipt = Receipt(self._issuer, kept) if kept else None
            found.append(Decision.of(mine, receipt=receipt))
        return found


def remembered_decision(states: Sequence[RateState], rate: Rate) -> Decision:
    """Return what a remembered refusal says about a charge.

    :param states: of those of its rates that were asked about then.
    :param rate: its first.
    """
    if states:
        return Decision.of(states, remembered=True)
    return Decision(True, rate.limit, 0, 0.0, 0.0, rate, (), True)
