"""Results of the bench as tables and a picture in a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vidaccel.cli.bench import bench
from vidaccel.report import performance

WHERE = {"benchmark": "kernels", "smoke": False, "seed": 0, "created": "2026-11-21T10:00:00+00:00",
         "git": "0123456789abcdef",
         "device": {"name": "CPU", "threads": 2, "gpu": "Some GPU, CUDA 13.0, driver 1"},
         "versions": {"torch": "2.11.0", "triton": "3.6.0", "diffusers": None}}  # fmt: skip
TIMES = {"p20_ms": 9.0, "p50_ms": 10.0, "p80_ms": 11.0}


def attention(plan: str, density: float, implementation: str, ms: float, **values: Any) -> dict[str, Any]:
    line = {**WHERE, "case": "attention", "shape": "wan", "tokens": 75600, "heads": 40, "head_dim": 128, "plan": plan,
            "requested_density": density, "density": density, "implementation": implementation, "error": 2e-3,
            "p20_ms": ms, "p50_ms": ms, "p80_ms": ms, "tflops": 500.0}  # fmt: skip
    if plan != "dense":
        line |= {"efficiency": 0.91, "speedup": 160 / ms}
    return line | values


LINES: list[dict[str, Any]] = [
    attention("dense", 1.0, "sdpa-cudnn", 160),
    attention("banded", 0.2, "vidaccel", 35), attention("banded", 0.2, "flex", 49),
    attention("banded", 0.1, "vidaccel", 18),
    {**WHERE, "case": "attention", "shape": "wan", "plan": "random", "requested_density": 0.2, "density": 0.2,
     "implementation": "vidaccel-fp8", "red": "error 0.2 over 0.08"},
    {**WHERE, "case": "planning", "shape": "wan", "operation": "block means", **TIMES, "share_of_dense": 0.0625},
    {**WHERE, "case": "model", "model": "wan-14b", "tokens": 75600, "method": "radial", "options": {}, "density": 0.2,
     "dense_median_s": 11.5, "sparse_median_s": 5.0, "speedup": 2.3, "dense_block_ms": 287.0, "sparse_block_ms": 120.0,
     "attention_share": 0.7, "predicted_limit": 2.27},
    {**WHERE, "case": "tuning", "shape": "wan", "architecture": "sm_90", "head_dim": 128, "query_block": 128,
     "row": "Tile(128, 64, 8, 3)", "tflops": 600.0, "fastest_of": 12, **TIMES},
]  # fmt: skip


def rows(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"| {start}")]


def test_tables_show_every_result() -> None:
    text = performance.tables(LINES)
    assert "### Some GPU, CUDA 13.0, driver 1" in text
    assert "torch 2.11.0, triton 3.6.0; git 0123456789ab; 2026-11-21; seed 0" in text
    assert rows(text, "wan | 75,600") == ["| wan | 75,600 | 40 x 128 | sdpa-cudnn | 160 (160 to 160) | 500 |"]
    assert rows(text, "wan | banded | 0.200 | vidaccel") == [
        "| wan | banded | 0.200 | vidaccel | 35 (35 to 35) | 500 | 0.91 | 4.57x | 1.40x | 2.0e-03 |"
    ]
    assert rows(text, "wan | block means") == ["| wan | block means | 10 (9 to 11) | 6.25% |"]
    assert "| 11.50 s | 5.00 s | 2.30x | 287.0, 120.0 ms | 70% | 2.27x |" in rows(text, "wan-14b")[0]
    assert rows(text, "sm_90") == ["| sm_90 | 128 | 128 | Tile(128, 64, 8, 3) | 600 | 12 |"]


def test_what_failed_its_check_has_no_time() -> None:
    text = performance.tables(LINES)
    assert rows(text, "wan random") == ["| wan random | vidaccel-fp8 | red | error 0.2 over 0.08 |"]
    assert not rows(text, "wan | random")


def test_newest_of_equal_results_counts() -> None:
    text = performance.tables([*LINES, attention("banded", 0.1, "vidaccel", 17)])
    assert [row.split(" | ")[4] for row in rows(text, "wan | banded | 0.100")] == ["17 (17 to 17)"]


def test_smoke_is_labelled_and_not_drawn() -> None:
    smoke = [{**line, "smoke": True} for line in LINES]
    assert "The times mean nothing" in performance.tables(smoke) and performance.plot(smoke) is None
    assert "The times mean nothing" not in performance.tables(LINES)


def test_machines_are_kept_apart() -> None:
    other = {**attention("dense", 1.0, "sdpa", 900), "device": {"name": "Some CPU", "threads": 8, "gpu": None}}
    text = performance.tables([*LINES, other])
    assert text.index("### Some GPU") < text.index("### Some CPU, 8 threads") < text.index("900 (900 to 900)")


def test_document_keeps_its_own_text(tmp_path: Path) -> None:
    out = tmp_path / "performance.md"
    out.write_text(f"# Title\n\nBefore.\n\n{performance.BEGIN}\nold\n{performance.END}\n\nAfter.\n", encoding="utf-8")
    for _ in range(2):
        assert performance.write_results(LINES, out) == [out, tmp_path / "images" / "performance.png"]
        text = out.read_text(encoding="utf-8")
        assert text.startswith("# Title\n\nBefore.\n\n") and text.endswith("\n\nAfter.\n")
        assert "old" not in text and text.count("### Some GPU") == 1 and "(images/performance.png)" in text
    assert (tmp_path / "images" / "performance.png").read_bytes().startswith(b"\x89PNG")


def test_command(tmp_path: Path) -> None:
    results, out = tmp_path / "lines.jsonl", tmp_path / "new.md"
    results.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    done = CliRunner().invoke(bench, ["render", str(results), "--out", str(out)])
    assert done.exit_code == 0 and "#### Sparse attention" in out.read_text(encoding="utf-8")


def test_records_of_pipelines(tmp_path: Path) -> None:
    record = {
        "kind": "bench", "model": {"name": "mine"}, "method": {"name": "radial"}, "device": WHERE["device"],
        "settings": {"height": 480, "width": 832, "num_frames": 81, "num_inference_steps": 50},
        "timing": {"dense_median": 600.0, "fast_median": 300.0, "speedup": 2.0},
        "prediction": {"density_all_calls": 0.4, "generation": {"attention_share": 0.75, "speedup": 1.8182}},
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(record), encoding="utf-8")
    text = performance.tables(performance.read_lines(tmp_path / "mine.json"))
    assert rows(text, "mine") == [
        "| mine | 480x832x81 | 50 | radial | 0.400 | 600.00 s | 300.00 s | 2.00x | 75% | 1.82x |"
    ]
    (tmp_path / "other.json").write_text(json.dumps({**record, "kind": "demo"}), encoding="utf-8")
    with pytest.raises(ValueError, match="no record of `vidaccel bench model`"):
        performance.read_lines(tmp_path / "other.json")


@pytest.mark.parametrize("content, problem", [
    ("{", "line 1 of"), ('{"a": 1}\n', "no result"), ("", "no results"), (None, "cannot read"),
])  # fmt: skip
def test_files_that_are_no_results(tmp_path: Path, content: str | None, problem: str) -> None:
    results, out = tmp_path / "lines.jsonl", tmp_path / "new.md"
    if content is not None:
        results.write_text(content, encoding="utf-8")
    done = CliRunner().invoke(bench, ["render", str(results), "--out", str(out)])
    assert done.exit_code == 2 and problem in done.stderr and not out.exists()


def test_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "other.md"
    out.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(ValueError, match="results: begin"):
        performance.write_results(LINES, out)
    assert out.read_text(encoding="utf-8") == "# Mine\n"
