"""The laboratory's pages in a real browser: what a visitor clicks through."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.test_status_page import console, contrast, screenshot
from tests.integration.test_example_app import START, Demo, demo, short_path
from tests.support import eventually

__all__ = ["demo", "short_path"]  # fixtures


@pytest.fixture(scope="module")
def _shared_demo() -> Iterator[Demo]:
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        demo = Demo(START, Path(directory))
        yield demo
        demo.close()


@pytest.fixture
def any_demo(_shared_demo: Demo) -> Demo:
    """A laboratory that other tests have used, with a Redis that runs and is empty."""
    _shared_demo.act("start")
    eventually(lambda: _shared_demo.books().ok, 5)
    _shared_demo.act("empty")
    return _shared_demo


def text(browser: WebDriver, element_id: str) -> str:
    script = "return document.getElementById(arguments[0]).innerText"
    return str(browser.execute_script(script, element_id))


def read(browser: WebDriver, selector: str) -> str:
    return str(browser.execute_script(f"return document.querySelector('{selector}').innerText"))


def number(browser: WebDriver, lane: str, tile: str) -> float:
    """What a tile of a lane shows; -1 while it shows nothing yet."""
    shown = read(browser, f"#{lane} [data-tile={tile}] dd").removesuffix(" s")
    return float(shown) if shown[-1:].isdigit() else -1.0


def click(browser: WebDriver, selector: str) -> None:
    eventually(lambda: browser.find_element(By.CSS_SELECTOR, selector).is_enabled(), 5)
    browser.find_element(By.CSS_SELECTOR, selector).click()


def show(browser: WebDriver, width: int = 1280, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def pictures(browser: WebDriver, moment: str) -> None:
    """Keep what the page looks like at a moment, where somebody wants to look at it."""
    if "SCREENSHOTS" in os.environ:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                show(browser, width, scheme)
                time.sleep(0.5)  # drawn five times a second
                screenshot(browser, f"{moment}-{width}-{scheme}.png")
        show(browser)


def squares(browser: WebDriver, lane: str) -> dict[str, int]:
    """What the picture of the last half minute shows, by outcome."""
    label = browser.find_element(By.CSS_SELECTOR, f"#{lane} canvas").get_attribute("aria-label")
    pairs = [part.split(" × ") for part in str(label).partition(": ")[2].split(", ")]
    return {pair[1]: int(pair[0]) for pair in pairs if len(pair) == 2}


def unexpected(browser: WebDriver) -> list[dict[str, Any]]:
    """What the console says, but that a request was answered with an error."""
    return [line for line in console(browser) if "Failed to load resource" not in line["message"]]


def test_outage_and_its_end_side_by_side(browser: WebDriver, demo: Demo) -> None:
    show(browser)
    browser.get(demo.url)
    assert read(browser, "#guarded .verdict") == "No requests yet"
    click(browser, "#stream")
    for lane in ("guarded", "unguarded"):
        eventually(lambda lane=lane: squares(browser, lane).get("429", 0) > 3, 15)  # type: ignore[misc]
        assert read(browser, f"#{lane} .verdict") == "Serves within the limits"
        assert number(browser, lane, "beyond") == 0
    pictures(browser, "before")

    click(browser, "[data-deed=kill]")
    eventually(lambda: "503, Retry-After" in read(browser, "#guarded .verdict"), 5)
    eventually(lambda: number(browser, "unguarded", "beyond") > 5, 10)
    eventually(lambda: "Every guess" in read(browser, "#unguarded .verdict"), 5)
    assert number(browser, "guarded", "beyond") == 0
    assert number(browser, "guarded", "errors") == 0
    assert number(browser, "unguarded", "errors") > 0
    eventually(lambda: text(browser, "workers").count("open") == 2, 5)
    eventually(lambda: text(browser, "me").startswith("Nobody can tell who you are"), 5)
    counted: set[str] = set()

    def counts_down() -> bool:
        counted.add(read(browser, "#guarded .verdict"))
        return len(counted) > 2

    eventually(counts_down, 6)
    pictures(browser, "during")

    click(browser, "[data-deed=start]")
    eventually(lambda: number(browser, "guarded", "back") >= 0, 8)
    assert number(browser, "guarded", "back") <= 2.5  # as the page's own requests have seen it
    eventually(lambda: text(browser, "workers").count("closed") == 2, 5)
    serves = "Serves within the limits"
    eventually(lambda: read(browser, "#guarded .verdict") == serves, 5)
    pictures(browser, "after")

    click(browser, "[data-deed=hang]")
    eventually(lambda: read(browser, "#unguarded .verdict").startswith("Hanging: "), 10)
    assert "503" in read(browser, "#guarded .verdict")
    assert number(browser, "guarded", "wait") < 2 < number(browser, "unguarded", "wait") + 1
    click(browser, "[data-deed=start]")
    # What waited is let in when Redis goes on, and the page says so for a moment.
    eventually(lambda: read(browser, "#unguarded .verdict") == serves, 20)
    eventually(lambda: read(browser, "#guarded .verdict") == serves, 10)
    assert text(browser, "news").endswith(serves)
    told = text(browser, "timeline")
    for words in ("Redis was killed", "closed → open", "Redis is back", "Served again", "hangs"):
        assert words in told
    click(browser, "#stream")
    assert text(browser, "stream-word") == "Start requests"
    assert unexpected(browser) == []


def test_visitor_logs_in_and_stays_logged_in(browser: WebDriver, demo: Demo) -> None:
    show(browser)
    browser.get(demo.url)
    eventually(lambda: text(browser, "me").startswith("Not logged in"), 5)
    click(browser, "[data-act=login]")
    eventually(lambda: text(browser, "me").startswith("Logged in as ada"), 5)
    demo.act("kill")
    demo.act("start")
    eventually(lambda: all(demo.books().ok for _ in range(8)), 5, "both workers serve")
    click(browser, "[data-act=guess]")
    eventually(lambda: text(browser, "summary").startswith("8 guesses at once: "), 10)
    # The login counted as well.
    assert re.search("4 × 401, 4 × 429|4 × 429, 4 × 401", text(browser, "summary"))
    eventually(lambda: "5/minute reached on login" in text(browser, "timeline"), 5)
    answer = browser.find_element(By.CSS_SELECTOR, "#last pre").get_attribute("textContent")
    assert str(answer).startswith("HTTP ")
    browser.refresh()
    eventually(lambda: text(browser, "me").startswith("Logged in as ada"), 5)
    click(browser, "[data-act=logout]")
    eventually(lambda: text(browser, "me").startswith("Not logged in"), 5)
    browser.find_element(By.PARTIAL_LINK_TEXT, "Status").click()
    eventually(lambda: text(browser, "headline") == "Redis is healthy", 5)
    assert unexpected(browser) == []


def test_buttons_stay_in_reach_and_keys_suffice(browser: WebDriver, any_demo: Demo) -> None:
    for width in (1280, 390):
        show(browser, width)
        browser.get(any_demo.url)
        eventually(lambda: text(browser, "redis") == "running", 5)
        browser.execute_script("scrollTo(0, document.body.scrollHeight)")
        kill = "[data-deed=kill]"
        top = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
        assert 0 <= browser.execute_script(top, kill) < 150

        # With the keyboard alone: through the links, to the buttons; each shows where it is.
        reached = []
        for _ in range(7):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            active = browser.switch_to.active_element
            reached.append(active.text or active.get_attribute("id"))
            style = "return getComputedStyle(document.activeElement).outlineStyle"
            assert browser.execute_script(style) == "solid"
        assert reached[-4:] == ["Start requests", "Kill", "Hang", "Slow"]
        browser.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB)
        browser.switch_to.active_element.send_keys(Keys.SHIFT + Keys.TAB)
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        eventually(lambda: text(browser, "redis") == "dead", 5)
        any_demo.act("start")


def test_typed_text_survives_a_disconnect(browser: WebDriver, any_demo: Demo) -> None:
    show(browser)
    browser.get(f"{any_demo.url}/chat/")
    eventually(lambda: text(browser, "connection") == "connected", 5)
    assert text(browser, "who") == "somebody"
    box = browser.find_element(By.ID, "text")
    box.send_keys("hello\n")
    eventually(lambda: "somebody: hello" in text(browser, "heard"), 5)
    assert box.get_property("value") == ""

    any_demo.act("kill")
    box.send_keys("is anybody there?\n")  # sent, refused, and the connection closed
    eventually(lambda: text(browser, "connection").startswith("closed 1013"), 10)
    assert box.get_property("value") == "is anybody there?"
    box.send_keys(" Really?\n")  # not even sent
    assert box.get_property("value") == "is anybody there? Really?"
    assert text(browser, "unsent").startswith("Not sent")


def test_chat_reaches_visitors_of_other_workers(browser: WebDriver, any_demo: Demo) -> None:
    show(browser)
    browser.get(f"{any_demo.url}/chat/")
    windows = [browser.current_window_handle]
    for _ in range(3):  # of two workers, each has one of four windows nearly always
        browser.switch_to.new_window("tab")
        browser.get(f"{any_demo.url}/chat/")
        windows.append(browser.current_window_handle)
    for window in windows:
        browser.switch_to.window(window)
        eventually(lambda: text(browser, "connection") == "connected", 5)
    browser.find_element(By.ID, "text").send_keys("hello\n")
    for window in windows:
        browser.switch_to.window(window)
        eventually(lambda: "somebody: hello" in text(browser, "heard"), 5)
    for window in windows[1:]:
        browser.switch_to.window(window)
        browser.close()
    browser.switch_to.window(windows[0])


def test_pages_fit_and_can_be_read(browser: WebDriver, any_demo: Demo) -> None:
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            for page, name in (("", "demo"), ("/chat/", "chat")):
                show(browser, width, scheme)
                browser.get(any_demo.url + page)
                if not page:
                    eventually(lambda: text(browser, "redis") == "running", 5)
                    click(browser, "#stream")
                    eventually(lambda: "Serves" in read(browser, "#guarded .verdict"), 5)
                scroll, visible = browser.execute_script(
                    "return [document.documentElement.scrollWidth, innerWidth]"
                )
                assert scroll <= visible == width
                wanted = ["body", ".lead", "button:not(:disabled)", ".primary"]
                wanted += ["#connection"] if page else [".verdict", ".tiles dt", ".legend", "time"]
                for selector in wanted:
                    assert contrast(browser, selector) >= 4.5, selector  # WCAG 2.1, AA
                screenshot(browser, f"{name}-{width}-{scheme}.png")
