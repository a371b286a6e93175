"""What an algorithm consists of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Protocol

from flask_redis_guard.core.rates import MAX_LIMIT, Rate

_SECTION = re.compile(r"^-- \[(\w+)\].*\n", re.MULTILINE)


class Counter(Protocol):
    """The in-process twin: one rate's count of one subject; all times in whole microseconds."""

    def wait(self, now: int, cost: int) -> int:
        """Time until the cost fits (cost at most the capacity; 0 if it does now)."""

    def reset(self, now: int) -> int:
        """Time until nothing is counted any more."""

    def remaining(self, now: int) -> int:
        """What fits now."""

    def take(self, now: int, cost: int) -> int:
        """Count it; the mark tells :meth:`give` where."""

    def give(self, now: int, cost: int, mark: int) -> None:
        """Take back what was counted, as far as it still is."""


@dataclass(frozen=True)
class Algorithm:
    """How one kind of limit counts, in Redis and in the process.

    Its script has the sections ``[judge]``, which adds three functions to ``algorithms`` of
    judge.lua, ``[refund]``, which adds one to ``refunds`` of refund.lua, and perhaps ``[express]``,
    which comes first where a request uses this algorithm alone. ``pack7``, ``floor`` and
    other helpers are those of codec.lua and clock.lua.

    :param name: what a :class:`~flask_redis_guard.Rate` calls it.
    :param code: the byte by which scripts know it; no other algorithm has it.
    :param script: the file beside its module.
    :param counter: makes its in-process twin, with nothing counted.
    :param up_to: the highest limit that it takes.
    """

    name: str
    code: bytes
    script: str
    counter: Callable[[Rate], Counter]
    up_to: int = MAX_LIMIT
    _sections: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = files(__package__).joinpath(self.script).read_text(encoding="utf-8")
        _, *parts = _SECTION.split(text)
        object.__setattr__(self, "_sections", dict(zip(parts[::2], parts[1::2], strict=True)))

    def lua(self, section: str) -> str:
        """Return a section of its script; an empty text if it has none of that name."""
        return self._sections.get(section, "")
