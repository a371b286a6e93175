"""A headless chromium, as Debian ships it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def _browser() -> Iterator[WebDriver]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary, "no chromium; on Debian: apt install chromium chromium-driver"
    assert driver, "no chromedriver; on Debian: apt install chromium-driver"
    options = Options()
    options.binary_location = binary
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(driver)) as browser:
        yield browser


@pytest.fixture
def browser(_browser: WebDriver) -> Iterator[WebDriver]:
    """The browser of the module's tests, showing nothing, with nothing in its console."""
    yield _browser
    _browser.get("about:blank")  # the last test's page must not go on polling
    _browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    _browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    _browser.get_log("browser")  # type: ignore[no-untyped-call]
