"""The demo's pages in a real browser: what a visitor clicks through."""

from __future__ import annotations

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from tests.browser.test_status_page import console, contrast, screenshot
from tests.integration.test_example_app import Demo, demo, short_path
from tests.support import eventually

__all__ = ["demo", "short_path"]  # fixtures


def text(browser: WebDriver, element_id: str) -> str:
    script = "return document.getElementById(arguments[0]).innerText"
    return str(browser.execute_script(script, element_id))


def click(browser: WebDriver, selector: str) -> None:
    browser.find_element(By.CSS_SELECTOR, selector).click()


def show(browser: WebDriver, width: int = 1280, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def test_status_page_opens_from_the_first_page(browser: WebDriver, demo: Demo) -> None:
    show(browser)
    browser.get(demo.url)
    browser.find_element(By.LINK_TEXT, "Status page").click()
    eventually(lambda: text(browser, "headline") == "Redis is healthy", 5)
    assert console(browser) == []


def test_a_flood_is_one_event_and_parallel_requests_say_so(browser: WebDriver, demo: Demo) -> None:
    show(browser)
    browser.get(demo.url)
    click(browser, "[data-fire=guess][data-times='8']")
    eventually(lambda: text(browser, "summary").startswith("8 sent at once: "), 10)
    assert "5 × 401" in text(browser, "summary")
    eventually(lambda: "Limit of 5/minute reached on login × 3" in text(browser, "alerts"), 5)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#alerts li")) == 1


def test_typed_text_survives_a_disconnect(browser: WebDriver, demo: Demo) -> None:
    show(browser)
    browser.get(f"{demo.url}/chat/")
    eventually(lambda: text(browser, "connection") == "connected", 5)
    box = browser.find_element(By.ID, "text")
    box.send_keys("hello\n")
    eventually(lambda: "somebody: hello" in text(browser, "heard"), 5)
    assert box.get_property("value") == ""

    demo.act("kill")
    box.send_keys("is anybody there?\n")  # sent, refused, and the connection closed
    eventually(lambda: text(browser, "connection").startswith("closed 1013"), 10)
    assert box.get_property("value") == "is anybody there?"
    box.send_keys(" Really?\n")  # not even sent
    assert box.get_property("value") == "is anybody there? Really?"
    assert text(browser, "unsent").startswith("Not sent")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read(browser: WebDriver, demo: Demo, width: int, scheme: str) -> None:
    show(browser, width, scheme)
    for page, name in (("", "demo"), ("/chat/", "chat")):
        browser.get(demo.url + page)
        scroll, visible = browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert scroll <= visible == width
        for selector in ("body", ".lead", ".card p", "button"):
            assert contrast(browser, selector) >= 4.5, selector  # WCAG 2.1, AA
        screenshot(browser, f"{name}-{width}-{scheme}.png")
