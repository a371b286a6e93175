"""The status page in a real browser, over a real outage."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from tests.support import GunicornApp, RedisServer, eventually

TOKEN = "browser-test-token-0123456789"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
#: What the page promises.
SECONDS_TO_SHOW = 3.0

APP = """
from flask import Flask
from flask_redis_guard import RedisGuard, rate_limited

app = Flask("shop")
app.config.update(
    REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.25,
    REDIS_GUARD_FAILURE_THRESHOLD=3,
    REDIS_GUARD_OPEN_SECONDS=0.5,
)
guard = RedisGuard(app)

@app.get("/")
def index():
    return str(guard.client.incr("visits"))

@app.get("/limited")
@rate_limited("2/minute")
def limited():
    return "welcome"
"""

OTHER_SITE = """
from flask import Flask

app = Flask("other")

@app.get("/")
def index():
    return '<form method="post" enctype="text/plain"><input></form>'
"""


@pytest.fixture
def app(own_server: RedisServer) -> Iterator[GunicornApp]:
    env = {"REDIS_URL": own_server.url, "REDIS_GUARD_HEALTH_TOKEN": TOKEN}
    with GunicornApp(APP, worker_class="gthread", threads=8, env=env) as running:
        yield running


def open_page(
    browser: WebDriver, app: GunicornApp, *, width: int = 1280, height: int = 900
) -> None:
    """Load the page as somebody who has typed the token into the browser's dialog."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    # The page has to cope with its own address having a password in it.
    browser.get(f"http://operator:{TOKEN}@127.0.0.1:{app.port}/api/v1/health/status")


def text(browser: WebDriver, element_id: str) -> str:
    script = "return document.getElementById(arguments[0]).innerText"
    return str(browser.execute_script(script, element_id))


def headline(browser: WebDriver, words: str, timeout: float) -> None:
    eventually(lambda: text(browser, "headline") == words, timeout, f"the page says {words!r}")


def facts(browser: WebDriver) -> dict[str, str]:
    """All facts in one reading: between two the page may have replaced the elements."""
    return dict(
        browser.execute_script(
            "return [...document.querySelectorAll('#facts div')]"
            ".map(box => ['dt', 'dd'].map(tag => box.querySelector(tag).innerText))"
        )
    )


def console(browser: WebDriver) -> list[dict[str, Any]]:
    return [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]  # type: ignore[no-untyped-call]


def screenshot(browser: WebDriver, name: str) -> None:
    """Keep what the page looked like, where somebody wants to look at it."""
    directory = os.environ.get("SCREENSHOTS")
    if directory:
        height = browser.execute_script("return document.documentElement.scrollHeight")
        metrics = browser.execute_script("return [innerWidth, innerHeight]")
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": metrics[0], "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        Path(directory).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(directory, name)))


def test_page_follows_an_outage_and_its_end(
    browser: WebDriver, app: GunicornApp, own_server: RedisServer
) -> None:
    for _ in range(4):
        requests.get(app.url + "/limited", timeout=5)
    open_page(browser, app)
    headline(browser, "Redis is healthy", 5)
    eventually(lambda: facts(browser)["Server"] != "unknown")
    assert facts(browser)["Circuit"] == "closed"
    screenshot(browser, "healthy-1280.png")

    own_server.kill()
    assert requests.get(app.url, timeout=5).status_code == 503
    headline(browser, "Redis is down", SECONDS_TO_SHOW)
    assert "answered with 503" in text(browser, "meaning")
    for _ in range(20):
        requests.get(app.url, timeout=5)
    eventually(lambda: "connection" in facts(browser)["Last failure"])
    shown = facts(browser)
    assert shown["Circuit"] in ("open", "half-open")
    assert shown["Down for"] != "not down"
    assert re.search(r"at \w+, \d\d:\d\d:\d\d$", shown["Last failure"]), shown["Last failure"]
    eventually(lambda: browser.find_elements(By.CSS_SELECTOR, "svg rect.state.open"))
    screenshot(browser, "down-1280.png")

    own_server.start()
    headline(browser, "Redis is healthy", SECONDS_TO_SHOW)
    assert facts(browser)["Circuit"] == "closed"
    # "Now" is the present, though the slot has seen worse.
    assert browser.find_elements(By.CSS_SELECTOR, "svg rect.now.closed")
    # A young process fills the axis: one slot is a sixth of a minute.
    assert text(browser, "hour") == "The last minute"
    assert text(browser, "axis").startswith("1 min ago")
    begun = browser.execute_script(
        "const first = document.querySelector('svg.strip rect').getBoundingClientRect();"
        "const whole = document.querySelector('svg.strip').getBoundingClientRect();"
        "return (whole.right - first.left) / whole.width"
    )
    assert begun > 0.15
    # The outage stays in the timeline, and what it cost.
    charts = browser.execute_script(
        "return [...document.querySelectorAll('#charts figcaption')].map(each => each.innerText)"
    )
    assert charts[0].startswith("Circuit\nnot closed for")
    assert any(chart.startswith("Refused without Redis (503)\n2") for chart in charts)
    assert charts[4] == "Over a limit (429)\n2"
    assert "2/minute\t2" in text(browser, "limits")
    assert console(browser) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_can_be_read(
    browser: WebDriver, app: GunicornApp, own_server: RedisServer, width: int, scheme: str
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    for _ in range(4):
        requests.get(app.url + "/limited", timeout=5)
    own_server.kill()
    for _ in range(10):
        requests.get(app.url, timeout=5)
    open_page(browser, app, width=width, height=844)
    headline(browser, "Redis is down", 5)
    eventually(lambda: browser.find_elements(By.CSS_SELECTOR, "svg rect.bad"))

    scroll, visible = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert scroll <= visible == width
    for selector in ("body", ".quiet", "dt", "dd", "figcaption span:last-child"):
        assert contrast(browser, selector) >= 4.5, selector  # WCAG 2.1, AA
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) < 0.2) == (scheme == "dark")
    assert console(browser) == []
    screenshot(browser, f"down-{width}-{scheme}.png")


def test_page_lists_the_processes_and_shows_the_chosen_one(
    browser: WebDriver, own_server: RedisServer
) -> None:
    env = {"REDIS_URL": own_server.url, "REDIS_GUARD_HEALTH_TOKEN": TOKEN}
    # With one thread each, the one that is free answers: now this one, now the other.
    with GunicornApp(APP, worker_class="sync", workers=2, env=env) as app:
        open_page(browser, app)
        headline(browser, "Redis is healthy", 5)

        def buttons() -> list[str]:
            script = (
                "return [...document.querySelectorAll('#processes button')]"
                ".map(button => button.dataset.process)"
            )
            return [str(process) for process in browser.execute_script(script)]

        def both() -> bool:
            # Keeps one worker busy, so that the page gets the other one as well.
            app.get("/api/v1/health/detailed")
            return len(buttons()) == 2

        eventually(both, 15, "both processes have answered the page")
        for process in buttons():
            browser.execute_script(
                "document.querySelector(`[data-process='${arguments[0]}']`).click()", process
            )
            eventually(lambda p=process: f"process {p} on" in text(browser, "speaker"), 5)  # type: ignore[misc]
        assert console(browser) == []


def workers(browser: WebDriver) -> list[str]:
    """What the page says of the circuit of each worker."""
    return [
        str(state).partition(",")[0]
        for state in browser.execute_script(
            "return [...document.querySelectorAll('#workers tbody tr')]"
            ".map(row => row.cells[1].innerText)"
        )
    ]


def press(browser: WebDriver, action: str, *, sure: bool = True) -> None:
    """Press one of the operator's buttons, and answer what the page asks then."""
    browser.find_element(By.CSS_SELECTOR, f"#workers [data-action={action}]").click()
    question = browser.switch_to.alert
    assert "all workers of this host" in question.text
    question.accept() if sure else question.dismiss()


def test_operator_commands_all_workers_and_nobody_else_does(
    browser: WebDriver, own_server: RedisServer
) -> None:
    env = {"REDIS_URL": own_server.url, "REDIS_GUARD_HEALTH_TOKEN": TOKEN}
    with GunicornApp(APP, worker_class="sync", workers=2, env=env) as app:
        open_page(browser, app)

        def both_are(state: str) -> None:
            def are() -> bool:
                app.get("/limited")  # a worker takes its place with its first call
                return workers(browser) == [state] * 2

            eventually(are, 10, f"the page shows that both are {state}")

        both_are("closed")
        for action, state in (
            ("force-open", "forced-open"),
            ("disable", "disabled"),
            ("reset", "closed"),
        ):
            press(browser, action)
            said = f"{action} was sent to all workers of this host."
            eventually(lambda said=said: text(browser, "commanded") == said, 3)  # type: ignore[misc]
            both_are(state)
            codes = {app.get("/").status_code for _ in range(12)}
            assert codes == ({503} if action == "force-open" else {200})
        press(browser, "force-open", sure=False)
        assert console(browser) == []

        # A page of the same site without the token; then one of another site, with the browser
        # knowing the token: by script, and by a form, which asks nobody for leave.
        status = browser.execute_async_script(
            """
            const [path, done] = arguments;
            fetch(path, {
              method: "POST", credentials: "omit", body: '{"action": "disable"}',
              headers: {"Content-Type": "application/json", "X-Redis-Guard": "1"},
            }).then(response => done(response.status));
            """,
            f"http://127.0.0.1:{app.port}/api/v1/health/breaker",
        )
        assert status == 401
        address = f"http://operator:{TOKEN}@127.0.0.1:{app.port}/api/v1/health/breaker"
        with GunicornApp(OTHER_SITE) as other:
            browser.get(f"http://localhost:{other.port}/")
            result = browser.execute_async_script(
                """
                const [address, done] = arguments;
                fetch(address.replace(/operator:.*@/, ""), {
                  method: "POST", credentials: "include", body: '{"action": "disable"}',
                  headers: {"Content-Type": "application/json", "X-Redis-Guard": "1"},
                }).then(() => done("sent"), () => done("refused"));
                """,
                address,
            )
            assert result == "refused"
            browser.execute_script(
                """
                const form = document.forms[0];
                form.action = arguments[0];
                form.elements[0].name = '{"action": "disable", "x": "';
                form.elements[0].value = '"}';
                form.submit();
                """,
                address,
            )
            eventually(lambda: "Send it from the status page" in browser.page_source, 5)
        open_page(browser, app)
        both_are("closed")
        browser.get_log("browser")  # type: ignore[no-untyped-call]


def test_page_tells_when_the_application_is_gone(browser: WebDriver, app: GunicornApp) -> None:
    open_page(browser, app)
    headline(browser, "Redis is healthy", 5)
    app.stop()
    headline(browser, "The application does not answer", 8)
    assert "old" in text(browser, "meaning")


def test_policy_lets_nothing_else_run(browser: WebDriver, app: GunicornApp) -> None:
    open_page(browser, app)
    headline(browser, "Redis is healthy", 5)
    # What an injected script would do, were there a way to inject one.
    ran = browser.execute_async_script(
        """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", () => done("refused"));
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        setTimeout(() => done("ran"), 2000);
        """
    )
    assert ran == "refused"
    assert browser.execute_script("return window.ran === undefined")


def test_page_is_for_the_authorised_only(app: GunicornApp) -> None:
    for path in ("status", "status.json"):
        response = app.get(f"/api/v1/health/{path}")
        assert response.status_code == 401
        assert response.text == "Not authorised.\n"
    page = app.get("/api/v1/health/status", headers=AUTHORIZED)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]


def rgb(colour: str) -> list[float]:
    return [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.1 defines it."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in rgb(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(browser: WebDriver, selector: str) -> float:
    """The contrast of an element's text with what it stands on."""
    ink, ground = browser.execute_script(
        """
        let node = document.querySelector(arguments[0]);
        const ink = getComputedStyle(node).color;
        const clear = "rgba(0, 0, 0, 0)";
        while (getComputedStyle(node).backgroundColor === clear) node = node.parentElement;
        return [ink, getComputedStyle(node).backgroundColor];
        """,
        selector,
    )
    bright, dim = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
