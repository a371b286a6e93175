"""The text of sessions and the counts of limits, whatever the client decodes replies with."""

from __future__ import annotations

import pytest
from flask import Flask

from flask_redis_guard import RateLimiter, RedisGuard, SessionStore
from tests.support import RedisServer
from tests.support.session_apps import session_app

TEXT = "Grüße, 世界, \ud800, \x85"

ENCODINGS = ["latin-1", "cp1252", "utf-16", "ascii", "shift-jis"]


@pytest.fixture(params=ENCODINGS)
def url(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    return f"{redis_server.url}?decode_responses=true&encoding={request.param}"


def test_session_text_stays_as_it_was(url: str) -> None:
    app, guard = session_app(url)
    client = app.test_client()
    assert client.post("/write", json={"name": TEXT, "list": [TEXT]}).status_code == 200
    assert client.get("/read").json == {"name": TEXT, "list": [TEXT]}
    assert client.post("/login/bob").status_code == 200
    assert client.get("/read").json == {"name": TEXT, "list": [TEXT], "user": "bob"}
    assert guard.sessions_for(app).revoke_user("bob") == 1
    assert client.get("/read").json == {}


def test_what_another_json_provider_wrote_is_read_too(url: str, redis_server: RedisServer) -> None:
    """One that writes text as it is, and not only in ASCII."""
    app, _ = session_app(url)
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    client = app.test_client()
    client.post("/write", json={"names": ["Grüße", "世界"]})
    assert client.get("/read").json == {"names": ["Grüße", "世界"]}
    with redis_server.client() as plain:
        assert "世界" in str(plain.hvals(plain.keys("*session:*")[0]))


def test_a_script_is_loaded_and_limits_count(url: str, redis_server: RedisServer) -> None:
    with redis_server.client() as plain:
        plain.script_flush()
    app = Flask("limits")
    app.config.update(REDIS_URL=url, SECRET_KEY="k", REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    guard = RedisGuard(app)
    with app.app_context():
        limiter = guard.limiter
        allowed = [limiter.hit("3/minute", "bob").allowed for _ in range(5)]
        assert allowed == [True, True, True, False, False]
        limiter.reset("3/minute", "bob")
        assert limiter.hit("3/minute", "bob").allowed


# In UTF-16 a plain client cannot read that the server does not know a script yet.
@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "utf-16"])
def test_a_plain_client_does_as_well(redis_server: RedisServer, encoding: str) -> None:
    with redis_server.client(decode_responses=True, encoding=encoding) as client:
        store = SessionStore(client)
        store.set("token", {"name": TEXT})
        assert store.get("token") == {"name": TEXT}
        limiter = RateLimiter(client)
        assert [limiter.hit("1/minute", "bob").allowed for _ in range(2)] == [True, False]
