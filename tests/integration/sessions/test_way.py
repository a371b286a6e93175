"""How far a request walks through the modules of sessions; the counts are exact everywhere."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType

from flask_redis_guard import session

from .conftest import Setup

ABOVE, BELOW = "flask_redis_guard.web.sessions.", "flask_redis_guard.sessions."


def way(request: Callable[[], object]) -> list[str]:
    """The modules of sessions in the order in which functions of theirs are entered."""
    entered: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        name = str(frame.f_globals.get("__name__"))
        if event == "call" and name.startswith((ABOVE, BELOW)):
            entered.append(name)

    for _ in range(3):
        request()
    sys.setprofile(note)
    try:
        request()
    finally:
        sys.setprofile(None)
    return entered


def changes(entered: list[str]) -> int:
    return sum(one != other for one, other in itertools.pairwise(entered))


def test_a_request_that_leaves_its_session_alone(setup: Setup) -> None:
    client = setup.client()
    client.post("/login/5")
    assert len(way(lambda: client.get("/untouched"))) <= 4


def test_a_read(setup: Setup) -> None:
    client = setup.client()
    client.post("/login/5")
    entered = way(lambda: client.get("/read"))
    assert len(set(entered)) <= 4
    assert changes(entered) <= 10
    assert len(entered) <= 35


def test_a_read_and_a_write(setup: Setup) -> None:
    @setup.app.post("/count")
    def count() -> str:
        session["count"] = session.get("count", 0) + 1
        return "counted"

    client = setup.client()
    client.post("/login/5")
    entered = way(lambda: client.post("/count"))
    assert len(set(entered)) <= 4
    assert changes(entered) <= 12
    assert len(entered) <= 50
