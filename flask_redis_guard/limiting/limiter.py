"""The rate limiter: every limit of a request judged in one script call, all charged or none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from flask_redis_guard.client.script import ClientSource, client_getter, guarded, is_cluster
from flask_redis_guard.core.rates import Decision, Rate, check_cost
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.events import Bus
from flask_redis_guard.limiting.compiled import CompiledLimits, Terms
from flask_redis_guard.limiting.denials import DenialCache
from flask_redis_guard.limiting.keys import KeyMaker, Rates, Subject, read_rates
from flask_redis_guard.limiting.local import LocalLimiter
from flask_redis_guard.limiting.plan import (
    HIT,
    PEEK,
    REPLY_WIDTH,
    Charge,
    Plan,
    Row,
    algorithms_of,
    judge_argument,
    judge_script,
    refund,
    refund_script,
)

_log = logging.getLogger(__name__)

#: Sets of limits that are kept ready.
_COMPILED: Final = 1024


class RateLimiter:
    """Counts in Redis or Valkey, with the server's clock; one per app.

    Everything that asks goes through ``judge()``; the other methods are short forms of it.

    On Redis Cluster the limits of one subject share a slot and stay atomic. Those of several
    subjects take one call each, in the order given: if a later one refuses, what earlier ones took
    is given back, so that another request may for a moment meet a limit fuller than it will be.

    :param client: a redis-py client, or a callable that gives one.
    :param prefix: what every key begins with.
    :param secret: keys the hash of subjects; see ``limiting/keys.py``.
    :param denial_cache_size: the most refusals remembered; 0 turns the memory off.
    :param processes: how many processes share each limit while ``local`` stands in.
    :param bus: told of each decision.
    :param monotonic: clock of the denial cache, in seconds.
    """

    def __init__(
        self,
        client: ClientSource,
        *,
        prefix: str = "guard:",
        secret: bytes | None = None,
        denial_cache_size: int = 10_000,
        processes: int = 1,
        bus: Bus | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        #: Gives the client.
        self.client = client_getter(client)
        self.monotonic = monotonic
        self.keys = KeyMaker(prefix, secret)
        self.denials = DenialCache(denial_cache_size, monotonic)
        self.bus = bus or Bus()
        # What hit() and judge() were asked before, ready to be asked again. The first by identity:
        # to hash rates takes longer than all else that finds them.
        self._single: dict[int, tuple[Rates, str, CompiledLimits]] = {}
        self._several = lru_cache(_COMPILED)(self._compiled)
        #: Stands in where a limit says ``on_outage="local"``: the same methods, no Redis.
        self.local = LocalLimiter(self.keys, processes=processes)

    def hit(self, rates: Rates, key: Subject, cost: int = 1, scope: str = "") -> Decision:
        """Charge a subject if all rates have room.

        :param rates: rates as text, as ``"5/minute; 100/day"``, or :class:`.Rate` objects.
        :param key: who is counted: text, bytes, a whole number or a tuple of these.
        :param cost: units to charge.
        :param scope: what is counted. The same rates in the same scope share their counters.
        :raises RedisUnavailable: if Redis gave no answer, or an error.
        :raises ConfigurationError: for a bad rate; it is a ``ValueError``.
        :raises ValueError: for a bad cost.
        :raises TypeError: for a subject of another type.
        """
        known = self._single.get(id(rates))
        if known is not None and known[0] is rates and known[1] == scope:
            compiled = known[2]
        else:
            compiled = self._compiled_rates(rates, scope)
        if type(cost) is int and cost == 1:
            return compiled.judge((key,))[0]
        return compiled.judge((key,), (check_cost(cost),))[0]

    def peek(self, rates: Rates, key: Subject, cost: int = 1, scope: str = "") -> Decision:
        """What :meth:`hit` would say now, without charging. It always asks Redis."""
        plan = Plan([Charge(read_rates(rates), key, cost, scope)], self.keys, self)
        self._ask(plan, plan.rows, PEEK)
        return plan.decisions()[0]

    def reset(self, rates: Rates, key: Subject, cost: int = 1, scope: str = "") -> None:
        """Free a subject of all that it was charged. ``cost`` is taken for symmetry only."""
        rows = Plan([Charge(read_rates(rates), key, cost, scope)], self.keys, self).rows
        keys = [row.key for row in rows]
        guarded("rate limit reset", self.client().delete, *keys)
        self.denials.forget(keys)

    def reset_all(self, rates: Rates, scope: str = "") -> int:
        """Free every subject of these rates, by scanning the keys: for operators.

        :returns: the number of counters deleted.
        """
        deleted = 0
        for rate in read_rates(rates):
            deleted += guarded("rate limit reset", self._delete_matching, rate, scope)
        self.denials.clear()
        return deleted

    def judge(self, charges: Sequence[Charge]) -> list[Decision]:
        """Judge everything that applies to one request, and charge all of it or none.

        The request is admitted if every decision but those of shadow charges is ``allowed``; if
        one is not, nothing was charged, though other decisions say that they had room. A shadow
        charge refuses nothing, and is charged if it has room and the request is admitted. A
        counter named twice is charged once, with the greater cost.

        :param charges: any number; none is no request to Redis.
        :returns: one decision for each charge, in their order. Where a remembered refusal answers,
            a charge that was not asked about then has no ``states``.
        :raises RedisUnavailable: if Redis gave no answer, or an error.
        """
        terms = [Terms(c.rates, c.scope, c.refundable, c.shadow) for c in charges]
        costs = [charge.cost for charge in charges]
        subjects = [charge.subject for charge in charges]
        return self._several(*terms).judge(subjects, None if set(costs) == {1} else costs)

    def compile(self, terms: Sequence[Terms]) -> CompiledLimits:
        """Prepare limits that apply together, so that judging them costs the least.

        What an endpoint or a connection keeps: equal limits are prepared once.

        :param terms: the limits; their subjects and costs are told for each request.
        """
        return self._several(*terms)

    def judge_plan(self, charges: Sequence[Charge]) -> list[Decision]:
        """As ``judge()``, for whatever charges; nobody is told."""
        plan = Plan(charges, self.keys, self)
        if not plan.rows:
            return []
        remembered = self._remembered(plan)
        if remembered is not None:
            return remembered
        sent = self.monotonic()
        asked: list[Row] = []
        try:
            for rows in self._parts(plan.rows):
                self._ask(plan, rows, PEEK if plan.refused else HIT)
                asked += rows
        except RedisUnavailable:
            self._take_back(plan, asked)
            raise
        if plan.refused:
            self._take_back(plan, asked)
        self._remember(plan, sent)
        return plan.decisions()

    @property
    def is_cluster(self) -> bool:
        """Whether the counters of several subjects lie on several servers."""
        return is_cluster(self.client())

    def _compiled(self, *terms: Terms) -> CompiledLimits:
        return CompiledLimits(self, terms)

    def _compiled_rates(self, rates: Rates, scope: str) -> CompiledLimits:
        """Compile the limit of :meth:`hit`, and keep it."""
        compiled = self._several(Terms(read_rates(rates), scope))
        if isinstance(rates, (str, Rate, tuple)):  # what else there is may change
            if len(self._single) >= _COMPILED:
                self._single.clear()
            self._single[id(rates)] = rates, scope, compiled
        return compiled

    def refund(self, *decisions: Decision) -> None:
        """Give back what refundable charges took, as far as it still counts.

        Each decision is good for one refund; one without a ``receipt`` took nothing that could be
        given back and is passed over. What ``local`` charged it gets back.

        :raises RedisUnavailable: if Redis gave no answer, or an error.
        """
        refund(decisions)

    def _remembered(self, plan: Plan) -> list[Decision] | None:
        for row in plan.rows if self.denials else ():
            if not row.group and not row.refundable:
                denial = self.denials.find(row.key, row.cost)
                if denial is not None:
                    return plan.decisions(self.denials.states(denial), remembered=True)
        return None

    def _remember(self, plan: Plan, sent: float) -> None:
        states = plan.states() if plan.refused else {}
        for row in plan.rows if states or self.denials else ():
            if row.refundable or row.group:
                continue
            if row.key in states and not states[row.key].allowed:
                self.denials.remember(row.key, row.cost, sent, states)
            elif row.charged:
                self.denials.admitted(row.key, row.cost)

    def _parts(self, rows: Sequence[Row]) -> Sequence[Sequence[Row]]:
        """Rows by script call: all in one; on Cluster one for each subject, enforced ones first."""
        if len(rows) == 1 or not is_cluster(self.client()):
            return [rows]
        parts: dict[bytes, list[Row]] = {}
        for row in sorted(rows, key=lambda row: row.group > 0):
            parts.setdefault(row.key[row.key.rindex(b"{") :], []).append(row)
        return list(parts.values())

    def _ask(self, plan: Plan, rows: Sequence[Row], mode: bytes) -> None:
        keys = [row.key for row in rows]
        asked = mode + b"".join([judge_argument(row.head, row.cost, row.group) for row in rows])
        script = judge_script(algorithms_of(rows))
        reply = script(self.client(), keys, (asked,), REPLY_WIDTH * len(rows))
        plan.take_reply(rows, reply, hit=mode == HIT)

    def _take_back(self, plan: Plan, asked: Sequence[Row]) -> None:
        """On Cluster: free earlier subjects of what a request took that was then refused."""
        charged = [row for row in asked if row.charged]
        try:
            self.give_back(charged)
        except RedisUnavailable as error:
            # The request stays refused; what stays charged can only make the limit stricter.
            _log.warning("A refused request could not be given back what it was charged: %s", error)
        else:
            plan.returned(charged)

    def give_back(self, rows: Sequence[Row]) -> None:
        """See :class:`.plan.Issuer`."""
        for part in self._parts(rows) if rows else ():
            keys = [row.key for row in part]
            args = [row.refund_argument() for row in part]
            refund_script(algorithms_of(part))(self.client(), keys, args, 0)
            self.denials.forget(keys)

    def _delete_matching(self, rate: Rate, scope: str) -> int:
        client, pattern = self.client(), self.keys.pattern(rate, scope)
        return sum(client.delete(key) for key in client.scan_iter(match=pattern, count=1000))
