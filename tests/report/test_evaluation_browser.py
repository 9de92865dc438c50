"""The page of an eval in a real headless browser: clips in step, plots by pointer and keys, nothing too wide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.report.conftest import FPS, shapes
from tests.report.evals import PROMPTS, eval_of_all, write
from vidaccel.report.evaluation import write_page

pytestmark = needs_browser
RIGHT, LEFT, END, TAB = "\ue014", "\ue012", "\ue010", "\ue004"
FOCUS = "document.activeElement.dataset.text"
TIP = "document.getElementById('tip')"
MARK = """
const mark = document.querySelectorAll('.plot:not([hidden]) .point')[arguments[0]].getBoundingClientRect();
return [(mark.left + mark.right) / 2, (mark.top + mark.bottom) / 2];
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a page with six pairs of clips, of the six rows of one model."""
    folder = tmp_path_factory.mktemp("eval")
    write(folder, eval_of_all(), [np.stack(shapes(shift)) for shift in (0, 2, 4)])
    return write_page(folder, videos=7).as_uri()


@pytest.fixture
def opened(browser: Any, page: str) -> Any:
    """The browser on the page anew; the logs begin with it."""
    media(browser)
    resize(browser, 1440)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page)
    wait(browser, "[...document.querySelectorAll('video')].every((video) => video.readyState >= 2)")
    return browser


def choose(browser: Any, select: str, text: str) -> None:
    """Take the option of a select box whose text begins so."""
    browser.execute_script("const box = document.getElementById(arguments[0]);"
                           "box.value = [...box.options].find((each) => each.text.includes(arguments[1])).value;"
                           "box.dispatchEvent(new Event('change'))", select, text)  # fmt: skip


def show_plot(browser: Any) -> None:
    """Scroll to it, and wait until that is over: a tip is hidden where the page moves away under it."""
    browser.execute_async_script("document.querySelector('.plot').scrollIntoView({block: 'center'});"
                                 "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))")


def pointer(browser: Any, kind: str, x: float, y: float) -> None:
    button = "none" if kind == "mouseMoved" else "left"
    browser.execute_cdp_cmd("Input.dispatchMouseEvent",
                            {"type": kind, "x": x, "y": y, "button": button, "clickCount": 1})


def test_clips_wait_then_play_in_step(opened: Any) -> None:
    assert opened.execute_async_script(SAMPLE, 0.3)[-1] == [0.5 / FPS, 0.5 / FPS], "it plays before it is asked to"
    opened.find_element("id", "play").click()
    samples = opened.execute_async_script(SAMPLE, 5.0)
    dense = [time for time, _ in samples]
    assert max(dense) > 2.5 and any(after < before - 1 for before, after in zip(dense, dense[1:], strict=False))
    assert max(abs(one - other) for one, other in samples) < 1 / FPS


def test_scrubber_by_keys(opened: Any) -> None:
    opened.execute_script("document.getElementById('scrub').focus()")
    press(opened, RIGHT, RIGHT, RIGHT, LEFT)
    wait_for_frame(opened, 2)
    wait(opened, "document.getElementById('clock').textContent === 'frame 3 of 49'")


def test_difference_follows_the_row(opened: Any) -> None:
    opened.find_element("id", "toggle").click()
    wait(opened, f"(() => {{ {PIXELS} }})() > 1")
    for row in ("random", "fewer-steps", "#7", "#2"):
        before = opened.execute_script(PICTURE)
        choose(opened, "row", row)
        wait_for_frame(opened, 0)
        wait(opened, f"{PICTURE.removeprefix('return ')} !== {json.dumps(before)} && (() => {{ {PIXELS} }})() > 1")
        assert row in opened.find_element("css selector", "figcaption[data-method]").text


def test_choosing_goes_on_playing(opened: Any) -> None:
    opened.find_element("id", "play").click()
    choose(opened, "row", "fewer-steps")
    wait(opened, "[...document.querySelectorAll('video')].every((video) => !video.paused && video.currentTime > 0.3)")
    assert max(abs(one - other) for one, other in opened.execute_async_script(SAMPLE, 1.0)) < 1 / FPS


def test_rows_show_their_clips_maps_and_settings(opened: Any) -> None:
    def shown(selector: str) -> bool:
        return bool(opened.execute_script("return [...document.querySelectorAll(arguments[0])].some("
                                          "(each) => each.getClientRects().length > 0)", selector))  # fmt: skip

    choose(opened, "row", "#3 radial, density 0.3")
    assert shown("#screens") and shown(".about image") and not shown("#no-clip")
    choose(opened, "row", "#2 dense+easycache")
    assert shown("#screens") and not shown(".about image")
    cases = opened.execute_script("return [...document.getElementById('clip').options].map((each) => each.text)")
    assert cases == [f"{PROMPTS[0]}, seed 0", f"{PROMPTS[1]}, seed 0"]
    choose(opened, "row", "dense")
    assert not shown("#screens") and not shown(".about image") and shown("#no-clip")
    assert opened.execute_script("return document.querySelectorAll('.about:not([hidden])').length") == 1


def test_tip_by_keys(opened: Any) -> None:
    opened.execute_script("document.querySelector('.plot:not([hidden]) .point').focus({preventScroll: true})")
    first = opened.execute_script(f"return {FOCUS}")
    assert first.startswith("#1 dense\nPSNR dB identical")
    assert opened.execute_script(f"return {TIP}.textContent") == first
    press(opened, RIGHT)
    assert opened.execute_script(f"return {TIP}.textContent").startswith("#6 radial, density 0.5")
    press(opened, END)
    assert "#7 radial+easycache" in opened.execute_script(f"return {TIP}.textContent")
    assert "on the front" in opened.execute_script("return document.activeElement.getAttribute('aria-label')")
    press(opened, "\ue00c")
    assert opened.execute_script(f"return {TIP}.hidden")
    # One stop for the whole plot, and then on.
    press(opened, TAB)
    assert not opened.execute_script("return document.activeElement.classList.contains('point')")


@pytest.mark.parametrize("width", [1440, 390])
def test_tip_by_pointer_stays_on_the_screen(opened: Any, width: int) -> None:
    resize(opened, width)
    show_plot(opened)
    for at in range(7):
        x, y = opened.execute_script(MARK, at)
        pointer(opened, "mouseMoved", x, y)
        wait(opened, f"!{TIP}.hidden")
        text = opened.execute_script("return document.querySelector('.point.at').dataset.text")
        assert opened.execute_script(f"return {TIP}.textContent") == text
        box = opened.execute_script(f"const box = {TIP}.getBoundingClientRect(); return [box.left, box.right, box.top]")
        assert 0 <= box[0] < box[1] <= width and box[2] >= 0
    pointer(opened, "mouseMoved", 2, 2)
    wait(opened, f"{TIP}.hidden")


def test_tap_keeps_the_tip(opened: Any) -> None:
    resize(opened, 390)
    show_plot(opened)
    x, y = opened.execute_script(MARK, 6)
    for kind in ("mousePressed", "mouseReleased"):
        pointer(opened, kind, x + 6, y + 6)
    wait(opened, f"!{TIP}.hidden")
    assert opened.execute_script(f"return {FOCUS}").startswith("#7 ")


def test_choice_of_metric(opened: Any) -> None:
    shown = ("return [...document.querySelectorAll('#group-0 ~ .plots .plot')].filter((each) => !each.hidden)"
             ".map((each) => each.dataset.metric)")  # fmt: skip
    assert opened.execute_script(shown) == ["psnr"]
    opened.find_element("css selector", "input[value=latent_error]").click()
    assert opened.execute_script(shown) == ["latent_error"]


def test_plots_are_drawn_in_the_scheme_of_the_reader(opened: Any) -> None:
    ink = ("return [getComputedStyle(document.querySelector('.plot text')).fill, getComputedStyle(document.body).color,"
           " document.querySelector('.plot svg').getBoundingClientRect().height]")  # fmt: skip
    inks = set()
    for scheme in ("light", "dark"):
        media(opened, prefers_color_scheme=scheme)
        fill, body, height = opened.execute_script(ink)
        assert fill == body and height > 200
        inks.add(fill)
    assert len(inks) == 2


@pytest.mark.parametrize("width", [320, 390, 1440])
def test_nothing_overflows(opened: Any, width: int) -> None:
    resize(opened, width)
    opened.find_element("id", "toggle").click()
    opened.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; });"
                          "document.querySelectorAll('.about, .plot').forEach((part) => { part.hidden = false; })")
    assert opened.execute_script("return innerWidth") == width
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    small = opened.execute_script("return [...document.querySelectorAll('button, select, #scrub')].filter((each) =>"
                                  " each.getBoundingClientRect().height < 40).map((each) => each.id)")
    assert small == []


def test_page_asks_nobody_and_logs_no_error(opened: Any) -> None:
    opened.find_element("id", "toggle").click()
    choose(opened, "row", "fewer-steps")
    choose(opened, "row", "svg")
    opened.execute_async_script(SAMPLE, 0.5)
    urls = requests(opened)
    assert any(url.startswith("file:") for url in urls), "the performance log is empty"
    assert [url[:80] for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.get_log("browser") == []


def test_print_shows_everything_without_controls(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    hidden = opened.execute_script("return ['#play', '.choice', 'nav'].filter((each) =>"
                                   " document.querySelector(each).getClientRects().length > 0)")
    assert hidden == [] and opened.execute_script("return document.querySelector('details').open")
    pdf = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]
    assert len(pdf) > 20_000


def test_page_without_script_shows_plots_and_tables(browser: Any, page: str, tmp_path: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page)
        text = browser.find_element("tag name", "body").text
        assert "needs the script" in text and "fewer-steps" in text and "layers and steps" in text
        assert browser.find_element("css selector", ".plot svg").size["height"] > 200
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
