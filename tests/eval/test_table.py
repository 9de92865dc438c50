from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from vidaccel.eval.metrics import metric_names
from vidaccel.eval.table import markdown, notes, rows_of, shown, write_tables

NONE = {name: None for each in metric_names() for name in (each, f"{each}_reason")}


def record(row: str = "r", label: str = "radial", **values: Any) -> dict[str, Any]:
    """A cell's record, as far as tables read it; `values` are metrics, and the rest by name."""
    metrics = {**NONE, "psnr": 30.0, "ssim": 0.9, "identical": False}
    metrics |= {name: values.pop(name) for name in list(values) if name in metrics}
    given = {
        "row": row, "label": label, "requested_density": 0.3, "cache": "none", "baseline": None,
        "model": {"name": "tiny"}, "metrics": metrics, "timing": {"speedup": 2.0}, "versions": {"torch": "2"},
        "settings": {"width": 96, "height": 64, "num_frames": 17, "num_inference_steps": 20, "output": "np"},
        "density": {"video_density": 0.31, "all_calls": 0.6},
    }  # fmt: skip
    return {**given, **values}


def dense(**values: Any) -> dict[str, Any]:
    return record("d", "dense", **{"requested_density": None, "density": None, "psnr": None, "identical": True,
                                   "psnr_reason": "the clips are identical", **values})  # fmt: skip


def baseline(kind: str, steps: int = 12) -> dict[str, Any]:
    made = record(kind, f"{kind} for radial", baseline={"kind": kind, "of": "c", "label": "radial", "of_steps": 20})
    made["settings"] = {**made["settings"], "num_inference_steps": steps}
    return made


def test_rows_are_means_over_prompts_and_seeds() -> None:
    rows = rows_of([record(psnr=30.0), record(psnr=36.0, timing={"speedup": 3.0}), record("s", requested_density=0.2)])
    assert [(row.requested_density, row.cells) for row in rows] == [(0.2, 1), (0.3, 2)]
    assert rows[1].metrics["psnr"] == 33 and rows[1].speedup == 2.5 and rows[1].video_density == pytest.approx(0.31)


def test_dense_comes_first_and_baselines_after_their_method() -> None:
    other = record("z", requested_density=0.9)
    rows = rows_of([baseline("random", 20), other, baseline("fewer-steps"), record(), dense()])
    assert [(row.label, row.requested_density) for row in rows] == [
        ("dense", None), ("radial", 0.3), ("fewer-steps for radial", 0.3), ("random for radial", 0.3), ("radial", 0.9),
    ]  # fmt: skip
    assert rows[2].steps == 12 and rows[2].setting == "96x64x17, 20 steps" and rows[2].baseline == "fewer-steps"


def test_what_is_missing_is_not_averaged_and_said() -> None:
    rows = rows_of([record(psnr=30.0), record(psnr=None, identical=True, psnr_reason="the clips are identical"),
                    record(psnr=31.0, lpips_reason="not installed")])  # fmt: skip
    texts = rows[0].texts()
    assert texts["psnr"] == "30.50 (2 of 3)" and texts["lpips"] == "-" and texts["speedup"] == "2.00x"
    said = " ".join(notes(rows))
    assert "LPIPS: not installed" in said and "leaves out clips identical" in said
    assert "lpips" not in shown(rows) and "ssim" in shown(rows)


def test_dense_repeated_is_identical_or_said_not_to_be() -> None:
    same, other = rows_of([dense(), dense()]), rows_of([dense(), dense(psnr=90.0, identical=False)])
    assert same[0].texts()["psnr"] == "inf" and same[0].texts()["video_density"] == "1"
    assert not any("not deterministic" in note for note in notes(same))
    assert any("1 of 2 cells of tiny" in note and "not deterministic" in note for note in notes(other))


def test_rows_of_latents_show_no_psnr() -> None:
    settings = {**record()["settings"], "output": "latent"}
    rows = rows_of([record(settings=settings, psnr=None, ssim=None, latent_error=0.02),
                    dense(settings=settings, ssim=None, latent_error=0.0)])  # fmt: skip
    assert "psnr" not in shown(rows) and rows[1].texts()["latent_error"] == "0.0200"
    assert rows[1].setting.endswith("latents")


def test_files(tmp_path: Path) -> None:
    records = [record(label="radial(a|b)"), dense()]
    rows = rows_of(records)
    write_tables(tmp_path, records, rows)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    with (tmp_path / "table.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [line["label"] for line in read] == ["dense", "radial(a|b)"]
    assert float(read[1]["psnr"]) == 30 and read[1]["psnr_cells"] == "1" and read[0]["psnr"] == ""
    assert read[1]["torch"] == "2" and set(metric_names()) <= set(read[0])
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table == markdown(rows).splitlines() and "radial(a\\|b)" in table[3]
    assert {line.replace("\\|", "").count("|") for line in table[:4]} == {len(shown(rows)) + 1}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    write_tables(tmp_path, [], [])
    assert (tmp_path / "records.jsonl").read_text() == "" and "method" in (tmp_path / "table.md").read_text()
