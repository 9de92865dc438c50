from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

import vidaccel
from tests.tiny import generate, tiny_wan
from vidaccel.eval import bench
from vidaccel.eval.clip import Clip
from vidaccel.eval.runner import Run, Runner
from vidaccel.eval.settings import Settings
from vidaccel.eval.sources import Source
from vidaccel.eval.store import Store
from vidaccel.eval.timing import equal_time_steps, realised_density, timing
from vidaccel.eval.video import to_uint8
from vidaccel.methods import METHODS
from vidaccel.plan import AttentionPlan
from vidaccel.session import ATTRIBUTE

PROMPT = "a red circle moves left"
CALL: dict[str, Any] = {"steps": 4, "height": 64, "width": 96, "frames": 33, "guidance": 3.0,
                        "negative_prompt": "blurry"}  # fmt: skip
RADIAL: dict[str, Any] = {"name": "radial", "block": 16, "split": 16}
VALUES: dict[str, Any] = {**CALL, "method": RADIAL, "density": 0.8, "prompt": PROMPT, "seed": 5, "backend": "reference"}
LARGER = {"num_frames": 33, "max_sequence_length": 512}
"""For `generate`: 9x4x6 tokens, and the pipeline's own length of texts."""
QUICK = {**VALUES, "quick": True}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every generation, warm-ups included."""
    seen: list[dict[str, Any]] = []
    original = Runner.run

    def spy(self: Runner, label: str, prompt: str, seed: int, **overrides: Any) -> Run:
        sparse = ATTRIBUTE in self.pipe.transformer.__dict__
        seen.append({"label": label, "prompt": prompt, "seed": seed, "sparse": sparse, **overrides})
        return original(self, label, prompt, seed, **overrides)

    monkeypatch.setattr(Runner, "run", spy)
    return seen


def records(out: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(out.glob("cells/*/record.json"))]
    return {f"{each['label']} {each['requested_density']} {each['prompt']} {each['seed']}": each for each in found}


def of_label(out: Path, label: str) -> tuple[dict[str, Any], Clip]:
    record = next(each for each in records(out).values() if each["label"].split("(")[0] == label)
    return record, Clip.load(out / "cells" / record["cell"] / record["files"]["clip"])


def broken_at(density: float) -> Callable[..., Any]:
    original = METHODS["radial"].plan

    def plan(self: Any, *args: Any) -> Any:
        if self.density == density:
            raise RuntimeError("out of memory")
        return original(self, *args)

    return plan


def test_every_cell_is_what_it_says(tmp_path: Path) -> None:
    pipe = tiny_wan(layers=3)
    seen = generate(pipe, seed=5, prompt=PROMPT, **LARGER)
    with vidaccel.enable(pipe, "radial", block=16, split=16, density=0.8, min_tokens=0, backend="reference"):
        sparse = generate(pipe, seed=5, prompt=PROMPT, **LARGER)
    result = bench.run(pipe, tmp_path, **VALUES)
    assert (result.cells, result.skipped, result.failed) == (4, 0, {})
    dense, clip = of_label(tmp_path, "dense")
    assert np.array_equal(clip.frames, to_uint8(seen)) and dense["metrics"]["identical"]
    assert dense["metrics"]["psnr"] is None and "identical" in dense["metrics"]["psnr_reason"]
    radial, clip = of_label(tmp_path, "radial")
    assert np.array_equal(clip.frames, to_uint8(sparse)) and not radial["metrics"]["identical"]
    error = np.square(to_uint8(sparse) / 255 - to_uint8(seen) / 255).mean()
    assert radial["metrics"]["psnr"] == pytest.approx(-10 * np.log10(error))
    assert radial["metrics"]["latent_error"] > 0 and radial["calls"]["sparse"] == 3 * 2 * 2
    assert radial["backend"] == "reference" and radial["kind"] == "cell" and radial["versions"]["torch"]
    assert (tmp_path / "references" / radial["reference"] / "config.json").is_file()


def test_baselines_take_what_their_cell_realised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidaccel.eval.stage.equal_time_steps", lambda steps, fast, dense: steps - 1)
    pipe = tiny_wan(layers=3)
    fewer = generate(pipe, seed=5, prompt=PROMPT, **LARGER, num_inference_steps=3)
    bench.run(pipe, tmp_path, **VALUES)
    radial, _ = of_label(tmp_path, "radial")
    realised = pytest.approx(radial["density"]["video_density"])
    assert radial["follow_up"] == {"steps": 3, "video_density": realised}
    record, clip = of_label(tmp_path, "fewer-steps for radial")
    assert np.array_equal(clip.frames, to_uint8(fewer)) and record["settings"]["num_inference_steps"] == 3
    assert record["baseline"] == {"kind": "fewer-steps", "of": radial["cell"], "label": radial["label"],
                                  "of_steps": 4, "steps": 3}  # fmt: skip
    record, clip = of_label(tmp_path, "random for radial")
    assert record["method"]["name"] == "random" and record["method"]["options"]["block"] == 16
    assert record["method"]["options"]["seed"] == 5
    assert record["method"]["options"]["density"] == realised
    assert record["schedule"] == radial["schedule"] and record["calls"] == radial["calls"]
    assert abs(record["density"]["video_density"] - radial["density"]["video_density"]) < 0.08
    assert record["baseline"]["of"] == radial["cell"] and record["requested_density"] == 0.8


def test_a_second_run_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, said = tiny_wan(), []
    first = bench.run(pipe, tmp_path, **QUICK)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    source = Source.of(pipe)
    unloaded = Source(source.name, source.pipeline, source.transformer, lambda: pytest.fail("it was loaded"),
                      source.identify, source.dtype, source.device)  # fmt: skip
    second = bench.run(unloaded, tmp_path, Settings.of(QUICK), say=said.append)
    assert second.skipped == second.cells == 4 and said == ["4 of 4 cells are done already"]
    assert [row.to_dict() for row in second.rows] == [row.to_dict() for row in first.rows]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_failed_cell_is_recorded_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**QUICK, "density": [0.8, 0.9]}
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["radial"], "plan", broken_at(0.8))
        result = bench.run(tiny_wan(), tmp_path, **values)
    names = [name for name in result.failed if "radial-0.8" in name]
    assert len(result.failed) == len(names) == 3 and result.cells == 7
    reasons = sorted(result.failed.values())
    assert reasons[0].startswith("RuntimeError: it is a baseline of") and reasons[2] == "RuntimeError: out of memory"
    kept = json.loads((tmp_path / "cells" / names[0] / "error.json").read_text())
    assert kept["type"] == "RuntimeError" and "in plan" in kept["traceback"] and len(records(tmp_path)) == 4
    again = bench.run(tiny_wan(), tmp_path, **values)
    assert again.failed == {} and again.skipped == 4 and len(records(tmp_path)) == 7
    assert not list(tmp_path.rglob("error.json"))


def test_a_dense_reference_that_fails_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, calls = tiny_wan(), []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    result = bench.run(pipe, tmp_path, **QUICK)
    assert len(result.failed) == 4 and len(calls) == 1 and result.rows == []
    first, *others = result.failed.values()
    assert first == "RuntimeError: out of memory"
    assert others[0] == "RuntimeError: there is no dense reference: RuntimeError: out of memory"


def test_a_model_that_cannot_be_loaded_fails_its_cells(tmp_path: Path) -> None:
    pipe = tiny_wan()
    good = Source.of(pipe, "good")
    bad = Source("bad", good.pipeline, good.transformer, lambda: 1 / 0, lambda: "sha256:0", "float32", "cpu")
    result = bench.run([bad, good], tmp_path, **{**QUICK, "baselines": False})
    assert list(result.failed.values()) == ["ZeroDivisionError: division by zero"]
    assert [row.model for row in result.rows] == ["good"]


def test_references_are_shared_and_kept(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    pipe = tiny_wan()
    bench.run(pipe, tmp_path, **{**QUICK, "baselines": False, "density": [0.8, 0.9]})
    timed = [each for each in runs if each["label"] == "run"]
    assert [each["sparse"] for each in timed] == [False, True, True]
    assert len(list(tmp_path.glob("references/*"))) == 1
    runs.clear()
    bench.run(pipe, tmp_path, **{**QUICK, "baselines": False, "density": [0.8, 0.9, 0.95]})
    # The reference comes from the folder, but a speedup needs a dense time of this process.
    assert [each["sparse"] for each in runs if each["label"] == "run"] == [False, True]
    assert len(list(tmp_path.glob("references/*"))) == 1


def test_a_damaged_reference_is_made_again_and_said(tmp_path: Path) -> None:
    pipe, said = tiny_wan(), []
    bench.run(pipe, tmp_path, **{**QUICK, "baselines": False})
    path = next(tmp_path.glob("references/*/clip.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    bench.run(pipe, tmp_path, **{**QUICK, "baselines": False, "density": 0.9}, say=said.append)
    assert path.read_bytes() == whole and any("is damaged; it is made again" in line for line in said)


def test_repeats_are_timed_in_turns_after_a_warm_up(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    bench.run(tiny_wan(), tmp_path, **{**QUICK, "repeats": 3, "baselines": False, "density": [0.8, 0.9]})
    assert [(each["label"], each["sparse"]) for each in runs] == [
        ("warm-up dense", False), ("run", False), ("warm-up fast", True), ("run", True), ("run", False), ("run", True),
        ("run", False), ("run", True), ("warm-up fast", True), ("run", True), ("run", True), ("run", True),
    ]  # fmt: skip
    for record in records(tmp_path).values():
        times = record["timing"]
        assert len(times["dense"]) == len(times["fast"]) == 3 and times["dense_median"] == sorted(times["dense"])[1]
        assert times["speedup"] == pytest.approx(times["dense_median"] / times["fast_median"])
        assert times["denoising"]["speedup"] > 0 and "without decoding" in times["note"]


def test_quick_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_wan(layers=3)
    latents = generate(pipe, seed=5, prompt=PROMPT, **LARGER, output_type="latent")
    monkeypatch.setattr(pipe.vae, "decode", lambda *_, **__: pytest.fail("it decoded"))
    result = bench.run(pipe, tmp_path, **QUICK)
    assert not result.failed and not list(tmp_path.rglob("*.mp4"))
    record, clip = of_label(tmp_path, "dense")
    assert clip.frames is None and np.array_equal(clip.latents, latents) and record["metrics"]["identical"]
    record, _ = of_label(tmp_path, "radial")
    assert record["metrics"]["latent_error"] > 0 and record["metrics"]["psnr"] is None
    assert record["metrics"]["psnr_reason"] and record["files"] == {"clip": "clip.safetensors"}


def test_an_interrupted_eval_goes_on(tmp_path: Path) -> None:
    pipe, done = tiny_wan(), []
    before = [block.attn1.processor for block in pipe.transformer.blocks]

    def interrupt(label: str, step: int, steps: int, left: float | None) -> None:
        done.append(label)
        if label.startswith("2/4") and step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(pipe, tmp_path, **QUICK, progress=interrupt)
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before
    assert ATTRIBUTE not in pipe.transformer.__dict__
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1
    assert "dense" in (tmp_path / "table.md").read_text()
    result = bench.run(pipe, tmp_path, **QUICK)
    assert result.skipped == 1 and not result.failed and len(records(tmp_path)) == 4


def test_a_model_without_a_family_runs_dense(tmp_path: Path) -> None:
    class Unknown(WanTransformer3DModel):
        """A transformer whose class no family of ours has."""

    pipe = tiny_wan()
    pipe.transformer.__class__ = Unknown
    with pytest.raises(ValueError, match="runs dense only: Unknown is not supported; .*WanTransformer3DModel"):
        bench.run(pipe, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
    result = bench.run(pipe, tmp_path / "out", **CALL, prompt=PROMPT, method="dense", quick=True)
    assert result.cells == 1 and not result.failed and result.rows[0].identical == 1
    record, _ = of_label(tmp_path / "out", "dense")
    assert record["model"]["transformer"] == "Unknown" and record["model"]["layers"] is None


@pytest.mark.parametrize(
    ("values", "said"),
    [({"density": 2}, "density 2"), ({"prompt": []}, "prompt is an empty list"), ({"colour": 1}, "no setting 'colour'"),
     ({"method": {"name": "radial", "block": 5}}, "block 5")],
)  # fmt: skip
def test_bad_settings_leave_nothing(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bench.run(tiny_wan(), tmp_path / "out", **{**QUICK, **values})
    with pytest.raises(ValueError, match="not both"):
        bench.run(tiny_wan(), tmp_path / "out", Settings(), steps=3)
    assert not (tmp_path / "out").exists()


def test_two_evals_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(ValueError, match="another eval is at work"):
        bench.run(tiny_wan(), tmp_path, **QUICK)


def test_what_is_enabled_comes_back(tmp_path: Path) -> None:
    pipe = tiny_wan()
    mine = vidaccel.enable(pipe, "radial", block=16, split=16, min_tokens=0)
    result = bench.run(pipe, tmp_path, **QUICK)
    assert not result.failed and getattr(pipe.transformer, ATTRIBUTE) is mine
    assert records(tmp_path)[f"dense None {PROMPT} 5"]["metrics"]["identical"]


def times(*seconds: float) -> list[Run]:
    return [Run(None, each + 1, each) for each in seconds]


def test_equal_time_counts_denoising() -> None:
    assert equal_time_steps(20, times(6.0, 7.0, 5.0), times(10.0)) == 12
    assert equal_time_steps(20, times(11.0), times(10.0)) == 20 and equal_time_steps(20, times(0.001), times(10.0)) == 1
    silent = [Run(None, 5.0, None)], [Run(None, 10.0, None)]
    assert equal_time_steps(20, *silent) == 10
    values = timing(*silent, decoded=True)
    assert values["speedup"] == 2 and set(values["denoising"].values()) == {None}
    assert "whole generations" in values["note"]


def test_realised_density_is_of_the_video_pairs() -> None:
    with vidaccel.enable(pipe := tiny_wan(), "radial", block=16, split=16, density=0.8, min_tokens=0) as session:
        assert realised_density(session.summary()) is None
        generate(pipe, num_frames=33)
        summary = session.summary()
        before = summary.tally.density.video_density  # type: ignore[union-attr]
        assert realised_density(summary) == pytest.approx(before)
        summary.tally.count_sparse(AttentionPlan(), torch.full((3,), 0.5), "cpu")
        calls = summary.tally.sparse
        mean = (before * (calls - 1) + 0.5) / calls
        assert realised_density(summary) == pytest.approx(mean)
