"""The audit finds what is planted in an app, and says nothing bad about one that is guarded."""

from __future__ import annotations

import json
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask, redirect, session
from flask.testing import FlaskCliRunner
from flask_caching import Cache
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_session import Session
from redis.backoff import NoBackoff
from redis.retry import Retry

from flask_redis_guard import GuardedSessionInterface, GuardError, RedisGuard, rate_limited
from flask_redis_guard.testing import AuditReport, Example, audit
from flask_redis_guard.testing.faults import KINDS
from flask_redis_guard.testing.rendering import as_junit, as_table
from tests.support import RedisServer, run_python

#: Nobody listens there: what an audit needs it brings along.
NOWHERE = "redis://127.0.0.1:1/0"
#: A client as it should be, but for what is planted.
BOUNDED: dict[str, Any] = {"socket_timeout": 0.5, "retry": Retry(NoBackoff(), 0)}
SHORT: dict[str, Any] = {"patience": 1.5, "slow_seconds": 0.1}
TOTAL = ("refused", "hang", "read-only", "out-of-memory", "half-way")

LOGIN = {"path": "/login", "method": "POST", "form": {"user": "alice"}, "name": "login"}
ACCOUNT = {"path": "/account", "after": "login"}


def of(report: AuditReport, request: str) -> dict[str, str]:
    return {one.fault: one.verdict for one in report.findings if one.request == request}


def limited_app() -> Flask:
    """Flask-Limiter that lets everybody pass while it cannot count."""
    app = Flask("limited")
    limiter = Limiter(
        get_remote_address,
        app=app,
        storage_uri=NOWHERE,
        storage_options=dict(BOUNDED),
        swallow_errors=True,
    )
    app.get("/")(lambda: "home")
    app.get("/search", endpoint="search")(limiter.limit("5/minute")(lambda: "found"))
    return app


def session_app() -> Flask:
    """Flask-Session on a client without a timeout."""
    app = Flask("sessions")
    client = redis.Redis.from_url(NOWHERE, socket_timeout=None, retry=Retry(NoBackoff(), 0))
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=client)
    Session(app)

    @app.post("/login")
    def login() -> Any:
        session["user"] = "alice"
        return redirect("/account")

    @app.get("/account")
    def account() -> Any:
        return session["user"] if "user" in session else redirect("/login")

    return app


def careless_app() -> Flask:
    """A client without a timeout, a cache, a login that hides its errors, and a careful view."""
    app = Flask("careless")
    client = redis.Redis.from_url(NOWHERE, socket_timeout=None, retry=Retry(NoBackoff(), 0))
    careful = redis.Redis.from_url(NOWHERE, **BOUNDED)
    unbounded = {**BOUNDED, "socket_timeout": None}
    cache = Cache(
        app,
        config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": NOWHERE, "CACHE_OPTIONS": unbounded},
    )

    @app.get("/visits")
    def visits() -> str:
        return str(client.incr("visits"))

    @app.get("/cached")
    @cache.cached(10)
    def cached() -> str:
        return "cached"

    @app.get("/cached-visits")
    @cache.cached(10)
    def cached_visits() -> str:
        return str(client.incr("visits"))

    @app.get("/news")
    def news() -> str:
        try:
            return str(careful.get("news"))
        except redis.RedisError:
            return "none"

    @app.post("/sign-in")
    def sign_in() -> str:
        try:
            careful.set("session:1", "alice")
        except redis.RedisError:
            app.logger.exception("no session")
        return "welcome"

    @app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError

    app.get("/orders/<int:number>")(str)
    app.delete("/orders")(lambda: "gone")
    return app


def guarded_app(url: str = NOWHERE, **config: Any) -> Flask:
    app = Flask("guarded")
    app.config.update(REDIS_URL=url, SECRET_KEY="secret", **config)
    guard = RedisGuard(app)
    app.session_interface = GuardedSessionInterface(guard)

    @app.get("/search")
    @rate_limited("5/minute")
    def search() -> str:
        return "found"

    @app.get("/visits")
    def visits() -> str:
        return str(guard.client.incr("visits"))

    @app.post("/login")
    @rate_limited("5/minute")
    def login() -> Any:
        session["user"] = "alice"
        return redirect("/account")

    @app.get("/account")
    def account() -> Any:
        return session["user"] if "user" in session else redirect("/login")

    app.get("/")(lambda: "home")
    return app


@pytest.fixture(scope="module")
def careless() -> AuditReport:
    sign_in = Example("/sign-in", "POST", login=True)
    return audit(careless_app(), [sign_in], **SHORT)


def test_swallowed_errors_are_a_bypass() -> None:
    report = audit(limited_app(), **SHORT)
    assert of(report, "GET /search") == {
        **dict.fromkeys(TOTAL, "bypass"),
        "slow": "served",
        "empty": "served",
    }
    assert of(report, "GET /") == dict.fromkeys(KINDS, "served")
    (example, *_) = report.bad()
    assert "its limit" in example.note
    assert "swallow_errors=False" in example.advice


def test_sessions_hang_and_err() -> None:
    report = audit(session_app(), [LOGIN, ACCOUNT], **SHORT)
    found = of(report, "GET /account")
    assert {kind: found[kind] for kind in ("refused", "hang", "half-way")} == {
        "refused": "500",
        "hang": "hang",
        "half-way": "500",
    }
    assert of(report, "login")["read-only"] == "500"
    assert of(report, "login")["slow"] == "served"
    hanging = next(one for one in report.bad() if one.verdict == "hang")
    assert hanging.cause is not None
    assert hanging.cause.library == "flask_session"
    assert "socket_timeout" in hanging.advice
    # Whose session is lost is sent to the login, as ever.
    lost = next(
        one for one in report.findings if (one.request, one.fault) == ("GET /account", "empty")
    )
    assert (lost.verdict, lost.note) == ("served", "302 instead of 200")


def test_what_the_advice_says_helps() -> None:
    app = Flask("advised")
    client = redis.Redis.from_url(NOWHERE, **BOUNDED)
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=client)
    Session(app)
    options = dict(BOUNDED)
    limiter = Limiter(get_remote_address, app=app, storage_uri=NOWHERE, storage_options=options)
    app.get("/search", endpoint="search")(limiter.limit("5/minute")(lambda: "found"))
    app.get("/visits", endpoint="visits")(lambda: str(client.incr("visits")))

    @app.post("/login")
    def login() -> Any:
        session["user"] = "alice"
        return redirect("/account")

    @app.get("/account")
    def account() -> Any:
        return session["user"] if "user" in session else redirect("/login")

    @app.errorhandler(redis.RedisError)
    def unavailable(_: Exception) -> Any:
        return "later", 503

    @app.errorhandler(500)
    def failed(error: Any) -> Any:
        is_redis = isinstance(error.original_exception, redis.RedisError)
        return ("later", 503) if is_redis else ("failed", 500)

    report = audit(app, [LOGIN, ACCOUNT], **SHORT)
    assert report.passed, str(report)
    assert of(report, "GET /search")["refused"] == of(report, "login")["hang"] == "refused"


def test_a_limit_that_runs_out_meanwhile_proves_nothing() -> None:
    app = Flask("short")
    options = dict(BOUNDED)
    limiter = Limiter(
        get_remote_address,
        app=app,
        storage_uri=NOWHERE,
        storage_options=options,
        swallow_errors=True,
    )
    app.get("/search")(limiter.limit("2/second")(lambda: "found"))
    report = audit(app, faults=["hang"], patience=3.0)
    assert of(report, "GET /search") == {"hang": "served"}


def test_a_period_that_begins_anew_under_a_slow_redis_proves_nothing() -> None:
    """It counts: who is served was within the limit, and has used it up again afterwards."""
    app, refused = guarded_app(), threading.Event()
    app.get("/once", endpoint="once")(rate_limited("1/second")(lambda: "once"))

    @app.after_request
    def note(response: Any) -> Any:
        if response.status_code == 429:
            refused.set()
        return response

    @app.post("/late")
    def late() -> str:
        if refused.is_set():  # between the last healthy call and the fault
            refused.clear()
            time.sleep(1.1)
        return "late"

    app.get("/plain", endpoint="plain")(lambda: "plain")
    examples = [
        {"path": "/late", "method": "POST", "name": "late"},
        {"path": "/plain", "after": "late"},
        {"path": "/once"},
    ]
    report = audit(app, examples, faults=["slow"], patience=4, slow_seconds=0.1)
    assert of(report, "GET /once") == {"slow": "served"}


def test_who_ends_the_thread_has_not_answered() -> None:
    app, client = Flask("leaving"), redis.Redis.from_url(NOWHERE, **BOUNDED)

    @app.get("/")
    def leave() -> str:
        try:
            return str(client.incr("visits"))
        except redis.RedisError:
            raise SystemExit(3) from None

    report = audit(app, faults=["refused"], **SHORT)
    assert of(report, "GET /") == {"refused": "500"}
    assert "SystemExit" in str(report)


def test_what_comes_before_comes_in_order() -> None:
    app = Flask("steps")
    app.secret_key = "of the steps"

    @app.post("/step/<int:number>")
    def step(number: int) -> tuple[str, int]:
        if session.get("step", 0) != number - 1:
            return "not yet", 400
        session["step"] = number
        return "on", 200

    examples = [
        {"path": "/step/1", "method": "POST", "name": "password"},
        {"path": "/step/2", "method": "POST", "name": "code", "after": "password"},
        {"path": "/step/3", "method": "POST", "name": "in", "after": "code"},
    ]
    report = audit(app, examples, faults=["refused"], **SHORT)
    assert {one.healthy_status for one in report.findings} == {200}


def test_no_password_of_a_url_is_in_a_report() -> None:
    app, client = Flask("talkative"), redis.Redis.from_url(NOWHERE, **BOUNDED)

    @app.get("/")
    def tell() -> str:
        try:
            return str(client.incr("visits"))
        except redis.RedisError as exc:
            raise RuntimeError("no answer from redis://app:s3cret@cache:6379/0") from exc

    report = audit(app, faults=["refused"], **SHORT)
    assert "no answer from redis://" in report.as_json()
    assert "s3cret" not in report.as_json() + str(report) + as_junit(report)


def test_what_fails_beside_others_only_is_asked_again_alone() -> None:
    """Flask-Limiter falls back for the first to meet the outage; others beside it get an error."""
    app = Flask("falling-back")
    limiter = Limiter(
        get_remote_address,
        app=app,
        storage_uri=NOWHERE,
        storage_options=dict(BOUNDED),
        in_memory_fallback_enabled=True,
    )
    app.get("/search")(limiter.limit("5/minute")(lambda: "found"))
    report = audit(app, faults=["refused"], **SHORT)
    assert of(report, "GET /search") == {"refused": "served"}


def test_a_raw_client_without_a_timeout_hangs(careless: AuditReport) -> None:
    assert of(careless, "GET /visits") == {
        "refused": "500",
        "hang": "hang",
        "slow": "served",
        "read-only": "500",
        "out-of-memory": "500",
        "empty": "served",
        "half-way": "500",
    }
    hanging = next(one for one in careless.bad() if one.verdict == "hang")
    assert hanging.cause is not None
    assert "in visits()" in hanging.cause.where
    assert hanging.seconds >= 1.5
    refused = next(one for one in careless.bad() if one.fault == "refused")
    assert refused.cause is not None
    assert refused.cause.what.startswith("ConnectionError")


def test_a_cache_is_faulted_too(careless: AuditReport) -> None:
    found = of(careless, "GET /cached")
    assert found["refused"] == "served"  # it goes on without
    assert found["hang"] == "hang"
    cause = next(one.cause for one in careless.bad() if one.request == "GET /cached")
    assert cause is not None
    assert cause.library == "flask_caching"


def test_the_cause_is_the_innermost_line(careless: AuditReport) -> None:
    (cause, *_) = [one.cause for one in careless.bad() if one.request == "GET /cached-visits"]
    assert cause is not None
    assert "in cached_visits()" in cause.where
    assert cause.library == ""


def test_what_does_without_redis_is_served(careless: AuditReport) -> None:
    assert set(of(careless, "GET /news").values()) == {"served"}


def test_a_login_that_cannot_have_worked_is_a_bypass(careless: AuditReport) -> None:
    found = of(careless, "POST /sign-in")
    assert {kind for kind, verdict in found.items() if verdict == "bypass"} == set(TOTAL)
    # Without a word about it, it is a request like others.
    plain = audit(careless_app(), [Example("/sign-in", "POST")], faults=["refused"], **SHORT)
    assert of(plain, "POST /sign-in") == {"refused": "served"}


def test_a_login_that_leads_back_to_its_form_is_none() -> None:
    app, client = Flask("leading-back"), redis.Redis.from_url(NOWHERE, **BOUNDED)

    @app.post("/login")
    def login() -> Any:
        try:
            client.set("session:1", "alice")
        except redis.RedisError:
            return redirect("/login")
        return redirect("/account")

    report = audit(app, [{**LOGIN, "login": True}], faults=["refused"], **SHORT)
    assert of(report, "login") == {"refused": "served"}


def test_what_cannot_be_judged_is_said(careless: AuditReport) -> None:
    skipped = {one.title: one.reason for one in careless.skipped}
    assert set(skipped) == {"GET /broken", "GET /orders/<int:number>", "DELETE /orders"}
    assert skipped["GET /broken"].startswith("it answers 500 with a healthy Redis: ZeroDivision")
    assert skipped["GET /orders/<int:number>"] == "needs an example: it takes number"


def test_nothing_bad_is_said_about_a_guarded_app() -> None:
    app = guarded_app()
    started = time.monotonic()
    report = audit(app, [LOGIN, ACCOUNT])
    assert report.bad() == []
    assert report.passed
    assert report.skipped == ()
    for request in ("GET /search", "GET /visits", "login"):
        found = of(report, request)
        assert {kind for kind in KINDS if found[kind] == "refused"} == {*TOTAL, "slow"}, request
    assert time.monotonic() - started < 60
    # It has left nothing behind.
    breaker = app.extensions["redis_guard"].breaker
    assert breaker.state.value == "closed"
    assert app.test_client().get("/visits").status_code == 503  # nobody listens there


def test_a_guarded_app_in_memory_is_audited_as_in_production() -> None:
    app = guarded_app("memory://", ENVIRONMENT="testing")
    report = audit(app, faults=["refused", "read-only"], **SHORT)
    assert of(report, "GET /visits") == {"refused": "refused", "read-only": "refused"}
    assert app.test_client().get("/visits").text == "1"  # what the audit wrote is not here


def test_what_outlasts_the_audit_asks_nobody(redis_server: RedisServer) -> None:
    """A request that was given up tries again and again: it must not end at the app's Redis."""
    client = redis.Redis.from_url(redis_server.url, **BOUNDED)
    failed, ended, tries = threading.Event(), threading.Event(), threading.Semaphore(0)
    app = Flask("stubborn")

    @app.get("/")
    def stubborn() -> str:
        while not ended.is_set():
            try:
                if not failed.is_set():
                    return str(client.incr("n"))
                client.incr("n", -1 if failed.is_set() else 1)
            except redis.RedisError:
                failed.set()
            tries.release()
        return "ended"

    try:
        report = audit(app, faults=["refused"], patience=0.5)
        assert of(report, "GET /") == {"refused": "hang"}
        for _ in range(tries._value + 20):
            assert tries.acquire(timeout=5)
        with redis_server.client() as own:
            assert own.get("n") is None
            assert client.ping() is True  # everybody else is served
    finally:
        ended.set()


def test_alerts_are_not_sent() -> None:
    sent: list[Any] = []
    app = guarded_app(REDIS_GUARD_ALERT_DELIVERY=sent.append, REDIS_GUARD_ALERT_COOLDOWN_SECONDS=1)
    audit(app, faults=["refused"], **SHORT)
    assert sent == []


def test_a_limit_that_says_allow_is_told_and_can_be_accepted() -> None:
    app = Flask("allowing")
    app.config.update(REDIS_URL=NOWHERE)
    RedisGuard(app)
    app.get("/allow")(rate_limited("3/minute", on_outage="allow")(lambda: "x"))
    report = audit(app, faults=["refused", "empty"], **SHORT)
    assert of(report, "GET /allow") == {"refused": "bypass", "empty": "served"}
    assert "on_outage" in report.bad()[0].advice
    accepted = audit(app, [{"path": "/allow", "accept": ["bypass"]}], faults=["refused"], **SHORT)
    assert of(accepted, "GET /allow") == {"refused": "bypass"}
    assert accepted.passed
    assert "bypass*" in str(accepted)


def test_the_apps_own_redis(redis_server: RedisServer) -> None:
    app = guarded_app(redis_server.url)
    report = audit(app, own_redis=True, **SHORT)
    assert report.passed
    assert of(report, "GET /visits")["read-only"] == "refused"
    with redis_server.client() as client:
        assert int(client.get("visits")) > 1  # the healthy calls were made there


# -- the report --------------------------------------------------------------------------------


def test_the_table_says_what_to_do(careless: AuditReport) -> None:
    table = as_table(careless)
    assert table == str(careless)
    assert "\x1b" not in table
    assert max(map(len, table.splitlines())) <= 140
    rows = {line[:13].strip(): line for line in table.splitlines()}
    assert "HANG" in rows["GET /visits"]
    assert "500" in rows["GET /visits"]
    assert "What to do" in table
    assert "GET /orders/<int:number>" in table
    assert table.splitlines()[-1].startswith("FAILED: 4 of 5 requests fail in an outage")
    assert "\x1b[" in as_table(careless, colour=True)


def test_json_and_junit(careless: AuditReport) -> None:
    answer = json.loads(careless.as_json())
    assert answer["passed"] is False
    assert {"request", "fault", "status", "seconds", "verdict", "advice"} <= set(
        answer["findings"][0]
    )
    tree = ET.fromstring(as_junit(careless))
    assert [suite.get("name") for suite in tree] == [*KINDS, "not judged"]
    assert len(tree.findall(".//failure")) == len(careless.bad()) == int(tree.get("failures", ""))
    assert len(tree.findall(".//skipped")) == 3
    assert json.loads(careless.as_json([]))["passed"] is True
    only_hang = ET.fromstring(as_junit(careless, ["hang"]))
    assert len(only_hang.findall(".//failure")) == 3


def test_an_example_that_is_refused_anyway_is_named() -> None:
    app = Flask("strict")
    app.get("/admin")(lambda: ("no", 403))
    report = audit(app, [{"path": "/admin"}], faults=["refused"], **SHORT)
    assert "Note: GET /admin answers 403 with a healthy Redis, too." in str(report)


def test_nothing_judged_is_no_pass() -> None:
    app = Flask("empty")
    app.post("/orders")(lambda: "made")
    report = audit(app, faults=["refused"], **SHORT)
    assert not report.passed
    assert str(report).endswith("FAILED: nothing could be judged.")


def test_verdicts_that_are_none(careless: AuditReport) -> None:
    with pytest.raises(GuardError, match="no verdict"):
        careless.bad(["slow"])


# -- examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("nowhere.json", "cannot be read"),
        ("nowhere:examples", "cannot be read"),
        ([{"pth": "/"}], "with a path"),
        ([{"path": "/", "verb": "GET"}], "has no 'verb'"),
        ([{"path": "/", "after": "login"}], "no example named 'login'"),
        ([{"path": "/", "name": "a", "after": "a"}], "before itself"),
        ([{"path": "/"}, {"path": "/", "json": 1}], "two examples 'GET /'"),
    ],
)
def test_examples_that_are_none(given: Any, match: str) -> None:
    with pytest.raises(GuardError, match=match):
        audit(guarded_app(), given)
    with pytest.raises(ValueError, match="no fault"):
        audit(guarded_app(), faults=["sideways"])  # type: ignore[list-item]


def run(app: Flask, *arguments: str) -> Any:
    runner: FlaskCliRunner = app.test_cli_runner()
    return runner.invoke(args=["redis-guard", "audit", *arguments])


def test_the_command(tmp_path: Path) -> None:
    examples, junit = tmp_path / "audit.json", tmp_path / "junit.xml"
    examples.write_text(json.dumps([LOGIN, ACCOUNT]))
    common = ("--requests", str(examples), "--faults", "refused", "--patience", "1")
    result = run(guarded_app(), *common, "--junit", str(junit))
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.stdout
    assert ET.parse(junit).getroot().get("failures") == "0"
    assert "refused …" in result.stderr

    result = run(guarded_app(), *common, "--json", "--fail-on", "refused")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["faults"] == ["refused"]

    assert run(guarded_app(), "--requests", "nowhere.json").exit_code == 2
    assert run(guarded_app(), "--fail-on", "everything").exit_code == 2
    assert "audit" in guarded_app().test_cli_runner().invoke(args=["redis-guard"]).output


def test_the_pytest_plugin() -> None:
    """A suite of a user, run by pytest in a process of its own."""
    output = run_python(
        '''
        import pathlib, subprocess, sys, tempfile, textwrap

        with tempfile.TemporaryDirectory() as directory:
            pathlib.Path(directory, "conftest.py").write_text(textwrap.dedent("""
                import sys
                # gevent may have something to patch before they are imported.
                assert not {"flask", "redis", "flask_redis_guard"} & set(sys.modules)

                import pytest
                from flask import Flask
                from flask_redis_guard import RedisGuard, rate_limited

                @pytest.fixture
                def app():
                    app = Flask("shop")
                    app.config.update(REDIS_URL="memory://", ENVIRONMENT="testing")
                    guard = RedisGuard(app)
                    app.get("/")(lambda: str(guard.client.incr("n")))

                    @app.get("/allow")
                    @rate_limited("2/minute", on_outage="allow")
                    def allow():
                        return "x"

                    return app
            """))
            pathlib.Path(directory, "test_shop.py").write_text(textwrap.dedent("""
                import pytest

                kinds = ["half-way", "out-of-memory"]

                @pytest.mark.parametrize("redis_outage", kinds, indirect=True)
                def test_outage(app, redis_outage):
                    assert app.test_client().get("/").status_code == 503

                def test_audit_passes(redis_audit):
                    accepted = [{"path": "/allow", "accept": ["bypass"]}]
                    assert redis_audit(accepted, faults=["refused"]).passed

                def test_audit_fails(redis_audit):
                    redis_audit(faults=["refused"])
            """))
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            print(subprocess.run([*command, directory], stdout=-1, text=True).stdout)
        '''
    )
    assert "1 failed, 3 passed" in output, output
    assert "FAILED: 1 of 2 requests fail in an outage (1 × bypass)" in output
