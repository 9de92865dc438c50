"""Rows as points: kinds, intervals, the front."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.evals import dense, eval_of_all, record, write
from vidaccel.report.eval_folder import Group, read_groups
from vidaccel.report.eval_table import columns, lines, remarks
from vidaccel.report.measures import Metric, arrow, metrics_of
from vidaccel.report.points import Point, front_of, points

PSNR, ERROR = Metric("psnr", "higher"), Metric("latent_error", "lower")


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return read_groups([write(tmp_path, eval_of_all())])[0]


def of(tmp_path: Path, *records: dict[str, Any]) -> list[Point]:
    return points(read_groups([write(tmp_path, records)])[0], PSNR)


def test_every_row_is_a_point_of_its_kind(group: Group) -> None:
    found = points(group, PSNR)
    assert [(point.name, point.kind) for point in found] == [
        ("dense", "dense"), ("radial, density 0.5", "sparse"),
        ("fewer-steps for radial, density 0.3", "dense with fewer steps"),
        ("random for radial, density 0.3", "random blocks"), ("radial, density 0.3", "sparse"),
        ("dense+easycache(threshold=0.1)", "cached"),
        ("radial+easycache(threshold=0.1), density 0.3", "sparse and cached"),
    ]  # fmt: skip
    for point in found[1:]:
        assert group.rows[point.number - 1].speedup == point.speed


def test_the_front_is_what_no_other_beats(group: Group) -> None:
    for metric, sign in ((PSNR, 1), (ERROR, -1)):
        found = points(group, metric)
        values = [(point.speed, math.inf if point.quality is None else sign * point.quality) for point in found]
        expected = [all(a == b or a[0] < b[0] or a[1] < b[1] for a in values) for b in values]
        assert [point.front for point in found] == expected
        assert [point.kind for point in front_of(found)] == ["dense", "sparse", "cached", "sparse and cached"]


def test_equal_points_are_both_on_the_front(tmp_path: Path) -> None:
    found = of(tmp_path, record(density=0.3), record(density=0.4), record(density=0.5, psnr=29.0))
    assert [point.front for point in found] == [True, True, True, False]


def test_intervals_are_those_of_the_mean(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values, speeds = draw.normal(30, 2, 60), draw.normal(2, 0.1, 60)
    cells = [record(psnr=values[seed], speed=speeds[seed], seed=seed) for seed in range(60)]
    _, point = of(tmp_path, *cells)
    assert point.quality_interval is not None and point.speed_interval is not None
    for (low, high), each in ((point.quality_interval, values), (point.speed_interval, speeds)):
        half = 1.96 * each.std() / math.sqrt(len(each))
        assert (low, high) == pytest.approx((each.mean() - half, each.mean() + half), abs=0.15 * half)
    assert f"({point.quality_interval[0]:.1f} to {point.quality_interval[1]:.1f})" in point.text
    alone = of(tmp_path, record())[1]
    assert alone.quality_interval is None and alone.speed_interval is None


def test_dense_is_there_where_it_was_not_run(tmp_path: Path) -> None:
    found = of(tmp_path, record(), record(density=0.5, speed=None))
    assert [(point.number, point.speed, point.quality) for point in found] == [(0, 1.0, None), (1, 2.0, 30.0)]


def test_identical_clips_are_best_and_partly_identical_ones_are_not(tmp_path: Path) -> None:
    same, partly = of(tmp_path, dense(), record(psnr=None), record(psnr=40.0, seed=1))
    assert same.quality is None and partly.quality == 40.0 and "PSNR dB identical" in same.text


def test_arrows_and_metrics(group: Group) -> None:
    assert [arrow(group, name) for name in ("psnr", "latent_error", "steps")] == ["↑", "↓", ""]
    assert [each.title for each in metrics_of(group)] == ["PSNR dB ↑", "SSIM ↑", "latent error ↓"]


def scored(at: float, way: str | None = "lower", **values: Any) -> dict[str, Any]:
    made = record(**values)
    made["metrics"]["jitter"] = at
    return {**made, "scores": {"jitter": {"better": way, "version": "1"} if way else {}}}


def test_scores_of_outside_judges_are_plotted_by_themselves(tmp_path: Path) -> None:
    records = [scored(0.5), scored(0.2, density=0.5, speed=1.5, psnr=None), record(density=0.6, speed=1.2)]
    group = read_groups([write(tmp_path, records)])[0]
    metric = metrics_of(group)[-1]
    assert metric.title == "jitter ↓" and arrow(group, "jitter") == "↓" and ("jitter", "↓") in columns(group)
    # Dense was not scored, and a clip identical to its reference has the score that it has.
    assert [(point.name, point.quality, point.front) for point in points(group, metric)] == [
        ("radial, density 0.5", 0.2, True), ("radial, density 0.3", 0.5, True)]  # fmt: skip
    assert [line.texts[columns(group).index(("jitter", "↓"))] for line in lines(group)] == [
        "–", "0.5000", "0.2000", "–"]  # fmt: skip


@pytest.mark.parametrize("way", [None, "sideways"])
def test_scores_that_are_not_said_to_be_better_either_way(tmp_path: Path, way: str | None) -> None:
    with pytest.raises(ValueError, match="do not agree whether higher or lower scores of 'jitter'"):
        metrics_of(read_groups([write(tmp_path, [scored(0.5, way)])])[0])


def test_dense_is_what_speeds_are_over_however_long_it_took_again(tmp_path: Path) -> None:
    first = of(tmp_path, dense(speed=0.8), record())[0]
    assert (first.kind, first.speed, first.front) == ("dense", 1.0, True) and "run again, 0.80x" in first.text


def test_table_begins_with_dense_and_shows_the_front(group: Group, tmp_path: Path) -> None:
    assert [line.label for line in lines(group)][:3] == ["dense", "dense+easycache(threshold=0.1)", "radial"]
    best = {point.number for point in front_of(points(group, PSNR))}
    assert {line.number for line in lines(group) if line.front} == best
    assert columns(group)[:3] == [("density", ""), ("speed", "↑"), ("PSNR dB", "↑")]
    without = read_groups([write(tmp_path / "none", [record()])])[0]
    first = lines(without)[0]
    assert (first.label, first.number, first.front) == ("dense, the reference", None, True) and "∞" in first.texts


def test_unequal_rows_are_said(tmp_path: Path) -> None:
    said = remarks(read_groups([write(tmp_path, [record(), record(prompt=1), record(density=0.5)])])[0])
    assert any("over 1 to 2 clips" in each for each in said)
    assert not any("clips:" in each for each in remarks(read_groups([write(tmp_path, [record(), dense()])])[0]))
