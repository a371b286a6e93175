"""What a test sees in the context that Flask's test client keeps after a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Response, flash, get_flashed_messages, session, stream_with_context

from flask_redis_guard import GuardError

from .conftest import Setup, round_trips


def test_flashed_messages_can_be_looked_at(setup: Setup) -> None:
    @setup.app.post("/flash")
    def send() -> str:
        flash("hello")
        session["a"] = 1
        return ""

    client = setup.client()
    with client:
        client.post("/flash")
        assert session["a"] == 1
        with round_trips(setup.server) as asked:
            assert get_flashed_messages() == ["hello"]
            session["b"] = 2
            assert session.pop("a") == 1
            assert "a" not in session
        assert asked == []
        # What a test does to it there changes nothing, as with Flask's own.
        seen: Any = client.get("/read").json
        assert list(seen) == ["_flashes", "a"]


def test_a_teardown_function_may_not_write_there_either(setup: Setup) -> None:
    raised: list[GuardError] = []

    @setup.app.teardown_request
    def late(error: BaseException | None) -> None:
        try:
            session["late"] = 1
        except GuardError as refused:
            raised.append(refused)

    with setup.client() as client:
        client.post("/write", json={"a": 1})
        assert len(raised) == 1


def test_a_streamed_body_may_not_write_there_either(setup: Setup) -> None:
    raised: list[GuardError] = []

    @setup.app.post("/stream")
    def stream() -> Response:
        def body() -> Iterator[str]:
            yield "begun"
            try:
                session["late"] = 1
            except GuardError as refused:
                raised.append(refused)

        return Response(stream_with_context(body()))

    with setup.client() as client:
        assert client.post("/stream", buffered=True).text == "begun"
        assert len(raised) == 1


def test_outside_of_tests_a_late_write_raises(setup: Setup) -> None:
    kept: list[Any] = []

    @setup.app.get("/keep")
    def keep() -> str:
        kept.append(session._get_current_object())  # type: ignore[attr-defined]
        return str(session["a"])

    client = setup.client()
    client.post("/write", json={"a": 1})
    client.get("/keep")
    with pytest.raises(GuardError, match="would be lost"):
        kept[0]["a"] = 2
    assert kept[0]["a"] == 1
