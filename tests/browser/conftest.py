"""A headless Chromium, driven through its own driver."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.support.availability import missing

#: As root there is no sandbox; and the browser must not look for updates, or anything else, by itself.
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


class Browser:
    """A page in a window, and what it did: messages on its console, requests to the network."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.messages: list[str] = []
        self.requests: list[str] = []

    def open(self, url: str, *, width: int = 1200, height: int = 900, scheme: str = "light", zoom: float = 1) -> None:
        """Load a page as a device would that is so wide and likes light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": zoom, "mobile": width < 600}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(url)
        self.messages += [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            told = json.loads(entry["message"])["message"]
            if told["method"] == "Network.requestWillBeSent":
                self.requests.append(told["params"]["request"]["url"])

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script)

    def picture(self, path: Path) -> Path:
        """What is seen of it, as PNG."""
        assert self.driver.save_screenshot(str(path))
        return path


@pytest.fixture(scope="session")
def _driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing("Chromium with its driver", "apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = Chrome(options, Service(driver))
    yield started
    started.quit()


@pytest.fixture
def browser(_driver: Chrome) -> Browser:
    """A browser that has said nothing yet."""
    _driver.get("about:blank")
    for log in ("browser", "performance"):
        _driver.get_log(log)
    return Browser(_driver)
