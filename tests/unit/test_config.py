"""Every key: where it is read from, what it accepts, and what is never shown of it."""

from __future__ import annotations

import dataclasses
import os
import string
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flask_redis_guard import ConfigurationError, Rate, RedisGuard
from flask_redis_guard.config import DEVELOPMENT, SCHEMES, Settings, redact_url

#: Key: default, a good value as text with what it becomes, and bad values.
WHOLE_BAD = [0, -1, "five", "", 2.5, True, None, "1.5"]
SECONDS_BAD = [0, -1, "soon", "", "nan", "inf", True, None, float("inf")]
KEYS: dict[str, tuple[Any, str, Any, list[Any]]] = {
    "REDIS_URL": (
        "redis://localhost:6379/0",
        "rediss://h:1/2",
        "rediss://h:1/2",
        [
            *("", "localhost", "http://h", "redis://h:port", "redis://h/x", "redis://h:1/0\n"),
            *("unix://", "redis+sentinel://", "redis+cluster://:pw@", "redis://[::1", None, 5),
        ],
    ),
    "REDIS_GUARD_FAILURE_THRESHOLD": (5, "7", 7, WHOLE_BAD),
    "REDIS_GUARD_FAILURE_RATE": (0.5, "0.25", 0.25, [0, 1.1, "half", "nan", None, True]),
    "REDIS_GUARD_MINIMUM_CALLS": (20, "7", 7, WHOLE_BAD),
    "REDIS_GUARD_WINDOW_SECONDS": (10.0, "2.5", 2.5, SECONDS_BAD),
    "REDIS_GUARD_SUCCESS_THRESHOLD": (2, "7", 7, WHOLE_BAD),
    "REDIS_GUARD_OPEN_SECONDS": (30.0, "2.5", 2.5, SECONDS_BAD),
    "REDIS_GUARD_HALF_OPEN_PERMITS": (1, "7", 7, WHOLE_BAD),
    "REDIS_GUARD_HEALTH_CHECK_INTERVAL": (5.0, "0", 0.0, [x for x in SECONDS_BAD if x != 0]),
    "REDIS_GUARD_RECOVERY_INTERVAL": (1.0, "0", 0.0, [x for x in SECONDS_BAD if x != 0]),
    "REDIS_GUARD_TIMEOUT": (0.5, "0.25", 0.25, [*SECONDS_BAD, 1e9]),
    "REDIS_GUARD_SENTINEL_TRUST_SECONDS": (15.0, "2.5", 2.5, SECONDS_BAD),
    "REDIS_GUARD_MAX_CONNECTIONS": (64, "7", 7, [*WHOLE_BAD, 10**9]),
    "REDIS_GUARD_DOWNTIME_ALERT_SECONDS": (300.0, "2.5", 2.5, SECONDS_BAD),
    "REDIS_GUARD_FAILURE_ALERT_COUNT": (10, "7", 7, [*WHOLE_BAD, 10**18]),
    "REDIS_GUARD_PROCESSES": (1, "7", 7, WHOLE_BAD),
    "REDIS_GUARD_KEY_PREFIX": ("guard:", "app:", "app:", ["", "a b", "{x}", "\n", "ä", None, 5]),
    "REDIS_GUARD_HEALTH_URL_PREFIX": ("/api/v1/health", "none", None, ["h", "/", "/a b", "/h/", 5]),
    "REDIS_GUARD_RATE_LIMIT_HEADERS": ("draft", "both", "both", ["", "some", None, 5]),
    "REDIS_GUARD_DEFAULT_LIMITS": (
        (),
        "9/hour; 2/second",
        (Rate(9, 3600), Rate(2, 1)),
        ["often", "0/minute", "5/fortnight", 5, ["x"]],
    ),
    "REDIS_GUARD_DEFAULT_KEY": ("address", "user", "user", ["cookie", "", 5, None, "header: X"]),
    "REDIS_GUARD_IPV6_PREFIX": (64, "56", 56, [*WHOLE_BAD, 129]),
    "REDIS_GUARD_DENIAL_CACHE_SIZE": (10_000, "0", 0, [x for x in WHOLE_BAD if x != 0]),
    "REDIS_GUARD_SESSION_MAX_BYTES": (65_536, "1024", 1024, WHOLE_BAD),
    "REDIS_GUARD_SESSION_MAX_PER_USER": (1000, "3", 3, WHOLE_BAD),
    "REDIS_GUARD_HEALTH_TOKEN": (None, "t" * 16, "t" * 16, ["", "short", "a b" * 9, 5]),
    "REDIS_GUARD_READY": ("live", "redis", "redis", ["", "yes", None, 5, "Live"]),
    "REDIS_GUARD_HOST_STATE": ("auto", "/run/shop", "/run/shop", ["", "on", "run/shop", None, 5]),
    "REDIS_GUARD_METRICS": (False, "yes", True, ["", "maybe", 2, None]),
    "REDIS_GUARD_ALERT_COOLDOWN_SECONDS": (300.0, "2.5", 2.5, SECONDS_BAD),
    "REDIS_GUARD_ALERT_TIMEOUT": (15.0, "2.5", 2.5, SECONDS_BAD),
    "REDIS_GUARD_CLIENT_OPTIONS": (None, "", None, ["", "db=1", 5, {1: 2}, []]),
}


TAKE_ANY_TEXT = {"REDIS_GUARD_KEY_PREFIX", "REDIS_GUARD_HEALTH_TOKEN"}

#: Only app.config can name them.
CALLABLES = ("health_authorize", "alert_delivery")


def field_of(key: str) -> str:
    return key.removeprefix("REDIS_GUARD_").lower()


def load(config: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> Settings:
    return Settings.load(config or {}, environ or {})


def test_table_above_names_every_setting() -> None:
    names = {f.name for f in dataclasses.fields(Settings)} - {"environment", *CALLABLES}
    assert {field_of(key) for key in KEYS} >= names
    # Settings that came later are tested where they are used, but none above may vanish.
    assert {field_of(key) for key in KEYS} - names == set()


@pytest.mark.parametrize("key", KEYS)
def test_default(key: str) -> None:
    assert getattr(load(), field_of(key)) == KEYS[key][0]


@pytest.mark.parametrize("key", [key for key in KEYS if key != "REDIS_GUARD_CLIENT_OPTIONS"])
def test_environment_counts_less_than_app_config(key: str) -> None:
    default, text, value, _ = KEYS[key]
    assert getattr(load(environ={key: text}), field_of(key)) == value
    assert getattr(load({key: default}, {key: text}), field_of(key)) == default
    assert type(getattr(load({key: value}), field_of(key))) is type(value)


@pytest.mark.parametrize(("key", "bad"), [(key, bad) for key in KEYS for bad in KEYS[key][3]])
def test_bad_value_names_key_value_and_what_is_accepted(key: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({key: bad})
    assert caught.value.key == key
    assert caught.value.accepted
    assert str(caught.value).startswith(f"{key} is ")
    if isinstance(bad, str):
        with pytest.raises(ConfigurationError):
            load(environ={key: bad})


def test_number_is_shown_as_it_was_and_other_text_is_not() -> None:
    with pytest.raises(ConfigurationError, match=r"_FAILURE_THRESHOLD is '5\.5'; accept"):
        load(environ={"REDIS_GUARD_FAILURE_THRESHOLD": "5.5"})
    with pytest.raises(ConfigurationError, match=r"_THRESHOLD is '\*\*\*'; accepted: a whole"):
        load(environ={"REDIS_GUARD_FAILURE_THRESHOLD": "five"})
    with pytest.raises(ConfigurationError, match="_DEFAULT_LIMITS is '5/min'; accepted: rates"):
        load({"REDIS_GUARD_DEFAULT_LIMITS": "5/min"})
    with pytest.raises(ConfigurationError, match="_THRESHOLD is 0; accepted: a whole number of at"):
        load({"REDIS_GUARD_FAILURE_THRESHOLD": 0})


def test_bad_environment_value_that_app_config_overrides_does_no_harm() -> None:
    settings = load({"REDIS_GUARD_TIMEOUT": 1}, {"REDIS_GUARD_TIMEOUT": "soon"})
    assert settings.timeout == 1.0


def test_unknown_key_in_app_config_stops_and_suggests() -> None:
    with pytest.raises(ConfigurationError, match="known: REDIS_GUARD_TIMEOUT") as caught:
        load({"REDIS_GUARD_TIMEOUTS": 5})
    assert caught.value.key == "REDIS_GUARD_TIMEOUTS"


def test_unknown_key_in_the_environment_only_warns(caplog: pytest.LogCaptureFixture) -> None:
    load(environ={"REDIS_GUARD_PORT_6379_TCP": "tcp://secret", "REDIS_GUARDIAN": "x"})
    assert "REDIS_GUARD_PORT_6379_TCP" in caplog.text
    assert "secret" not in caplog.text
    assert "GUARDIAN" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        *("redis://", "redis://h", "redis://:p%40w@h:1/2?ssl=1", "unix:///s.sock?db=1"),
        *("redis+sentinel://:pw@h1:1,h2:2/name/0", "redis+cluster://h1:1,h2", "rediss+cluster://h"),
    ],
)
def test_good_urls(url: str) -> None:
    assert load({"REDIS_URL": url}).redis_url == url


# -- which environment ---------------------------------------------------------------------------


@pytest.mark.parametrize("named", [None, *sorted(DEVELOPMENT), "production", "staging", "", "dev"])
@pytest.mark.parametrize("also", [None, *sorted(DEVELOPMENT), "production", "weird", ""])
def test_strictest_environment_wins(named: str | None, also: str | None) -> None:
    config = {} if named is None else {"ENVIRONMENT": named}
    environ = {} if also is None else {"ENVIRONMENT": also}
    said = {name for name in (named, also) if name is not None}
    assert load(config, environ).development is (bool(said) and said <= DEVELOPMENT)


@pytest.mark.parametrize("odd", ["Development", " LOCAL\n"])
def test_case_and_blanks_do_not_matter(odd: str) -> None:
    assert load({"ENVIRONMENT": odd}).development


@pytest.mark.parametrize("odd", [True, 1, object(), ["development"], b"development"])
def test_what_is_no_text_is_production(odd: object) -> None:
    assert not load({"ENVIRONMENT": odd}).development


@pytest.mark.parametrize("environment", [None, "production", "staging", "developmemt", ""])
def test_memory_store_is_refused_outside_development(environment: str | None) -> None:
    config = {"REDIS_URL": "memory://"}
    if environment is not None:
        config["ENVIRONMENT"] = environment
    with pytest.raises(ConfigurationError, match="REDIS_URL is 'memory://'"):
        load(config)
    with pytest.raises(ConfigurationError):
        load({**config, "ENVIRONMENT": "development"}, {"ENVIRONMENT": "production"})
    assert load({"REDIS_URL": "memory://", "ENVIRONMENT": "testing"}).development


# -- secrets -------------------------------------------------------------------------------------

#: No letter that stands in an error's own words or in a host below, so that any part shows.
SECRET = st.text("QZXJ0123456789:/?#[]@!$&'()*+,;=%", min_size=3, max_size=30).map(
    lambda text: f"QZ{text}XJ"
)


def leaks(secret: str, shown: str) -> bool:
    return any(part in shown for part in ("QZ", "XJ")) or secret in shown


@settings(deadline=None)  # busy machines are no bugs
@given(secret=SECRET, scheme=st.sampled_from([*SCHEMES, "http", "postgres"]))
@example(secret="QZ12?3@4XJ", scheme="redis")
def test_no_url_shows_its_password(secret: str, scheme: str) -> None:
    for password in (secret, quote(secret, safe="")):
        logins = [f":{password}@", f"user:{password}@", f"{password}:x@"]
        if "@" not in password:  # with one in it, what follows is a host to anybody
            logins.append(f":{password}")
        for login in logins:
            for rest in ("host:6379/0", "host:port/0", "h1:1,h2:2/name/0", "", "host/0?db=x"):
                assert not leaks(secret, redact_url(f"{scheme}://{login}{rest}")), login + rest
        assert not leaks(secret, redact_url(f":{password}@host"))
        assert not leaks(secret, redact_url(f"{scheme}://host?password={password}"))


@settings(deadline=None)  # busy machines are no bugs
@given(digits=st.text(string.digits, min_size=6, max_size=20))
def test_numeric_password_is_not_taken_for_a_port(digits: str) -> None:
    for url in (f"redis://:{digits}", f"redis://user:{digits}", f"redis://u@h:{digits}"):
        assert digits not in redact_url(url)


def test_redacted_url_still_tells_where() -> None:
    assert redact_url("redis://:pw@host:6379/0") == "redis://***@host:6379/0"
    assert redact_url("redis://host:6379/0?x=y") == "redis://host:6379/0"
    assert redact_url("rediss://u:p@[::1]:6379/0") == "rediss://***@[::1]:6379/0"
    assert redact_url("redis+sentinel://:p@a:1,b:2/name") == "redis+sentinel://***@a:1,b:2/***"
    assert redact_url("redis://localhost/0x") == "redis://localhost/***"
    assert redact_url("redis://db.example/0") == "redis://db.example/0"


@settings(deadline=None)  # busy machines are no bugs
@given(
    secret=st.text("QZXJ@:/0123456789", min_size=4, max_size=40).map(lambda t: f"QZ{t}XJ"),
    key=st.sampled_from(["REDIS_GUARD_PASSWORD", "REDIS_GUARD_URL", "REDIS_GUARD_X"]),
)
def test_no_error_shows_a_secret_under_a_misspelt_key(secret: str, key: str) -> None:
    for value in (secret, f"redis://:{secret}@h", {"password": secret}, [secret], secret.encode()):
        with pytest.raises(ConfigurationError) as caught:
            load({key: value})
        assert not leaks(secret, str(caught.value))
        assert not leaks(secret, repr(caught.value))


@pytest.mark.parametrize("key", sorted({*KEYS} - TAKE_ANY_TEXT))
def test_no_error_shows_a_url_under_the_wrong_key(key: str) -> None:
    url = "redis://:hunter2@db:6379/0x"
    with pytest.raises(ConfigurationError) as caught:
        load({key: url})
    assert "hunter2" not in str(caught.value)


@settings(deadline=None, max_examples=20)  # each tries some 150 configurations
@given(
    secret=st.text("QZXJabz_", min_size=1, max_size=12).map(lambda text: f"QZ{text}XJ"),
    digits=st.text("2456789", min_size=6, max_size=12),  # without the digits of our own bounds
)
def test_no_error_shows_a_misplaced_secret(secret: str, digits: str) -> None:
    secrets = (secret, digits)
    for word in secrets:
        for url in (
            *(f"redis://h:1/{word}", f"redis://h/{word}", f"redis://{word}", f"redis://{word}/x"),
            *(f"unix://{word}", f"redis://h:1/{word}/0", f"{word}://h:1", f"redis://h/0x#{word}"),
            *(f"redis://h/0?{word}=1", f"redis://h/0?protocol={word}", f"redis://h/0?db={word}x"),
            *(f"redis+sentinel://h:1,{word}", f"redis+sentinel://h:1/name/{word}x"),
        ):
            assert word not in redact_url(url)
            assert_start_hides(word, {"REDIS_URL": url})
        for key in KEYS:
            if key not in TAKE_ANY_TEXT:
                assert_start_hides(word, {key: word})
                assert_start_hides(word, {key: {word: word}})
        assert_start_hides(word, {"REDIS_GUARD_CLIENT_OPTIONS": {word: 1}})
        assert_start_hides(word, {"REDIS_URL": "memory://", "ENVIRONMENT": word})


def assert_start_hides(secret: str, config: dict[str, Any]) -> None:
    app = Flask("app")
    app.config.update(config)
    shown = ""
    try:
        RedisGuard(app)  # some of them are no mistakes
    except ConfigurationError as error:
        shown = f"{error} {error!r}"
    assert secret not in shown


def test_misspelt_option_is_told_what_was_meant() -> None:
    app = Flask("app")
    app.config.update(REDIS_URL="redis://h/0?socket_keepaliv=1")
    with pytest.raises(ConfigurationError, match="did you mean socket_keepalive"):
        RedisGuard(app)


def test_documented_default_of_the_client_options_is_accepted() -> None:
    assert load({"REDIS_GUARD_CLIENT_OPTIONS": None}).client_options is None


def test_no_message_of_a_whole_start_shows_a_password(caplog: pytest.LogCaptureFixture) -> None:
    for config in (
        {"REDIS_URL": "redis://:hunter2@h/0?socket_timeout=x"},
        {"REDIS_URL": "redis://:hunter2@h/0?no_such_option=1"},
        {"REDIS_URL": "redis://:hunter2@h:port/0"},
        {"REDIS_GUARD_CLIENT_OPTIONS": {"password": "hunter2", "no_such": 1}},
        {"REDIS_GUARD_CLIENT_OPTIONS": "hunter2"},
    ):
        app = Flask("app")
        app.config.update(config)
        with pytest.raises(ConfigurationError) as caught:
            RedisGuard(app)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "hunter2" not in caplog.text


def test_settings_do_not_print_their_secrets() -> None:
    settings = load(
        {
            "REDIS_URL": "redis://:hunter2@h",
            "REDIS_GUARD_CLIENT_OPTIONS": {"password": "hunter2"},
        }
    )
    assert "hunter2" not in repr(settings)


def test_process_environment_is_the_default_source() -> None:
    key, before = "REDIS_GUARD_OPEN_SECONDS", os.environ.get("REDIS_GUARD_OPEN_SECONDS")
    os.environ[key] = "77"
    try:
        assert Settings.load({}).open_seconds == 77.0
    finally:
        del os.environ[key]
        if before is not None:
            os.environ[key] = before
