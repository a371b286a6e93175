"""Limits that apply together again and again, with all that no request changes made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from flask_redis_guard.core.rates import Decision, Rate, RateState
from flask_redis_guard.events import LimitsDecided
from flask_redis_guard.limiting.keys import Subject
from flask_redis_guard.limiting.plan import (
    HIT,
    REPLY_WIDTH,
    Charge,
    judge_argument,
    judge_script,
    remembered_decision,
)

if TYPE_CHECKING:
    from flask_redis_guard.limiting.limiter import RateLimiter

#: Bytes of the hash tag that a subject is in a key.
_TAG: Final = b"{%b}" % (20 * b"-")


@dataclass(frozen=True, slots=True)
class Terms:
    """One limit, for any subject.

    :param rates: its rates, at least one; all of them have to have room.
    :param scope: what is counted: the same rates in the same scope share their counters.
    :param refundable: may be given back afterwards; see :class:`.plan.Charge`.
    :param shadow: counts, but refuses nothing.
    :raises ValueError: for no rates.
    """

    rates: tuple[Rate, ...]
    scope: str = ""
    refundable: bool = False
    shadow: bool = False

    def __post_init__(self) -> None:
        if not self.rates:
            raise ValueError("rates: a charge needs at least one rate")


class CompiledLimits:
    """Judges the same limits for one request after the other; from :meth:`.RateLimiter.compile`.

    An example: what an endpoint keeps, and what it asks for each request::

        limits = guard.limiter.compile([Terms(parse_rates("5/minute; 100/day"), "login")])
        (decision,) = limits.judge(["192.0.2.1"])

    :param limiter: asks Redis.
    :param terms: the limits.
    """

    __slots__ = (
        "_limiter",
        "_owners",
        "_packed",
        "_prefixes",
        "_rates",
        "_script",
        "_shadows",
        "_spans",
        "_width",
        "terms",
    )

    def __init__(self, limiter: RateLimiter, terms: Sequence[Terms]) -> None:
        self.terms = tuple(terms)
        self._limiter = limiter
        self._shadows = [each.shadow for each in self.terms]
        limits = [limiter.keys.limits(each.rates, each.scope) for each in self.terms]
        self._rates = [limit.rate for each in limits for limit in each]
        self._prefixes = [limit.prefix for each in limits for limit in each]
        self._owners = [owner for owner, each in enumerate(limits) for _ in each]
        ends = [sum(len(each) for each in limits[: number + 1]) for number in range(len(limits))]
        self._spans = list(zip([0, *ends], ends, strict=False))
        self._width = REPLY_WIDTH * len(self._rates)
        heads = [limit.head for each in limits for limit in each]
        codes = bytes(sorted({head[0] for head in heads}))
        #: What is sent where each costs 1, but for the subjects; nothing where a plan has to be
        #: made for each request: counters may be named twice, be refunded or refuse nothing.
        self._packed: bytes | None = None
        plain = not any(each.refundable or each.shadow for each in self.terms)
        if plain and 0 < len(set(self._prefixes)) == len(self._prefixes):
            self._script = judge_script(codes)
            self._packed = self._pack(heads)

    def _pack(self, heads: Sequence[bytes]) -> bytes:
        keys = [prefix + _TAG for prefix in self._prefixes]
        asked = HIT + b"".join([judge_argument(head, 1) for head in heads])
        packed = self._script.pack(len(keys), [*keys, asked])
        return packed.replace(b"%", b"%%").replace(_TAG, b"%b")

    def judge(
        self, subjects: Sequence[Subject], costs: Sequence[int] | None = None
    ) -> list[Decision]:
        """Judge one request, as :meth:`.RateLimiter.judge`.

        :param subjects: who is counted, for each of the terms.
        :param costs: units to charge, for each of the terms; 1 if not given.
        :returns: one decision for each of the terms.
        :raises RedisUnavailable: if Redis gave no answer, or an error.
        :raises ValueError: for a bad cost, or another number of subjects or costs than of terms.
        """
        number = len(self.terms)
        if len(subjects) != number or (costs is not None and len(costs) != number):
            raise ValueError(f"expected {number} subjects and costs")
        limiter = self._limiter
        if self._packed is None or costs is not None:
            decisions = limiter.judge_plan(self._charges(subjects, costs))
        else:
            if number == 1:
                every = (limiter.keys.tag(subjects[0]),) * len(self._rates)
            else:
                tags = self._tags(subjects)
                every = tuple([tags[owner] for owner in self._owners])
            if number > 1 and every.count(every[0]) != len(every) and limiter.is_cluster:
                decisions = limiter.judge_plan(self._charges(subjects, costs))  # in several slots
            else:
                decisions = self._decide(self._packed % every, every)
        bus = limiter.bus
        if bus.decisions:
            bus.emit(LimitsDecided(decisions, self._shadows))
        return decisions

    def _charges(
        self, subjects: Sequence[Subject], costs: Sequence[int] | None = None
    ) -> list[Charge]:
        return [
            Charge(each.rates, subject, cost, each.scope, each.refundable, each.shadow)
            for each, subject, cost in zip(
                self.terms, subjects, costs or [1] * len(self.terms), strict=True
            )
        ]

    def _tags(self, subjects: Sequence[Subject]) -> list[bytes]:
        make = self._limiter.keys.tag
        tags = [make(subjects[0])]
        for before, subject in pairwise(subjects):  # one subject of several limits is hashed once
            tags.append(tags[-1] if subject is before else make(subject))
        return tags

    def _decide(self, packed: bytes, tags: tuple[bytes, ...]) -> list[Decision]:
        """Ask about all counters.

        :param packed: what is sent.
        :param tags: the subject of each counter.
        """
        limiter, rates = self._limiter, self._rates
        denials = limiter.denials
        if denials.entries:
            remembered = self._remembered(tags)
            if remembered is not None:
                return remembered
        sent = limiter.monotonic()
        script = self._script
        numbers = script.read_numbers(script.ask(limiter.client(), packed), self._width)
        states, at, refused = [], 0, False
        for rate in rates:
            room, remaining, reset, retry = numbers[at : at + 4]
            states.append(RateState(rate, room == 1, remaining, reset / 1e6, retry / 1e6))
            at += REPLY_WIDTH
            if room != 1:
                refused = True
        if refused or denials.entries:
            self._note(tags, states, sent if refused else None)
        if at == REPLY_WIDTH:  # Decision.of(), for the one that most have
            allowed, reset_after = not refused, reset / 1e6
            known = tuple(states)
            return [Decision(allowed, rate.limit, remaining, reset_after, retry / 1e6, rate, known)]
        return [Decision.of(states[begin:end]) for begin, end in self._spans]

    def _keys(self, tags: tuple[bytes, ...]) -> list[bytes]:
        return [prefix + tag for prefix, tag in zip(self._prefixes, tags, strict=True)]

    def _remembered(self, tags: tuple[bytes, ...]) -> list[Decision] | None:
        denials, keys = self._limiter.denials, self._keys(tags)
        for key in keys:
            denial = denials.find(key, 1)
            if denial is not None:
                known = denials.states(denial)
                return [
                    remembered_decision(
                        [
                            _named(known[keys[number]], self._rates[number])
                            for number in range(begin, end)
                            if keys[number] in known
                        ],
                        self._rates[begin],
                    )
                    for begin, end in self._spans
                ]
        return None

    def _note(self, tags: tuple[bytes, ...], states: list[RateState], sent: float | None) -> None:
        """Remember a refusal, or forget one that is over.

        :param sent: when it was sent, if it was refused.
        """
        denials = self._limiter.denials
        by_key = dict(zip(self._keys(tags), states, strict=True))
        for key, state in by_key.items():
            if sent is None:
                denials.admitted(key, 1)
            elif not state.allowed:
                denials.remember(key, 1, sent, by_key)


def _named(state: RateState, rate: Rate) -> RateState:
    """Return a state under the name that a limit gives its rate."""
    return state if state.rate is rate else state._replace(rate=rate)
