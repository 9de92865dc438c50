"""The page in a real headless browser: it plays in step, fits, and asks nobody for anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import (
    PICTURE,
    PIXELS,
    SAMPLE,
    media,
    needs_browser,
    press,
    requests,
    resize,
    wait,
    wait_for_frame,
)
from vidaccel.report import write_report

pytestmark = needs_browser
FRAME = 1 / 16


@pytest.fixture
def opened(browser: Any, record: dict[str, Any], run_folder: Path) -> Any:
    """The browser on a new page whose videos have loaded; the logs begin with it."""
    media(browser)
    resize(browser, 1280)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(write_report(record, run_folder).as_uri())
    wait(browser, "[...document.querySelectorAll('video')].every((video) => video.readyState >= 2)")
    return browser


def test_videos_play_in_step_and_loop(opened: Any) -> None:
    samples = opened.execute_async_script(SAMPLE, 5.0)
    assert len(samples) > 50
    dense = [time for time, _ in samples]
    assert max(dense) > 2.5, "a clip of three seconds did not play to its end"
    assert any(after < before - 1 for before, after in zip(dense, dense[1:], strict=False)), "it did not loop"
    assert max(abs(one - other) for one, other in samples) < FRAME


def test_page_asks_nobody_and_logs_no_error(opened: Any) -> None:
    opened.find_element("id", "toggle").click()
    opened.execute_async_script(SAMPLE, 1.0)
    urls = requests(opened)
    assert any(url.startswith("file:") for url in urls), "the performance log is empty"
    assert [url[:80] for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.get_log("browser") == []


def test_browser_knows_the_videos_codec(opened: Any) -> None:
    assert opened.execute_script("return document.createElement('video').canPlayType("
                                 "'video/mp4; codecs=\"avc1.64000c\"')") == "probably"


def test_policy_stops_a_request(opened: Any) -> None:
    opened.execute_script("document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))")
    wait(opened, "[...document.images].every((image) => image.complete)")
    assert any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_nothing_overflows(opened: Any, width: int) -> None:
    resize(opened, width)
    opened.find_element("id", "toggle").click()
    opened.execute_script("document.querySelector('details').open = true")
    assert opened.execute_script("return innerWidth") == width
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    assert opened.execute_script("return document.getElementById('dense').getBoundingClientRect().width") >= 100


def test_buttons_and_keys_drive_both_videos(opened: Any) -> None:
    press(opened, " ")
    wait_for_frame(opened)
    assert opened.find_element("id", "play").text == "Play"
    opened.execute_script("const scrub = document.getElementById('scrub'); scrub.value = 20;"
                          "scrub.dispatchEvent(new Event('input'))")
    wait_for_frame(opened, 20)
    press(opened, "\ue014", "\ue014", "\ue012", "\ue014", "\ue012")
    wait_for_frame(opened, 21)
    wait(opened, "document.getElementById('clock').textContent === 'frame 22 of 49'")
    opened.find_element("id", "play").click()
    wait(opened, "[...document.querySelectorAll('video')].every((video) => !video.paused)")
    press(opened, " ")
    wait_for_frame(opened)
    assert opened.find_element("id", "play").text == "Play"


def test_scrubbing_fast_ends_where_it_should(opened: Any) -> None:
    press(opened, " ")
    opened.execute_script("const scrub = document.getElementById('scrub');"
                          "for (const value of [3, 40, 3, 11, 48, 0, 31, 11]) {"
                          " scrub.value = value; scrub.dispatchEvent(new Event('input')); }")
    wait_for_frame(opened, 11)


def test_difference_is_drawn_from_equal_frames(opened: Any, record: dict[str, Any], run_folder: Path) -> None:
    opened.find_element("id", "toggle").click()
    opened.execute_async_script("setTimeout(arguments[0], 300)")
    moved, picture = opened.execute_script(PIXELS), opened.execute_script(PICTURE)
    wait(opened, f"{PICTURE.removeprefix('return ')} !== {json.dumps(picture)}")
    (run_folder / "fast.mp4").write_bytes((run_folder / "dense.mp4").read_bytes())
    opened.get(write_report(record, run_folder).as_uri())
    opened.find_element("id", "toggle").click()
    same = []
    for _ in range(12):
        opened.execute_async_script("setTimeout(arguments[0], 120)")
        same.append(opened.execute_script(PIXELS))
    # While it plays, a busy browser may hand over the frame after the one that it names; once paused, never.
    assert moved > 2 and min(same) < 0.1 * moved
    press(opened, " ")
    wait_for_frame(opened)
    wait(opened, f"(() => {{ {PIXELS} }})() < {0.1 * moved}")
    opened.execute_async_script("setTimeout(arguments[0], 500)")
    assert opened.execute_script(PIXELS) < 0.1 * moved


def test_reduced_motion_waits_for_the_reader(opened: Any) -> None:
    media(opened, prefers_reduced_motion="reduce")
    opened.refresh()
    wait(opened, "document.getElementById('dense').readyState >= 2")
    samples = opened.execute_async_script(SAMPLE, 0.5)
    assert {tuple(sample) for sample in samples} == {(0, 0)}


def test_undecodable_video_is_said(browser: Any, record: dict[str, Any], run_folder: Path) -> None:
    media(browser)
    (run_folder / "fast.mp4").write_bytes((run_folder / "fast.mp4").read_bytes()[:600])
    browser.get(write_report(record, run_folder).as_uri())
    wait(browser, "document.getElementById('trouble').textContent.includes('cannot decode')")
