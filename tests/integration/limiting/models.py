"""What the scripts are held against: each promise in its plainest form, over the whole history."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from flask_redis_guard.core.rates import Rate

SECOND = 1_000_000


@dataclass
class Event:
    """One admitted cost and when it was admitted (us)."""

    time: int
    cost: int


@dataclass
class LogModel:
    """An exact log of a sliding window: knows what must be admitted and what must not."""

    rate: Rate
    events: list[Event] = field(default_factory=list)

    @property
    def period(self) -> int:
        return self.rate.per_seconds * SECOND

    def used(self, now: int, span: int | Fraction | None = None) -> int:
        """Cost admitted in the window of this span that ends now (and has not left it yet)."""
        since = now - (self.period if span is None else span)
        return sum(e.cost for e in self.events if e.time > since)

    def must_refuse(self, now: int, cost: int) -> bool:
        return self.used(now) + cost > self.rate.limit

    def must_admit(self, now: int, cost: int) -> bool:
        slack = 0 if self.rate.limit <= 16 else Fraction(self.period, 16)
        return self.used(now, self.period + slack) + cost <= self.rate.limit

    def take(self, now: int, cost: int) -> Event:
        self.events.append(Event(now, cost))
        return self.events[-1]

    def give(self, event: Event, now: int) -> None:
        event.cost = 0


@dataclass
class BucketModel:
    """GCRA in exact fractions: when the bucket is full again, and nothing else."""

    rate: Rate
    full_at: Fraction = Fraction(0)

    def span(self, cost: int) -> Fraction:
        return Fraction(cost * self.rate.per_seconds * SECOND, self.rate.limit)

    def after(self, now: int, cost: int) -> Fraction:
        return max(self.full_at, Fraction(now)) + self.span(cost)

    def must_refuse(self, now: int, cost: int) -> bool:
        return self.after(now, cost) - now > self.span(self.rate.capacity)

    def must_admit(self, now: int, cost: int) -> bool:
        return not self.must_refuse(now, cost)

    def take(self, now: int, cost: int) -> Event:
        self.full_at = self.after(now, cost)
        return Event(now, cost)


@dataclass
class CalendarModel:
    """Costs by calendar period."""

    rate: Rate
    windows: dict[int, int] = field(default_factory=dict)

    def window(self, now: int) -> int:
        return now // (self.rate.per_seconds * SECOND)

    def must_refuse(self, now: int, cost: int) -> bool:
        return self.windows.get(self.window(now), 0) + cost > self.rate.limit

    def must_admit(self, now: int, cost: int) -> bool:
        return not self.must_refuse(now, cost)

    def take(self, now: int, cost: int) -> Event:
        self.windows[self.window(now)] = self.windows.get(self.window(now), 0) + cost
        return Event(now, cost)

    def give(self, event: Event, now: int) -> None:
        self.windows[self.window(event.time)] -= event.cost


Model = LogModel | BucketModel | CalendarModel


def model_of(rate: Rate) -> Model:
    kinds: dict[str, type[Model]] = {
        "token-bucket": BucketModel,
        "fixed-window": CalendarModel,
        "sliding-window": LogModel,
    }
    return kinds[rate.effective_algorithm](rate)
