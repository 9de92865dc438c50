"""The page without a browser: what it says, what it escapes, what it refuses, how it is written."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vidaccel.report import write_report
from vidaccel.report.view import columns, headline

Record = dict[str, Any]
ATTACK = "\"'><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open not in ("style", "script"):
            self.text += f" {data}"


def page(record: Record, folder: Path) -> Page:
    return Page(write_report(record, folder).read_text(encoding="utf-8"))


def test_page_holds_both_videos_and_the_mask(record: Record, run_folder: Path) -> None:
    path = write_report(record, run_folder)
    assert path == run_folder / "report.html"
    tags = Page(path.read_text()).tags
    sources = {attrs.get("id") or tag: attrs["src"] or "" for tag, attrs in tags if tag in ("video", "img")}
    for name in ("dense", "fast"):
        data = base64.b64decode(sources[name].removeprefix("data:video/mp4;base64,"))
        assert data == (run_folder / f"{name}.mp4").read_bytes()
    assert sources["img"] == f"data:image/png;base64,{record['mask_png']}"


def test_page_refers_to_nothing_outside_itself(record: Record, run_folder: Path) -> None:
    html = write_report(record, run_folder).read_text()
    loading = ("src", "href", "srcset", "poster", "action", "data", "background", "formaction", "ping")
    references = [attrs[name] or "" for _, attrs in Page(html).tags for name in loading if name in attrs]
    assert len(references) == 5
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", html)


def test_policy_allows_the_pages_own_script_alone(record: Record, run_folder: Path) -> None:
    html = write_report(record, run_folder).read_text()
    policy = next(attrs["content"] or "" for tag, attrs in Page(html).tags if attrs.get("http-equiv"))
    script, = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline';")


def test_every_string_of_the_record_is_escaped(record: Record, run_folder: Path) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key if key in known else key + ATTACK: poisoned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return value + ATTACK if isinstance(value, str) else value

    known = {key for part in (record, *(v for v in record.values() if isinstance(v, dict)), record["real_sizes"][0])
             for key in part}
    record["method"]["options"][ATTACK] = ATTACK
    kept = {"files": record["files"], "mask_png": record["mask_png"]}
    clean = page({**record, "method": {"name": "radial", "options": {"x": "y"}}}, run_folder)
    attacked = page({**poisoned(record), **kept}, run_folder)
    added = [tag for tag, _ in attacked.tags if tag in ("script", "img")]
    assert added == [tag for tag, _ in clean.tags if tag in ("script", "img")]
    assert not any("onerror" in attrs for _, attrs in attacked.tags)
    assert attacked.text.count("{{ 7 * 7 }}") > 20 and "<script>alert(1)</script>" in attacked.text


def test_missing_number_shows_the_records_reason(record: Record, run_folder: Path) -> None:
    text = page(record, run_folder).text
    assert "LPIPS not measured: the lpips extra is not installed (pip install vidaccel[lpips])" in text
    record["metrics"]["lpips"] = 0.0412
    text = page(record, run_folder).text
    assert "LPIPS not measured" not in text and "0.0412" in text


def test_smallest_record_makes_a_page(run_folder: Path) -> None:
    text = page({"files": {"dense": "dense.mp4", "fast": "fast.mp4"}}, run_folder).text
    assert "time not measured" in text and text.count("not measured:") == 7


@pytest.mark.parametrize(("timing", "expected"), [
    ({"speedup": 1.03, "dense": [12.3, 12.1], "fast": [11.9, 11.8]}, "radial: 1.03× the speed of dense"),
    ({"speedup": 1.03, "dense": [12.3, 11.0], "fast": [11.9, 11.8]},
     "radial: 1.03× the speed of dense, within the spread of the runs"),
    ({"speedup": 0.8, "dense": [8.0], "fast": [10.0]}, "radial: 0.80× the speed of dense, slower"),
    ({"speedup": 1.002, "dense": [8.0], "fast": [7.98]}, "radial: as fast as dense (1.00×)"),
    ({"speedup": None}, "radial: time not measured"),
])
def test_headline_is_honest(timing: Record, expected: str) -> None:
    assert headline({"method": {"name": "radial"}, "timing": timing}) == expected


def test_identical_videos_have_infinite_psnr() -> None:
    psnr = next(column for column in columns({"metrics": {"psnr": float("inf")}}) if column.label.startswith("PSNR"))
    assert psnr.fast == "∞"


@pytest.mark.parametrize("name", ["dense", "fast", "side_by_side"])
def test_missing_file_is_one_error_and_no_page(record: Record, run_folder: Path, name: str) -> None:
    (run_folder / f"{name}.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=f"'{name}.mp4'"):
        write_report(record, run_folder)
    assert not (run_folder / "report.html").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"files": {"dense": "dense.mp4"}}, "names no 'fast' file"),
    ({"files": {"dense": "../../etc/passwd", "fast": "fast.mp4"}}, "outside the report's folder"),
    ({"files": {"dense": "/etc/passwd", "fast": "fast.mp4"}}, "outside the report's folder"),
    ({"files": {"dense": "note.txt", "fast": "fast.mp4"}}, "not an MP4"),
    ({"files": None}, "names no 'dense' file"),
    ({"mask_png": "not base64!"}, "mask_png"),
    ({"mask_png": base64.b64encode(b"<svg onload=alert(1)>").decode()}, "mask_png"),
])
def test_bad_record_is_one_line_and_no_page(record: Record, run_folder: Path, change: Record, message: str) -> None:
    (run_folder / "note.txt").write_text("no video")
    with pytest.raises(ValueError, match=message) as caught:
        write_report({**record, **change}, run_folder)
    assert "\n" not in str(caught.value)
    assert not (run_folder / "report.html").exists()


def test_missing_folder_is_named(record: Record, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(record, tmp_path / "nowhere")


def test_failed_write_keeps_the_old_page(record: Record, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_report(record, run_folder).read_bytes()
    names = sorted(path.name for path in run_folder.iterdir())

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report({**record, "prompt": "another"}, run_folder)
    assert (run_folder / "report.html").read_bytes() == before
    assert sorted(path.name for path in run_folder.iterdir()) == names
