"""The page of an inspection: what it shows, that it is whole in itself, and that a browser can show it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.report.browser import media, needs_browser, requests, resize
from vidaccel.report import heat
from vidaccel.report.inspection import section, write_page

CELLS = 12


def encoded(cells: np.ndarray) -> str:
    return base64.b64encode(cells.astype(np.uint8).tobytes()).decode()


def head(number: int, dense: bool) -> dict[str, Any]:
    rows, columns = np.mgrid[:CELLS, :CELLS]
    far = abs(rows - columns)
    return {
        "head": number, "map": {"bytes": encoded(255 - 20 * far), "most": 12.345},
        "mask": None if dense else {"bytes": encoded(255 * (far < 3 + number))},
        "density": 0.4321, "video_density": 0.3141, "best_mass": None if dense else 0.951, "mass_on_text": 0.05,
        "kept_mass": None if dense else {"mean": 0.9 - 0.1 * number, "worst_hundredth": 0.51, "least": 0.4},
        "best_cells": {"0.1": 0.5, "0.25": 0.7, "0.5": 0.9},
        "pattern": None if dense else {"name": "band", "width": 0.05, "axes": "HWF",
                                       "calibrated": {"error": 0.00123, "density": 0.3, "cost": 0.31}},
        "order": None if dense else {"queries_moved": 0.9, "keys_moved": 0.8,
                                     "groups": {"count": 7, "least": 3, "most": 1200}},
    }  # fmt: skip


def call(step: int, dense: bool) -> dict[str, Any]:
    return {
        "expert": "transformer", "layer": 3, "step": step, "branch": "cond", "dense": dense,
        "how": "dense in first steps" if dense else "sparse by head_profile, precision torch.bfloat16",
        "layout": {"frames": 5, "height": 4, "width": 8, "text_before": 16, "text_after": 32}, "tokens": 189,
        "edges": [0, *range(16, 176, 16), 176, 189], "video": [1, 11], "heads": [head(each, dense) for each in (0, 1)],
    }  # fmt: skip


@pytest.fixture
def values() -> dict[str, Any]:
    return {
        "kind": "inspection", "created": "2026-01-02T03:04:05+00:00", "vidaccel": "0.1.0", "git": None,
        "device": {"name": "CPU"}, "versions": {"torch": "2.9"}, "seed": 3, "prompt": "a <b>red</b> circle",
        "negative_prompt": None, "model": {"name": "miniature:wan"},
        "settings": {"width": 208, "height": 144, "num_frames": 49, "num_inference_steps": 20, "dtype": "float32"},
        "method": {"name": "head_profile", "options": {"max_error": 0.01}}, "schedule": {"dense_first_steps": 1},
        "backend": "cpu", "notes": ["a remark"], "scale": {"exponent": 2.5}, "calls": [call(0, True), call(5, False)],
    }  # fmt: skip


class Reader(HTMLParser):
    """Tags that are open, and what images and links there are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    reader.text = " ".join(reader.text.split())
    return reader


def picture(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
        return np.asarray(image.convert("RGB"))


def test_section_has_a_map_and_a_mask_for_each_head(values: dict[str, Any]) -> None:
    reader = read(str(section(values)))
    images = [attrs["href"] or "" for tag, attrs in reader.seen if tag == "image"]
    labels = [attrs["aria-label"] or "" for tag, attrs in reader.seen if tag == "svg"]
    assert len(images) == len(labels) == 2 + 4
    assert [label.split(" of")[0] for label in labels] == ["Attention map"] * 3 + ["Mask", "Attention map", "Mask"]
    assert "12.3 times even attention" in labels[2] and "31.4% of the video's pairs are kept" in labels[3]
    near, far = picture(images[2])[0, 0], picture(images[2])[0, 11]
    assert near.tolist() == [0x0C, 0x1C, 0x30] and far.sum() > near.sum() + 300
    assert picture(images[3])[0, [0, 2, 3]].tolist() == [[0x1D, 0x4F, 0x7C]] * 2 + [[0xEE, 0xF2, 0xF6]]
    assert picture(images[0]).shape == (CELLS, CELLS, 3)


def test_section_says_the_numbers(values: dict[str, Any]) -> None:
    text = read(str(section(values))).text
    for said in (
        "Step 5, layer 3", "sparse by head_profile, precision bfloat16",
        "5 × 4 × 8 video tokens, 16 of text before them, 13 of text after them",
        "keep 85.0% of their attention in 31.4% of the video's pairs; head 1 keeps least, 80.0%.",
        "band, width 0.05, axes HWF, calibrated: error 0.0012, density 0.3, cost 0.31",
        "90% of queries and 80% of keys moved, 7 groups of 3 to 1,200 keys.", "a remark", "a <b>red</b> circle",
        "weight to the power of 0.4",
    ):  # fmt: skip
        assert said in text, said
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", str(section(values)))
    assert dict(pairs[-11:]) == {
        "kept mass": "80.0%", "best blocks would keep": "95.1%", "worst 1% of rows": "51.0%", "worst row": "40.0%",
        "video density": "0.314", "density": "0.432", "in the best 10% of cells": "50.0%",
        "in the best 25% of cells": "70.0%", "in the best 50% of cells": "90.0%", "on text": "5.0%",
        "darkest, × even": "12.3",
    }  # fmt: skip
    assert "kept mass" not in dict(pairs[:5])


def test_section_can_stand_in_any_page(values: dict[str, Any]) -> None:
    """No scripts, no ids that could be there twice, no request."""
    reader = read(str(section(values)))
    assert reader.seen[0][0] == "section" and not [tag for tag, _ in reader.seen if tag in ("script", "style", "html")]
    assert not [attrs for _, attrs in reader.seen if "id" in attrs or "onload" in attrs]
    addresses = [attrs.get("href") or attrs.get("src") for tag, attrs in reader.seen if tag in ("image", "img", "a")]
    assert addresses and all((each or "").startswith("data:image/png;base64,") for each in addresses)


def test_page_is_whole_and_runs_no_script(values: dict[str, Any], tmp_path: Path) -> None:
    path = write_page(values, tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"] and len(text) < 100_000
    assert "script-src 'none'" in text and "<script" not in text and text.count("Attention of miniature:wan") == 3
    assert "max error" in read(text).text


def test_lines_stand_where_frames_and_text_begin(values: dict[str, Any]) -> None:
    places = {float(each) for each in re.findall(r"V12|M([\d.]+) 0", str(section(values))) if each}
    assert places == {1.0, 3.0, 5.0, 7.0, 9.0, 11.0}
    values["calls"][0]["layout"] |= {"frames": 20, "height": 2, "width": 4}
    values["calls"].pop()
    assert {float(each) for each in re.findall(r"M([\d.]+) 0", str(section(values)))} == {1.0, 11.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(kind="eval"), "no inspection, as `vidaccel inspect` writes it, but 'eval'"),
        (lambda values: values.pop("calls"), "not whole: KeyError 'calls'"),
        (lambda values: values["calls"][0].update(heads=3), "not whole: TypeError"),
        (lambda values: values["calls"][1]["heads"][0]["map"].update(bytes="AAAA"), "12 x 12 cells has 3 bytes"),
        (lambda values: values["calls"][1]["heads"][0]["mask"].update(bytes="%"), "a map is not base64"),
        (lambda values: values["calls"][1]["layout"].update(frames=0), "frames=0"),
        (lambda values: values["calls"][1].update(edges=list(range(999))), "998 cells is none of 1 to 128"),
    ],
)  # fmt: skip
def test_what_is_no_inspection_is_refused(values: dict[str, Any], change: Any, said: str, tmp_path: Path) -> None:
    change(values)
    with pytest.raises(ValueError, match=said):
        write_page(values, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="but 'list'"):
        section([])  # type: ignore[arg-type]


def test_ramps_go_from_nothing_to_all() -> None:
    for colours in (heat.MAP, heat.MASK):
        line = picture(heat.ramp_uri(colours))
        assert line.shape == (1, 256, 3) and (np.diff(line.astype(int).sum(2)) <= 0).all()
        assert "".join(f"{each:02x}" for each in line[0, 255]) == colours[-1].removeprefix("#")


@needs_browser[0]
@needs_browser[1]
def test_a_browser_shows_it(browser: Any, values: dict[str, Any], tmp_path: Path) -> None:
    path = write_page(json.loads(json.dumps(values)), tmp_path / "page.html")
    browser.get_log("browser")
    for width, scheme in ((320, "light"), (1280, "dark")):
        resize(browser, width)
        media(browser, prefers_color_scheme=scheme)
        browser.get_log("performance")
        browser.get(path.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        sizes = browser.execute_script("return [...document.querySelectorAll('svg.cells')].map(each => "
                                       "[each.clientWidth, each.clientHeight])")  # fmt: skip
        assert len(sizes) == 6 and all(abs(wide - high) <= 1 and wide >= 100 for wide, high in sizes)
        assert all(browser.execute_script("return [...document.images].map(each => each.naturalWidth === 256)"))
        assert all(url.startswith(("file:", "data:")) for url in requests(browser))
    assert browser.get_log("browser") == []
