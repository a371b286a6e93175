"""Who tells people what all workers of a host have noticed: one of them, and once.

A worker that has noticed something writes it on the board. The lowest that has, and that responds,
claims it, looks again whether another one has claimed it too, and tells it; the others wait until
it says that it has, or stops doing what it promised. Claiming before looking means that of two at
least one sees the other and withdraws, so no lock is needed that a stopped process could keep.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flask_redis_guard.core.breaker import CircuitState
from flask_redis_guard.core.hostview import GRACE
from flask_redis_guard.host.board import SlotContent
from flask_redis_guard.host.membership import STAGGER, Membership

#: Seconds after which workers that met the same outage at the same time know of one another.
SETTLE = 0.2
#: How much a slot remembers.
MOST_RAISED, MOST_TOLD = 6, 16
#: Characters of a text that are kept for a worker that takes over.
LONGEST = 64
#: Seconds after which what a dead worker had noticed is told no more.
STALE = 600.0

_AWAY = (CircuitState.OPEN.value, CircuitState.HALF_OPEN.value)


@dataclass
class HostIncident:
    """One outage, the same for all workers. It is known by when the first of them met it."""

    #: Nanoseconds of the monotonic clock; smaller once it shows that another worker was earlier.
    began: int
    over: bool = False


@dataclass(frozen=True)
class Orphan:
    """What a worker noticed that ended before anybody told it."""

    incident: HostIncident
    kind: str
    #: When, in seconds since the epoch.
    at: float
    details: dict[str, Any]


class Telling:
    """What one app in this process tells in the name of its host.

    :param membership: its place there.
    :param cooldown: seconds without news after which what comes is another outage.
    """

    def __init__(self, membership: Membership, cooldown: float) -> None:
        self._host = membership
        self._cooldown = cooldown
        self._current: HostIncident | None = None
        self._raised_at: dict[tuple[int, str], float] = {}

    def incident(self) -> HostIncident:
        """Return the outage that is going on; a new one if there is none."""
        now = time.monotonic()
        current = self._current
        if current is None or current.over:
            others = self._going_on(self._host.slots(), now)
            current = self._current = HostIncident(min(others, default=time.monotonic_ns()))
        self._host.publish(incident=current.began, seen_at=now)
        return current

    def end(self) -> None:
        """The outage is over, for this worker."""
        if self._current is not None:
            self._agree(self._host.slots(), self._current)
            self._current.over = True
        self._current = None
        self._host.publish(incident=0)

    def name(self, incident: HostIncident) -> str:
        """Return what all workers call an outage."""
        return self._host.name.digest(f"incident {incident.began}", 16).hex()

    def note(self, incident: HostIncident, kind: str, at: float, details: dict[str, Any]) -> None:
        """Write on the board what this worker has noticed."""
        key = incident.began, kind
        self._raised_at[key] = time.monotonic()
        for old in list(self._raised_at)[:-MOST_TOLD]:
            del self._raised_at[old]
        details = {
            name: value[:LONGEST] if isinstance(value, str) else value
            for name, value in details.items()
        }
        raised = [one for one in self._own("raised") if (one[0], one[1]) != key]
        self._host.publish(raised=[*raised, [*key, at, details]][-MOST_RAISED:])

    def turn(self, incident: HostIncident, kind: str) -> float | None:
        """Ask whether this worker is to tell something now.

        :returns: 0 if so, the seconds after which to ask again, or ``None`` if it has been told.
        """
        slots = self._host.slots()
        if slots is None:
            return 0.0
        self._agree(slots, incident)
        key: list[Any] = [incident.began, kind]
        if key in _listed(slots, "told"):
            self._forget(key, slots)
            return None
        me, now = self._host.slot, time.monotonic()
        others = [found for found in slots if found.slot != me and found.alive]
        if any(key in _pairs(found, "telling") and _is_busy(found, now) for found in others):
            return STAGGER
        before = [
            found.slot
            for found in others
            if key in _pairs(found, "raised") and _is_fresh(found, now) and found.slot < (me or 0)
        ]
        due = self._raised_at.get((key[0], kind), 0.0) + SETTLE + STAGGER * len(before)
        if now < due:
            return due - now
        return self._claim(key)

    def _claim(self, key: list[Any]) -> float:
        telling = [one for one in self._own("telling") if one != key]
        self._host.publish(telling=[*telling, key][-MOST_RAISED:])
        slots, me, now = self._host.slots() or [], self._host.slot, time.monotonic()
        for found in slots:
            rival = found.slot != me and found.alive and key in _pairs(found, "telling")
            if rival and _is_busy(found, now):
                self._host.publish(telling=telling)
                return STAGGER * (1 + (me or 0) % 8)
        return 0.0

    def told(self, incident: HostIncident, kind: str) -> None:
        """Take note that this worker has told something."""
        slots = self._host.slots() or []
        self._forget([incident.began, kind], slots)

    def _forget(self, key: list[Any], slots: Iterable[SlotContent]) -> None:
        told = [one for one in (*_listed(slots, "told"), *self._own("told")) if one != key]
        unique = [list(one) for one in dict.fromkeys(map(tuple, sorted(told)))]
        self._host.publish(
            told=[*unique, key][-MOST_TOLD:],
            telling=[one for one in self._own("telling") if one != key],
            raised=[one for one in self._own("raised") if one[:2] != key],
        )

    def orphans(self) -> list[Orphan]:
        """Return what nobody will tell unless this worker does, the lowest that responds."""
        slots, now, me = self._host.slots(), time.monotonic(), self._host.slot
        if slots is None:
            return []
        fresh = [found.slot for found in slots if found.alive and _is_fresh(found, now)]
        lowest = bool(fresh) and fresh[0] == me
        # Those that this worker's slot holds from the worker before are its own to tell.
        dead = [found for found in slots if found.slot == me or (lowest and not found.alive)]
        told = _listed(slots, "told")
        living = [
            key
            for found in slots
            if found.alive and found.slot != me
            for key in _pairs(found, "raised")
        ]
        return [
            Orphan(HostIncident(one[0], over=True), one[1], one[2], one[3])
            for found in dead
            for one in _entries(found, "raised")
            if len(one) == 4
            and (one[0], one[1]) not in self._raised_at
            and one[:2] not in told
            and one[:2] not in living
            and time.time() - one[2] < STALE
        ]

    def _agree(self, slots: list[SlotContent] | None, incident: HostIncident) -> None:
        """Call an outage as the worker does that met it first."""
        if incident.over or incident is not self._current:
            return
        first = min(self._going_on(slots, time.monotonic()), default=incident.began)
        if first >= incident.began:
            return
        before, incident.began = incident.began, first
        for (began, kind), at in list(self._raised_at.items()):
            if began == before:
                self._raised_at[first, kind] = at
        raised = [[first if one[0] == before else one[0], *one[1:]] for one in self._own("raised")]
        self._host.publish(incident=first, raised=raised)

    def _going_on(self, slots: list[SlotContent] | None, now: float) -> list[int]:
        over = int(self._host.view.over_at * 1e9)
        return [
            began
            for found in slots or ()
            if found.alive
            and type(began := found.record.get("incident")) is int
            and began > over
            and (
                found.record.get("state") in _AWAY
                or now - float(found.record.get("seen_at", 0.0)) < self._cooldown
            )
        ]

    def _own(self, name: str) -> list[Any]:
        return list(getattr(self._host.own, name))


def _entries(found: SlotContent, name: str) -> list[list[Any]]:
    entries = found.record.get(name)
    return [one for one in entries if isinstance(one, list)] if isinstance(entries, list) else []


def _pairs(found: SlotContent, name: str) -> list[list[Any]]:
    """Return the incidents and kinds that a slot lists."""
    return [one[:2] for one in _entries(found, name)]


def _listed(slots: Iterable[SlotContent], name: str) -> list[list[Any]]:
    return [pair for found in slots for pair in _pairs(found, name)]


def _is_fresh(found: SlotContent, now: float) -> bool:
    return found.pulse.due_at + GRACE >= now


def _is_busy(found: SlotContent, now: float) -> bool:
    """Whether a worker will do what it has claimed; one without a background check says nothing."""
    return not found.pulse.due_at or _is_fresh(found, now)
