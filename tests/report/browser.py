"""A real headless browser for the tests of pages."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")
needs_browser = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER),
                       reason="chromium and chromedriver are not installed (apt-get install chromium chromium-driver)"),
    pytest.mark.timeout(180),
]
SAMPLE = """
const [seconds, done] = [arguments[0], arguments[1]], [dense, fast] = document.querySelectorAll('video');
const samples = [], start = performance.now();
(function sample() {
  if (!dense.seeking && !fast.seeking) samples.push([dense.currentTime, fast.currentTime]);
  if (performance.now() - start < seconds * 1000) requestAnimationFrame(sample); else done(samples);
})();
"""
PIXELS = """
const canvas = document.getElementById('canvas'), pen = canvas.getContext('2d');
const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
let sum = 0; for (let i = 0; i < data.length; i += 4) sum += data[i] + data[i + 1] + data[i + 2];
return sum / canvas.width / canvas.height / 3;
"""
PICTURE = "return document.getElementById('canvas').toDataURL()"


def wait(browser: Any, condition: str, seconds: float = 20) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, seconds, 0.05).until(lambda driver: driver.execute_script(f"return {condition}"), condition)


def resize(browser: Any, width: int, height: int = 900) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})


def media(browser: Any, **features: str) -> None:
    listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": listed})


def requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [message["params"]["request"]["url"] for message in messages
            if message["method"] == "Network.requestWillBeSent"]


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def wait_for_frame(browser: Any, frame: int | None = None) -> None:
    """Until both videos rest on one frame: the given one, or any that they share."""
    wait(browser, "[...document.querySelectorAll('video')].every((video, _, all) => video.paused && !video.seeking && "
                  f"Math.floor(video.currentTime * 16 + 0.01) === ({json.dumps(frame)} ?? "
                  "Math.floor(all[0].currentTime * 16 + 0.01)))")
