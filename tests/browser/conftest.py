"""A real browser without a window: Debian's chromium, driven by selenium. One for all tests of the tier."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests run as root, in a container as a rule
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser."""
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            pytest.skip(f"{name} is not installed (sh .ci/setup test installs it)")
    options = ChromeOptions()
    options.binary_location = str(found["chromium"])
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service(str(found["chromedriver"])))
    try:
        driver.set_page_load_timeout(20)
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chrome: Chrome, request: pytest.FixtureRequest) -> Iterator[Chrome]:
    """The browser with an empty page, a desktop's window and light colours.

    With RELAYD_SCREENSHOTS=DIR in the environment, what it shows at a test's end is kept there.
    """
    chrome.get("about:blank")
    look_like(chrome)
    chrome.get_log("browser")  # type: ignore[no-untyped-call]
    yield chrome
    if directory := os.environ.get("RELAYD_SCREENSHOTS"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        chrome.save_screenshot(str(Path(directory) / f"{request.node.name}.png"))


def look_like(
    chrome: Chrome, *, width: int = 1280, height: int = 900, dark: bool = False, still: bool = False
) -> None:
    """Take a window of this size, the colours that somebody prefers, and perhaps reduced motion."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
    ]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
