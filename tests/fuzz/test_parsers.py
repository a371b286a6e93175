"""Parsers of what a client, an operator or a server sends."""

from __future__ import annotations

import ipaddress
import os
import string
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, session
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse

from flask_redis_guard import (
    ConfigurationError,
    GuardedSessionInterface,
    RedisGuard,
    RedisUnavailable,
    rate_limited,
)
from flask_redis_guard.client.replies import Incomplete, read_reply
from flask_redis_guard.client.script import Script
from flask_redis_guard.config import Settings
from flask_redis_guard.core import hostview
from flask_redis_guard.core.rates import parse_rates
from flask_redis_guard.host.board import HEADER as BEFORE_SLOTS
from flask_redis_guard.host.board import SLOT, Board, Pulse, SlotContent
from flask_redis_guard.host.membership import OwnRecord, command_of, state_of
from flask_redis_guard.host.places import BoardName
from flask_redis_guard.sessions import ids
from flask_redis_guard.sessions.codec import (
    FORMAT,
    MARKER,
    UnreadableError,
    decode,
    encode,
    unmarked,
)
from flask_redis_guard.web.limits.subjects import counted_address

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

#: Header values as a server may pass them on: any byte but the line ends, as Latin-1.
HEADER = st.text(
    st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n"), max_size=300
)
ALIKE = st.text("0123456789abcdef:.%[]/ ", max_size=60)
SECRET = "hunter2hunter2"


@cache
def app() -> Flask:
    """An app without a server, that answers with what it has understood."""
    made = Flask("fuzzed")
    made.config.update(
        ENVIRONMENT="testing",
        REDIS_URL="memory://",
        SECRET_KEY="k",
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        REDIS_GUARD_HEALTH_TOKEN="a token of sixteen or more".replace(" ", "-"),
    )
    guard = RedisGuard(made)
    made.session_interface = GuardedSessionInterface(guard)

    @made.get("/read")
    def read() -> dict[str, Any]:
        return dict(session)

    @made.post("/write")
    def write() -> str:
        session["user"] = 5
        return "saved"

    @made.get("/limited")
    @rate_limited("1000000/second", key="header:X-Client")
    def limited() -> str:
        return "ok"

    @made.get("/addressed")
    @rate_limited("1000000/second; 1000000/minute")
    def addressed() -> str:
        return "ok"

    return made


def get(path: str, **environ: Any) -> Any:
    return app().test_client(use_cookies=False).get(path, environ_overrides=environ)


@cache
def good_cookie() -> str:
    response = app().test_client(use_cookies=False).post("/write")
    return response.headers["Set-Cookie"].partition(";")[0].partition("=")[2]


@fuzzed
@given(HEADER)
@example("session=a.b; session=.; session")
def test_cookie_header(value: str) -> None:
    response = get("/read", HTTP_COOKIE=value)
    assert response.status_code == 200
    assert response.json == {}


@fuzzed
@given(st.data())
def test_cookie_that_is_almost_a_good_one(data: st.DataObject) -> None:
    good = good_cookie()
    assert get("/read", HTTP_COOKIE=f"session={good}").json == {"user": 5}
    at = data.draw(st.integers(0, len(good) - 1))
    put = data.draw(st.text(string.ascii_letters + string.digits + "-_.", max_size=3))
    length = data.draw(st.integers(0, 3))
    changed = good[:at] + put + good[at + length :]
    response = get("/read", HTTP_COOKIE=f"session={changed}")
    assert response.status_code == 200
    assert response.json == ({"user": 5} if changed == good else {})


@fuzzed
@given(HEADER | HEADER.map("Bearer {}".format) | HEADER.map("Basic {}".format))
def test_authorization_header(value: str) -> None:
    response = get("/api/v1/health/status.json", HTTP_AUTHORIZATION=value)
    assert response.status_code == 401


@fuzzed
@given(HEADER, HEADER, HEADER)
def test_headers_of_limited_requests(client: str, forwarded: str, accept: str) -> None:
    told = {
        "HTTP_X_CLIENT": client,
        "HTTP_X_FORWARDED_FOR": forwarded,
        "HTTP_FORWARDED": forwarded,
        "HTTP_ACCEPT": accept,
    }
    assert get("/limited", **told).status_code == 200


@fuzzed
@given(ALIKE | HEADER | st.ip_addresses().map(str))
def test_address(raw: str) -> None:
    counted = counted_address(raw, 64)
    assert isinstance(counted, str)
    assert get("/addressed", REMOTE_ADDR=raw).status_code == 200


@fuzzed
@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_forms_of_an_address_are_one(address: ipaddress.IPv4Address, port: int) -> None:
    forms = (f"{address}:{port}", f"::ffff:{address}", f"[::ffff:{address}]:{port}", f" {address}")
    assert {counted_address(form, 64) for form in forms} == {str(address)}


@fuzzed
@given(
    st.text(max_size=80)
    | st.text("0123456789/; ,per|secondminutehourdayburst", max_size=60)
    | st.from_regex(
        r"[0-9]{1,30} ?(/|per) ?[0-9]{0,20} ?(second|minute|hour|day|x)s?", fullmatch=True
    )
)
def test_rates(text: str) -> None:
    try:
        rates = parse_rates(text)
    except ValueError:
        return
    assert rates
    for rate in rates:
        assert rate.limit > 0
        assert rate.per_seconds > 0
        assert parse_rates(str(rate)) == (rate,)


URL = st.builds(
    "{}://{}{}".format,
    st.sampled_from(
        ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "memory", "http", "")
    ),
    st.sampled_from(("", f":{SECRET}@", f"user:{SECRET}@")),
    st.text(max_size=60) | st.text("127.0:,/?=&dbsslmaster%[]@", max_size=60),
)


@fuzzed
@given(URL | st.text(max_size=80))
def test_url(url: str) -> None:
    made = Flask("of a url")
    made.config.update(REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    told = ""
    try:
        guard = RedisGuard(made)
        guard.client_for(made)
    except ConfigurationError as error:
        told = f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"
    assert SECRET not in told


@fuzzed
@given(st.text(max_size=60), st.text(max_size=60))
def test_settings_from_the_environment(name: str, value: str) -> None:
    for key in (f"REDIS_GUARD_{name}", "REDIS_GUARD_TIMEOUT", "REDIS_GUARD_DEFAULT_LIMITS"):
        try:
            Settings.load({}, {key: value})
        except ConfigurationError:
            continue


VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False)
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@fuzzed
@given(st.dictionaries(st.text(), VALUE, max_size=6))
def test_sessions_are_read_as_they_were_written(data: dict[str, Any]) -> None:
    app()
    assert decode(encode(data)) == data


STORED = st.binary(max_size=60) | st.text('"{}[]:,\\0123456789truefalsn .eE+-', max_size=60).map(
    str.encode
)


@fuzzed
@given(st.lists(STORED | st.integers() | st.none() | st.lists(STORED), max_size=8), st.booleans())
@example([b'"a"', b"[" * 5000], True)
@example([b'"a"', b'{" d":"no date"}'], True)
@example([b'"a"', b'{" b":"*"}'], True)
@example([b'"a"', b"9" * 5000], True)
def test_stored_session(reply: list[Any], marked: bool) -> None:
    app()
    if marked:
        reply = [MARKER, FORMAT, *reply]
    try:
        found = decode(unmarked(reply))
    except UnreadableError:
        return
    assert all(isinstance(key, str) for key in found)


@fuzzed
@given(st.text(max_size=100))
def test_session_id(session_id: str) -> None:
    if not session_id:
        return
    key, index = ids.keys_of("guard:", session_id)
    assert session_id.encode("utf-8", "surrogatepass") not in key or len(session_id) < 4
    assert (index is not None) == (ids.user_of(session_id) is not None)


WIRE = st.binary(max_size=200) | st.lists(
    st.sampled_from((b"+OK", b"$3\r\nabc", b":1", b"*2", b"-ERR no", b"$-1", b"*-1", b"$3", b"?")),
    max_size=12,
).map(lambda lines: b"\r\n".join(lines) + b"\r\n")


@fuzzed
@given(WIRE, st.integers(0, 200))
@example(b"*1\r\n" * 5000, 7)
@example(b"$99999999999999999999\r\n", 3)
@example(b":" + b"9" * 5000 + b"\r\n", 3)
def test_replies_of_a_server(data: bytes, cut: int) -> None:
    def read(given: bytes) -> Any:
        try:
            return read_reply(given, 0)
        except (Incomplete, InvalidResponse) as error:
            return type(error)

    whole, part = read(data), read(data[:cut])
    if isinstance(whole, tuple):
        assert part is Incomplete or repr(part) == repr(whole)
        assert 0 < whole[1] <= len(data)


@fuzzed
@given(st.binary(max_size=40) | st.text("0123456789 -_+.e", max_size=40).map(str.encode))
def test_numbers_of_a_script(reply: bytes) -> None:
    try:
        found = Script("RATE LIMIT", "return 1").read_numbers(reply, 4)
    except RedisUnavailable:
        return
    assert len(found) == 4
    assert all(type(number) is int for number in found)


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For"])
def test_a_header_of_a_megabyte_is_only_a_header(name: str) -> None:
    environ = {f"HTTP_{name.upper().replace('-', '_')}": "9" * 1_000_000}
    assert get("/limited", **environ).status_code == 200


@cache
def board() -> Board:
    """A board of this process alone."""
    directory = tempfile.mkdtemp(prefix="guard-fuzz-")
    made = Board(BoardName("fuzzed", "redis://127.0.0.1:1", "guard:"), directory)
    made.take_slot()
    return made


@fuzzed
@given(st.binary(max_size=2 * SLOT), st.integers(0, BEFORE_SLOTS + 2 * SLOT))
def test_garbage_on_a_board_is_nothing(garbage: bytes, place: int) -> None:
    file = Path(board().path)
    file.write_bytes(bytes(place) + garbage)
    assert board().read() == []
    assert board().command() is None
    board().write({"own": 1})  # which is not put off by what was there
    assert [found.record for found in board().read()] == [{"own": 1}]


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
CLOCKS = st.floats() | st.floats(0, 2000)
PULSES = st.builds(Pulse, CLOCKS, CLOCKS, CLOCKS, CLOCKS, CLOCKS)


@fuzzed
@given(
    st.dictionaries(st.sampled_from(sorted(vars(OwnRecord(0, 0.0)))), VALUES | st.lists(VALUES)),
    st.dictionaries(st.sampled_from(("number", "action", "at", "when", "who")), VALUES),
    PULSES,
    st.booleans(),
)
def test_records_of_another_version_open_at_most(
    record: dict[str, Any], command: dict[str, Any], pulse: Pulse, alive: bool
) -> None:
    record = {**vars(OwnRecord(7, 1.0)), **record, "command": command}
    found = state_of(SlotContent(3, record, pulse, alive))
    view = hostview.derive(
        [found], 1000.0, threshold=5, window=60.0, answered=999.0, command=command_of(command)
    )
    assert not view.refusing or found.state.value in ("open", "half-open") or found.failures >= 5
    assert view.command is None or view.command.action in hostview.ACTIONS
