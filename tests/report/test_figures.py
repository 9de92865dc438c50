"""The plots: every point where it should be, colours of the page, small pictures; maps of layers and steps."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import imageio.v3 as iio
import numpy as np
import pytest

from tests.report.evals import MAP, dense, eval_of_all, record, write
from vidaccel.report import breakdown
from vidaccel.report.eval_folder import Group, read_groups
from vidaccel.report.heatmap import heatmap_svg, told
from vidaccel.report.measures import Metric
from vidaccel.report.pareto import pareto_png, pareto_svg
from vidaccel.report.points import points
from vidaccel.report.svg import COLOURS

SVG = "{http://www.w3.org/2000/svg}"
PSNR, ERROR = Metric("psnr", "higher"), Metric("latent_error", "lower")
HREF = "{http://www.w3.org/1999/xlink}href"


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return read_groups([write(tmp_path, eval_of_all())])[0]


def marks(svg: str) -> list[tuple[str, float, float]]:
    """What each point says, and where its mark is."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        if element.get("class") == "point":
            use = next(element.iter(f"{SVG}use"))
            title = element.findtext(f"{SVG}title") or ""
            found.append((title, float(use.get("x", "nan")), float(use.get("y", "nan"))))
    return found


@pytest.mark.parametrize("metric", [PSNR, ERROR], ids=lambda metric: metric.name)
def test_points_lie_by_speed_and_quality(group: Group, metric: Metric) -> None:
    found = points(group, metric)
    drawn = marks(pareto_svg(found, metric, "p", "title"))
    assert [text for text, _, _ in drawn] == [point.text for point in found]
    speeds, across = [point.speed for point in found], [x for _, x, _ in drawn]
    assert np.corrcoef(speeds, across)[0, 1] > 0.99999
    # SVG counts from the top: better is up, for errors as well, and identical above all.
    errors = [(point.quality or 0) * (-1 if metric is PSNR else 1) for point in found]
    heights = [drawn[at][2] for at in sorted(range(1, len(found)), key=errors.__getitem__)]
    assert heights == sorted(heights) and drawn[0][2] < heights[0]


def test_figures_share_a_page(group: Group) -> None:
    one, other = (pareto_svg(points(group, metric), metric, f"plot-{metric.name}", "t") for metric in (PSNR, ERROR))
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (one, other)]
    assert len(set(ids[0])) == len(ids[0]) and not set(ids[0]) & set(ids[1])
    for svg, own in zip((one, other), ids, strict=True):
        uses = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
        assert uses and {first or second for first, second in uses} <= set(own)
        assert "<style" not in svg and "<metadata" not in svg and "<?xml" not in svg


def test_colours_are_the_pages(group: Group) -> None:
    svg = pareto_svg(points(group, PSNR), PSNR, "p", "t")
    bare = re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", svg)
    assert not set(re.findall(r"#[0-9a-f]{6}\b", bare)) & set(COLOURS.values())
    for name in ("ink", "sparse", "cached", "both"):
        assert f"var(--{name}, {COLOURS[name]})" in svg
    # What matplotlib draws in a colour of its own would be lost in the dark.
    assert not re.search(r"(fill|stroke): (#000000|black|#ffffff)", bare)


def test_names_are_escaped(tmp_path: Path) -> None:
    attack = "</title><script>alert(1)</script>"
    svg = pareto_svg(points(read_groups([write(tmp_path, [record(attack)])])[0], PSNR), PSNR, "p", attack)
    assert "<script" not in svg and attack in marks(svg)[1][0]


def test_pictures_of_documents_are_small_and_the_same_each_time(group: Group) -> None:
    found = points(group, PSNR)
    picture = pareto_png(found, PSNR, group.title)
    assert len(picture) < 60_000 and picture == pareto_png(found, PSNR, group.title)
    assert iio.imread(picture).shape[1] > 500


def test_nothing_but_identical_clips_is_drawn(tmp_path: Path) -> None:
    found = points(read_groups([write(tmp_path, [dense(), record(psnr=None)])])[0], PSNR)
    drawn = marks(pareto_svg(found, PSNR, "p", "t"))
    assert len(drawn) == 2 and drawn[0][2] == drawn[1][2] and drawn[0][1] < drawn[1][1]


def test_map_has_a_pixel_for_each_place() -> None:
    svg = heatmap_svg(MAP, "m", "radial")
    image = next(ElementTree.fromstring(svg).iter(f"{SVG}image"))
    cells = iio.imread(base64.b64decode((image.get(HREF) or "").partition(",")[2]))[..., :3].astype(int)
    assert cells.shape[:2] == (3, 4)
    if "scale(1 -1)" in (image.get("transform") or ""):
        cells = cells[::-1]

    def colour(name: str) -> list[int]:
        return [int(COLOURS[name][at : at + 2], 16) for at in (1, 3, 5)]

    assert [cells[0, 2].tolist(), cells[0, 3].tolist(), cells[1, 3].tolist()] == [
        colour("reused"), colour("predicted"), colour("mixed")]  # fmt: skip
    # Denser is darker.
    assert cells[0, 0].sum() < cells[2, 1].sum() < cells[1, 1].sum()


def test_map_in_words() -> None:
    assert told(MAP) == ("Of 12 places, layers by steps, 4 dense, 3 sparse at a mean density of 0.30, 3 reused, "
                         "1 predicted and 1 different in each guidance pass.")
    assert told({"layers": 1, "steps": [{"kinds": "D", "density": [1.0]}]}) == "Of 1 places, layers by steps, 1 dense."


@pytest.mark.parametrize("bad", [
    {}, {"layers": 2, "steps": []}, {"layers": 2, "steps": [{"kinds": "D", "density": [1.0]}]},
    {"layers": 2, "steps": [{"kinds": "DX", "density": [1.0, 1.0]}]},
    {"layers": 1, "steps": [{"kinds": "D", "density": [1.5]}]}, {"layers": 1, "steps": [{"kinds": "D"}]},
    {"layers": 1, "steps": [{"kinds": "D", "density": ["much"]}]}, {"layers": 1, "steps": 3},
])  # fmt: skip
def test_other_maps_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a record's map"):
        heatmap_svg(bad, "m", "t")


def test_times_are_means_and_dense_is_first(group: Group) -> None:
    bars = breakdown.bars(group)
    assert [(bar.number, bar.label, bar.total) for bar in bars] == [(None, "dense", 10.0), (3, "radial", 6.0)]
    assert breakdown.bar_notes(group) == ["one run of each"]


def test_records_without_or_with_odd_times(tmp_path: Path) -> None:
    assert breakdown.bars(read_groups([write(tmp_path, [record()])])[0]) == []
    for odd in ({"dense": {}, "fast": {}}, {"dense": dict.fromkeys(breakdown.PARTS, -1), "fast": {}}):
        with pytest.raises(ValueError, match="a record's split gives seconds"):
            breakdown.bars(read_groups([write(tmp_path, [record(split=odd)])])[0])
