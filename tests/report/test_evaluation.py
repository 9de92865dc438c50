"""The page of an eval without a browser: what it holds, what it escapes, what it refuses, how it is written."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

from tests.report.conftest import shapes
from tests.report.evals import PROMPTS, dense, eval_of_all, record, write
from tests.report.test_inspection import values as inspected  # noqa: F401
from tests.report.test_page import ATTACK, Page
from vidaccel.report import clips
from vidaccel.report.eval_folder import read_groups
from vidaccel.report.evaluation import write_page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = [np.stack(shapes(shift)) for shift in (0, 2, 4)]
    return write(tmp_path_factory.mktemp("evals") / "eval", eval_of_all(), frames)


@pytest.fixture(scope="module")
def html(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page with three pairs of clips."""
    return write_page(folder, tmp_path_factory.mktemp("page") / "page.html", videos=3).read_text(encoding="utf-8")


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="clips">(.*?)</script>', html, re.DOTALL)
    assert found
    values = json.loads(found[1])
    assert isinstance(values, dict)
    return values


def small(tmp_path: Path, records: Sequence[dict[str, Any]], **options: Any) -> str:
    page = write_page(write(tmp_path / "small", records), tmp_path / "small.html", **options)
    return page.read_text(encoding="utf-8")


def test_page_has_all_parts(html: str) -> None:
    text = Page(html).text
    for part in ("2 models: quality against speed", "miniature:wan, 208x144x49, 20 steps", "org/other", "All rows",
                 "Where the time goes", "Not measured: no record has a breakdown", "A closer look", "layers and steps",
                 "Its records hold no map", "Dense attention in every layer and step", "Provenance", "Some CPU",
                 "sha256:0", "3 of 12 pairs", *PROMPTS):  # fmt: skip
        assert part in text
    # Four metrics of the first model, of which three have values, one of the second, and a map.
    labels = [attrs["aria-label"] or "" for tag, attrs in Page(html).tags if tag == "svg"]
    assert [label.split(" ")[0] for label in labels] == ["PSNR", "SSIM", "latent", "latent", "Step"]


def test_ids_are_unique_and_references_lead_somewhere(html: str) -> None:
    tags = Page(html).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for name in ("aria-labelledby", "aria-controls", "for"):
        assert {attrs[name] for _, attrs in tags if name in attrs} <= set(ids)
    assert {(attrs["href"] or "#")[1:] for tag, attrs in tags if tag == "a"} <= set(ids)


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    loading = ("src", "href", "xlink:href", "srcset", "poster", "action", "data", "background", "formaction", "ping")
    references = [attrs[name] or "" for _, attrs in Page(html).tags for name in loading if name in attrs]
    assert references and all(reference.startswith(("data:", "#")) for reference in references)
    shown = re.sub(r'xmlns(:xlink)?="http://www.w3.org/(2000/svg|1999/xlink)"', "", html)
    assert not re.search(r"https?://|url\([^#]|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", shown)


def test_policy_allows_the_pages_own_scripts_alone(html: str) -> None:
    policy = next(attrs["content"] or "" for _, attrs in Page(html).tags if attrs.get("http-equiv"))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert len(hashes) == 2 and "script-src " + " ".join(f"'sha256-{each}'" for each in hashes) + ";" in policy
    assert policy.startswith("default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline';")


def test_clips_are_the_best_rows_of_the_first_prompt(html: str, folder: Path) -> None:
    data, group = data_of(html), read_groups([folder])[0]
    names = {key: group.rows[int(key.partition("-")[2])].label for key in data["pairs"]}
    assert sorted(names.values()) == ["dense+easycache(threshold=0.1)", "radial", "radial+easycache(threshold=0.1)"]
    assert {pair["case"] for pairs in data["pairs"].values() for pair in pairs} == {f"{PROMPTS[0]}, seed 0"}
    # The reference of all three is in the page once.
    every = sum(data["pairs"].values(), [])
    assert len(data["videos"]) == 4 and {pair["videos"][0] for pair in every} == {every[0]["videos"][0]}
    mp4 = base64.b64decode(data["videos"][every[0]["videos"][0]].removeprefix("data:video/mp4;base64,"))
    played = iio.imread(mp4, extension=".mp4").astype(int)
    assert played.shape == (49, every[0]["height"], every[0]["width"], 3) and every[0]["fps"] == 16
    assert abs(played - np.stack(shapes(0)).astype(int)).mean() < 4


def test_clips_come_prompt_by_prompt(folder: Path) -> None:
    groups = read_groups([folder])
    ranks = [list(range(len(group.rows))) for group in groups]
    found = clips._wanted(groups, ranks)
    assert [cell.record["prompt"] for _, _, cell, _ in found] == [PROMPTS[0]] * 6 + [PROMPTS[1]] * 6
    assert all(groups[at].rows[row].label != "dense" for at, row, _, _ in found)


def test_large_clips_are_made_smaller() -> None:
    frames = np.zeros((2, 720, 1280, 3), np.uint8)
    frames[:, :360] = 255
    made = clips._smaller(frames)
    assert made.shape == (2, 270, 480, 3) and made[:, :130].min() > 250 and made[:, 140:].max() < 5
    assert clips._smaller(frames[:, :100, :100]).shape == (2, 100, 100, 3)


def test_folders_without_clips_make_a_page(tmp_path: Path) -> None:
    text = Page(small(tmp_path, [record(), dense()])).text
    assert "nothing was decoded, or the clips were not kept" in text and "pairs of clips" not in text
    assert "miniature:wan: quality against speed" in text


def test_page_without_clips_says_so(folder: Path, tmp_path: Path) -> None:
    html = write_page(folder, tmp_path / "none.html", videos=0).read_text(encoding="utf-8")
    assert data_of(html) == {"videos": [], "pairs": {}} and "made without clips" in Page(html).text


def test_rows_without_time_make_a_page(tmp_path: Path) -> None:
    text = Page(small(tmp_path, [record(speed=None)])).text
    assert "radial" in text and "dense, the reference" in text


def test_every_string_of_the_records_is_escaped(tmp_path: Path) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(item) for key, item in value.items()}
        return [poisoned(item) for item in value] if isinstance(value, list) else (
            value + ATTACK if isinstance(value, str) else value)  # fmt: skip

    first = eval_of_all()[1]
    kept = {name: first[name] for name in ("map", "split", "cell", "reference")}
    clean = Page(small(tmp_path, [first]))
    attacked = Page(small(tmp_path, [{**poisoned(first), **kept}]))
    assert [tag for tag, _ in attacked.tags if tag in ("script", "img", "svg", "image")] == [
        tag for tag, _ in clean.tags if tag in ("script", "img", "svg", "image")]  # fmt: skip
    assert not any("onerror" in attrs for _, attrs in attacked.tags)
    assert attacked.text.count("{{ 7 * 7 }}") > 20 and "<script>alert(1)</script>" in attacked.text


def test_prompts_cannot_end_the_data(folder: Path, tmp_path: Path) -> None:
    records = [{**each, "prompt": "</script><script>alert(1)</script>"} for each in eval_of_all()[:2]]
    frames = [np.stack(shapes(shift))[:3] for shift in (0, 2)]
    html = write_page(write(tmp_path / "e", records, frames), tmp_path / "p.html").read_text(encoding="utf-8")
    assert [pair["case"] for pairs in data_of(html)["pairs"].values() for pair in pairs] == [
        "</script><script>alert(1)</script>, seed 0"]  # fmt: skip


def test_several_folders_are_one_page(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", [record(model="third")])
    text = Page(write_page([folder, other], tmp_path / "page.html", videos=0).read_text(encoding="utf-8")).text
    assert "3 models: quality against speed" in text and "eval, other" in text
    with pytest.raises(ValueError, match="a page of 2 folders needs a path"):
        write_page([folder, other])


def test_page_lies_in_the_folder_and_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "e", [record()])
    path = write_page(folder)
    before = path.read_bytes()
    assert path == folder / "report.html"

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_page(folder)
    assert path.read_bytes() == before
    assert sorted(each.name for each in folder.iterdir()) == ["records.jsonl", "report.html"]


@pytest.mark.parametrize(("lines", "message"), [
    (None, "is no folder of `vidaccel eval`"), ("", "no finished cell"), ("{", "line 1 of .* is not JSON"),
    ("[1]\n", "line 1 of .* is not the record of a cell"), ('{"kind": "demo"}', "not the record of a cell"),
    (json.dumps({**record(), "metrics": {"psnr": 1.0}}), "not those of an eval"),
    (json.dumps({**record(), "timing": 3}), "not the record of a cell"), (b"\xff\xfe", "not text in UTF-8"),
])  # fmt: skip
def test_other_folders_are_refused(tmp_path: Path, lines: str | bytes | None, message: str) -> None:
    if lines is not None:
        (tmp_path / "records.jsonl").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(ValueError, match=message) as caught:
        write_page(tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["../outside", "..", "a/b", "/etc"])
def test_records_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    for part in ("cell", "reference"):
        with pytest.raises(ValueError, match="not two folders of the eval"):
            small(tmp_path, [record(**{part: name})])


def test_damaged_and_unequal_clips_are_named(tmp_path: Path) -> None:
    frames = [np.stack(shapes(0))[:3]]
    for harm in ("cut", "shape"):
        folder = write(tmp_path / harm, [record()], [frames[0], frames[0] if harm == "cut" else frames[0][:2]])
        path = next((folder / "cells").glob("*/clip.safetensors"))
        path.write_bytes(path.read_bytes()[:-100] if harm == "cut" else path.read_bytes())
        with pytest.raises(ValueError, match="damaged" if harm == "cut" else "its reference"):
            write_page(folder)
        assert not (folder / "report.html").exists()


def test_inspections_are_in_the_page(tmp_path: Path, inspected: dict[str, Any]) -> None:  # noqa: F811
    folder = write(tmp_path / "e", [record()])
    without = Page(write_page(folder).read_text(encoding="utf-8"))
    (folder / "inspection").mkdir()
    for name in ("one", "two"):
        (folder / "inspection" / f"{name}.json").write_text(json.dumps(inspected), encoding="utf-8")
    page = Page(write_page(folder).read_text(encoding="utf-8"))
    assert "Attention of single heads" not in without.text and page.text.count("Attention of miniature:wan") == 2
    images = [[tag for tag, _ in each.tags if tag == "image"] for each in (without, page)]
    assert not images[0] and len(images[1]) >= 8


def test_broken_inspections_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "e", [record()])
    (folder / "inspection").mkdir()
    (folder / "inspection" / "one.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot read the inspection .*one.json"):
        write_page(folder)
