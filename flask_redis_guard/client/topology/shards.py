"""One breaker for each primary of a cluster, and what all of them together look like; no I/O.

An operation passes the breaker of each primary that it is sent to, at the moment when its node is
known. So what lies on healthy primaries is served while one is away. What fails before any
primary is known, such as asking for the cluster's map, counts for the cluster as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flask_redis_guard.core.breaker import (
    Announcer,
    Cause,
    CircuitBreaker,
    CircuitState,
    Outcome,
    Permit,
    Refusal,
    Transition,
)
from flask_redis_guard.core.process import ProcessLock

#: The worst first; where an operator lets everybody pass, all breakers do.
_SEVERITY = (
    CircuitState.FORCED_OPEN,
    CircuitState.OPEN,
    CircuitState.HALF_OPEN,
    CircuitState.CLOSED,
    CircuitState.DISABLED,
)


class Passage(Permit):
    """Leave to call the cluster: which primaries that led to, and how it went there."""

    __slots__ = ("answered", "asking", "broken", "own", "probe", "refused", "visits")

    own: Permit
    probe: bool
    #: Whether it reads the map just now, which no breaker stands in the way of.
    asking: bool
    #: Whether a primary's breaker has refused it; then no socket is touched any more.
    refused: bool
    #: The breaker and its permit for each primary that it was sent to.
    visits: dict[str, tuple[CircuitBreaker, Permit]]
    answered: set[str]
    #: In the order in which they failed.
    broken: dict[str, None]

    def __init__(self, own: Permit, probe: bool) -> None:
        super().__init__(own.generation)
        values = {"own": own, "probe": probe, "asking": False, "refused": False}
        for name, value in {**values, "visits": {}, "answered": set(), "broken": {}}.items():
            object.__setattr__(self, name, value)

    def ask(self, asking: bool) -> None:
        """Say whether it reads the map from now on."""
        object.__setattr__(self, "asking", asking)

    def note(self, node: str, outcome: Outcome) -> None:
        """Take note of a reply of a node, or of its failing."""
        if self.asking:
            return
        if outcome is Outcome.FAILURE:
            self.broken[node] = None
        else:
            self.answered.add(node)


class ClusterBreaker(CircuitBreaker):
    """The breakers of a cluster, looking like one: the worst of them.

    Operator modes hold for all of them, also for primaries that come later.

    :param on_transition: told when the worst state changes, and what caused it before.
    :param options: of :class:`CircuitBreaker`, for each of the breakers.
    """

    def __init__(
        self, *, on_transition: Callable[[Any], object] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._options = options
        self._story: Announcer[Any] = Announcer(on_transition or (lambda _: None))
        self._told = CircuitState.CLOSED
        self._changing = ProcessLock()
        self._reserved = 0.0
        #: Whether a node has said since the last map that a slot lies elsewhere.
        self.moved = False
        #: For what cannot be said of one primary.
        self.whole = CircuitBreaker(**options, on_transition=self._on_event)
        self._slots: dict[str, frozenset[int]] = {}
        self._primaries: dict[str, CircuitBreaker] = {}

    @property
    def primaries(self) -> Mapping[str, CircuitBreaker]:
        """The breaker of each primary, by ``host:port``; none before the map is known."""
        return self._primaries

    def _all(self) -> list[CircuitBreaker]:
        return [self.whole, *self._primaries.values()]

    def _worst(self) -> CircuitBreaker:
        return min(self._all(), key=lambda each: _SEVERITY.index(each._state))

    # -- for operations --------------------------------------------------------------------------

    def try_acquire(self, *, probe: bool = False) -> Permit | Refusal:
        """Ask for leave to call the cluster; the primaries are asked about by :meth:`visit`."""
        own = self.whole.try_acquire(probe=probe)
        return own if isinstance(own, Refusal) else Passage(own, probe)

    def visit(self, passage: Passage, node: str) -> Refusal | None:
        """Ask for leave to call a node, unless that was given in this operation.

        :param node: its ``host:port``. Nodes that are no primaries, as far as the map says, have
            no breaker.
        """
        breaker = self._primaries.get(node)
        if breaker is None or node in passage.visits:
            return None
        permit = breaker.try_acquire(probe=passage.probe)
        if isinstance(permit, Refusal):
            object.__setattr__(passage, "refused", True)
            return permit
        passage.visits[node] = breaker, permit
        return None

    def settle(self, permit: Permit, outcome: Outcome, cause: Cause | None = None) -> None:
        """End an operation: a failure counts where it happened."""
        if not isinstance(permit, Passage):
            return
        broken = [node for node in permit.broken if node in permit.visits]
        for node, (breaker, own) in permit.visits.items():
            if node in permit.broken:
                # What redis-py got over, or a caller ignored, is a failure of that node still.
                told = Outcome.FAILURE if outcome is Outcome.SUCCESS else outcome
                breaker.settle(own, told, cause if node == broken[0] else None)
            else:
                answered = node in permit.answered
                breaker.settle(own, Outcome.SUCCESS if answered else Outcome.NEUTRAL)
        if outcome is Outcome.FAILURE and broken:
            self.whole.settle(permit.own, Outcome.NEUTRAL)
        else:
            self.whole.settle(permit.own, outcome, cause)

    def update(self, slots: Mapping[str, Iterable[int]]) -> None:
        """Take over a new map.

        The breaker of a primary that is gone goes to the one that has its slots now, and lets
        probes pass at once: that is another server.

        :param slots: the slots of each primary, by ``host:port``.
        """
        new = {node: frozenset(numbers) for node, numbers in slots.items()}
        with self._changing:
            before, old = self._primaries, self._slots
            gone = [node for node in before if node not in new]
            found: dict[str, CircuitBreaker] = {}
            for node, numbers in new.items():
                heir = before.get(node)
                if heir is None:
                    previous = max(gone, key=lambda n: len(old[n] & numbers), default=None)
                    if previous is not None and old[previous] & numbers:
                        gone.remove(previous)
                        heir = before[previous]
                        heir.end_open_time()
                found[node] = heir or self._make()
            self._primaries, self._slots = found, new
        self._compare("primary-replaced", 0, 0.0)

    def _make(self) -> CircuitBreaker:
        breaker = CircuitBreaker(**self._options, on_transition=self._on_event)
        if self.whole._state is CircuitState.FORCED_OPEN:
            breaker.force_open()
        elif self.whole._state is CircuitState.DISABLED:
            breaker.disable()
        breaker.reserve_probes(self._reserved)
        return breaker

    # -- what all of them look like --------------------------------------------------------------

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Transition):
            self._compare(event.reason, event.failures, event.open_for)
        else:
            self._story.add(event)
            self._story.deliver()

    def _compare(self, reason: str, failures: int, open_for: float) -> None:
        """Announce the worst state if it is another one than the last time."""
        with self._changing:
            previous, current = self._told, self._worst()._state
            self._told = current
            if previous is not current:
                self._story.add(Transition(previous, current, reason, failures, open_for))
        self._story.deliver()

    @property
    def state(self) -> CircuitState:
        """The worst state of all."""
        for breaker in self._all():
            _ = breaker.state  # it may change by the mere passing of time
        return self._worst()._state

    @property
    def failure_count(self) -> int:
        """The most failures in a row that one of them has seen."""
        return max(breaker.failure_count for breaker in self._all())

    @property
    def seconds_in_state(self) -> float:
        """Seconds for which the worst one has been in its state."""
        return self._worst().seconds_in_state

    @property
    def retry_after(self) -> float:
        """Seconds until the last of them lets a caller try again; 0 while everybody passes."""
        return max(breaker.retry_after for breaker in self._all())

    @property
    def refusing(self) -> bool:
        """Whether everybody is kept out now: what lies on healthy primaries is served."""
        primaries = self._primaries.values()
        return self.whole.refusing or (
            bool(primaries) and all(breaker.refusing for breaker in primaries)
        )

    @property
    def lets_users_probe(self) -> bool:
        """Whether the next user's call may find out if a primary is back."""
        return any(
            breaker.state is CircuitState.HALF_OPEN and not breaker.refusing
            for breaker in self._primaries.values()
        )

    def reserve_probes(self, seconds: float) -> None:
        """Keep the first permit of each half-open breaker for the background monitor."""
        self._reserved = seconds
        for breaker in self._all():
            breaker.reserve_probes(seconds)

    def _operate(self, state: CircuitState) -> None:
        for breaker in self._all():
            breaker._operate(state)
