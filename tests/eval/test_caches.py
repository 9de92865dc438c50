"""Cells with a cache: what they are called, what they record, and the baselines that follow them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler, UniPCMultistepScheduler

import vidaccel
from tests import tiny
from tests.caching.cases import FAMILIES, run
from tests.eval.cases import plan, source
from vidaccel.eval import bench
from vidaccel.eval.caches import cache_of, cached_run, read_cache, text_of
from vidaccel.eval.clip import Clip
from vidaccel.eval.own_steps import at_steps
from vidaccel.eval.settings import Settings
from vidaccel.eval.store import Store
from vidaccel.eval.table import rows_of
from vidaccel.eval.timing import equal_work_steps

STATIC: dict[str, Any] = {"name": "static", "compute": [0, 1, 3, 5], "min_steps": 1}
VALUES: dict[str, Any] = {"steps": 6, "height": 64, "width": 96, "frames": 17, "guidance": 3.0, "quick": True,
                          "negative_prompt": "blurry", "prompt": "a red circle", "method": "dense"}  # fmt: skip
ONE_EXPERT = [name for name in FAMILIES if name != "wan2.2"]


def records(out: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in out.glob("cells/*/record.json")]
    return {each["label"]: each for each in found}


def latents(out: Path, record: dict[str, Any]) -> np.ndarray:
    found = Clip.load(out / "cells" / record["cell"] / record["files"]["clip"]).latents
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("none", "none"),
        ("easycache", "easycache"),
        ({"name": "easycache", "threshold": 0.05, "last_steps": 1}, "easycache"),
        ({"name": "easycache", "threshold": 0.1, "predictor": {"name": "taylor", "order": 2}, "most_reused": 3},
         "easycache(threshold=0.1, predictor=taylor(order=2), most_reused=3)"),
        (STATIC, "static(compute=0 1 3 5, min_steps=1)"),
        ({"name": "teacache", "model": "wan2.1-t2v-14b"}, "teacache(model=wan2.1-t2v-14b)"),
        ({"name": "teacache", "coefficients": [1, 0], "threshold": 0.1},
         "teacache(threshold=0.1, coefficients=1.0 0.0)"),
    ],
)  # fmt: skip
def test_caches_as_values_and_words(given: Any, text: str) -> None:
    values = read_cache(given)
    assert text_of(values) == text
    made = cache_of(json.loads(json.dumps(values)))
    assert (made is None) == (given == "none")
    assert made is None or json.loads(json.dumps(made.to_dict())) == values


def test_the_cache_is_an_axis() -> None:
    axes = {"method": ["dense", "radial"], "density": [0.2, 0.3], "cache": ["none", "easycache"]}
    cells = plan({**axes, "baselines": ["dense"]})
    assert [cell.label for cell in cells] == ["dense", "radial", "radial", "dense+easycache", "radial+easycache",
                                              "radial+easycache"]  # fmt: skip
    assert len({cell.key for cell in cells}) == len({cell.row for cell in cells}) == 6
    assert {json.dumps(cell.reference) for cell in cells} == {json.dumps(cells[0].reference)}
    assert cells[0].config["cache"] == "none" and cells[3].config["cache"]["name"] == "easycache"
    # Without a cache, a cell keeps the hash that it had when there was none.
    assert cells[1].key == plan({"density": 0.2})[0].key
    assert "dense-easycache" in cells[3].name and "radial-easycache-0.2" in cells[4].name
    assert [cell.label for cell in plan({"cache": "easycache", "method": "dense", "baselines": ["dense"]})] == [
        "dense", "dense+easycache"]  # fmt: skip
    long = plan({"method": "dense", "cache": {"name": "static", "compute": list(range(40))}})[0]
    assert "dense-static-compute-0-1-2" in long.name and len(long.name) < 120


def test_baselines_of_cells_with_a_cache() -> None:
    cells = plan({"method": ["dense", {"name": "radial", "compensation": "centroid"}], "cache": "easycache",
                  "baselines": True})  # fmt: skip
    labels = [cell.label for cell in cells]
    assert labels == ["dense", "dense+easycache", *(f"{kind} for dense+easycache" for kind in
                      ("fewer-steps", "same-compute", "own-timesteps")), "radial+centroid+easycache",
                      *(f"{kind} for radial+centroid+easycache" for kind in
                        ("fewer-steps", "same-compute", "own-timesteps", "random"))]  # fmt: skip
    # Random blocks go with the cache of their cell, what is dense with fewer steps with none.
    caches = {cell.label: cell.cache for cell in cells}
    assert caches[labels[-1]] == caches[labels[5]] != "none" and {caches[label] for label in labels[2:5]} == {"none"}
    assert len({cell.key for cell in cells}) == len({cell.name for cell in cells}) == 10


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cache": "nope"}, "unknown cache policy 'nope'; choose none, .*easycache"),
        ({"cache": {"threshold": 0.1}}, "unknown cache policy None"),
        ({"cache": {"name": "easycache", "colour": 1}}, "'easycache' has no option 'colour'; it has threshold, "),
        ({"cache": {"name": "easycache", "threshold": 0}}, "threshold 0 is not a number above 0"),
        ({"cache": {"name": "easycache", "predictor": "oracle"}}, "unknown predictor 'oracle'; choose hold"),
        ({"cache": ["easycache", {"name": "easycache", "threshold": 0.05}]}, "cache has .* twice"),
        ({"method": "same-compute"}, "'same-compute' is a baseline: it follows each cached cell"),
        ({"method": "own-timesteps"}, "'own-timesteps' is a baseline"),
    ],
)  # fmt: skip
def test_bad_caches_say_what_is_allowed(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.of(values)
    with pytest.raises(ValueError, match="runs dense only"):
        plan({"method": "dense", "cache": "easycache"}, source(transformer="LatteTransformer3DModel"))


def test_cells_with_a_cache_are_what_they_say(tmp_path: Path) -> None:
    """Cache only, with every baseline; by hand, the run with the cache and the dense ones."""
    pipe = tiny.tiny_wan()
    own = {"num_frames": 17, "max_sequence_length": 512, "num_inference_steps": 6, "output_type": "latent",
           "prompt": "a red circle"}  # fmt: skip
    with vidaccel.enable(pipe, None, cache=cache_of(read_cache(STATIC))):
        expected = tiny.generate(pipe, **own)
    result = bench.run(pipe, tmp_path, **VALUES, cache=STATIC)
    assert result.cells == 5 and not result.failed
    made = records(tmp_path)
    name = "dense+static(compute=0 1 3 5, min_steps=1)"
    cell = made[name]
    assert np.array_equal(latents(tmp_path, cell), expected) and not cell["metrics"]["identical"]
    assert cell["cache"] == "static(compute=0 1 3 5, min_steps=1)" and cell["method"]["name"] == "dense"
    cached = cell["cached"]
    assert cached["computed_share"] == cached["blocks_share"] == pytest.approx(4 / 6)
    assert cached["computed_steps"] == [0, 1, 3, 5] and cached["setting"]["options"]["compute"] == [0, 1, 3, 5]
    assert set(cached["decisions"].values()) == {"cCpCpC"} and len(cached["decisions"]) == 2
    assert cached["seconds"]["measured"] > 0 and cached["seconds"]["uncached"] > 0
    assert cell["follow_up"]["same-compute"] == 4 and cell["follow_up"]["own-timesteps"] == [0, 1, 3, 5]
    assert made["dense"]["metrics"]["identical"] and made["dense"]["cached"] is None
    same = made[f"same-compute for {name}"]
    assert same["settings"]["num_inference_steps"] == same["baseline"]["steps"] == 4
    assert same["baseline"]["of_steps"] == 6
    assert np.array_equal(latents(tmp_path, same), tiny.generate(pipe, **{**own, "num_inference_steps": 4}))
    at = made[f"own-timesteps for {name}"]
    with at_steps(pipe, (0, 1, 3, 5)):
        assert np.array_equal(latents(tmp_path, at), tiny.generate(pipe, **own))
    assert at["settings"]["num_inference_steps"] == 4 and at["baseline"]["taken"] == [0, 1, 3, 5]
    again = bench.run(pipe, tmp_path, **VALUES, cache=STATIC)
    assert again.skipped == 5
    (row,) = [row for row in result.rows if row.label == name]
    assert row.computed_share == pytest.approx(4 / 6) and "| 0.667 |" in (tmp_path / "table.md").read_text()


def test_a_cell_with_sparse_attention_and_a_cache(tmp_path: Path) -> None:
    radial = {"name": "radial", "block": 16, "split": 16}
    result = bench.run(tiny.tiny_wan(), tmp_path, **{**VALUES, "method": radial, "density": 0.8, "frames": 33},
                       cache=["none", STATIC], baselines=["random"], backend="reference")  # fmt: skip
    assert result.cells == 4 and not result.failed
    made = {label.partition("+")[2][:6] + label[:3]: each for label, each in records(tmp_path).items()}
    assert made["rad"]["cached"] is None and "spared" not in made["rad"]["calls"]
    assert made["staticrad"]["cached"]["computed_steps"] == [0, 1, 3, 5] and made["staticrad"]["calls"]["spared"] == 8
    assert made["staticran"]["cached"]["computed_steps"] == [0, 1, 3, 5]
    assert made["staticran"]["method"]["name"] == "random"


def test_a_run_too_short_for_its_cache_computed_all(tmp_path: Path) -> None:
    result = bench.run(tiny.tiny_wan(), tmp_path, **VALUES, cache="easycache", baselines=["own-timesteps"])
    assert not result.failed
    made = records(tmp_path)
    assert made["dense+easycache"]["cached"]["blocks_share"] == 1 and made["dense+easycache"]["metrics"]["identical"]
    assert made["own-timesteps for dense+easycache"]["metrics"]["identical"]


def test_records_from_before_there_were_caches_count(tmp_path: Path) -> None:
    bench.run(tiny.tiny_wan(), tmp_path, **VALUES)
    path = next(tmp_path.glob("cells/*/record.json"))
    path.write_text(json.dumps({key: item for key, item in json.loads(path.read_text()).items() if key != "cached"}))
    with Store(tmp_path) as store:
        (row,) = rows_of(store.records())
    assert row.cells == 1 and row.computed_share is None


def test_blocks_that_run_count_where_a_policy_passes_by_some() -> None:
    decisions = [{"step": step, "expert": "transformer", "branch": "cond", "what": what, "forced": step == 0}
                 for step, what in enumerate(("computed", "reused", "guidance", "computed"))]  # fmt: skip
    cache = {"name": "x", "options": {}, "predictor": {}, "limits": {}, "computed_share": 0.5, "seconds": None,
             "decisions": decisions}  # fmt: skip
    made = cached_run({"cache": cache, "calls": {"spared": 10}}, 10, 4)
    assert made is not None and made["blocks_share"] == 0.75 and made["computed_steps"] == [0, 3]
    assert made["decisions"] == {"transformer cond": "crgC"}


def test_equal_work() -> None:
    assert [equal_work_steps(20, share) for share in (0.001, 0.48, 1.0)] == [1, 10, 20]


# Dense at steps of its own


@pytest.mark.parametrize("family", FAMILIES)
def test_at_all_its_own_steps_dense_is_dense(family: str) -> None:
    pipe = FAMILIES[family][0]()
    stock = run(family, pipe)
    before = set(pipe.scheduler.__dict__)
    with at_steps(pipe, range(6)):
        assert np.array_equal(run(family, pipe), stock)
    assert set(pipe.scheduler.__dict__) == before
    with at_steps(pipe, (0, 1, 3, 4)):
        fewer = run(family, pipe)
    assert np.abs(fewer - stock).max() > 1e-4 and np.array_equal(run(family, pipe), stock)


@pytest.mark.parametrize("family", ["wan", "hunyuanvideo"])
def test_under_euler_a_held_velocity_is_a_longer_stride(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a run of all steps in which the scheduler gets the last chosen step's velocity."""
    chosen, pipe = (0, 2, 3), FAMILIES[family][0]()
    with at_steps(pipe, chosen):
        fewer = run(family, pipe)
    original, kept = pipe.scheduler.step, {}

    def step(output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
        at = int((pipe.scheduler.timesteps == timestep).nonzero())
        kept.update({"velocity": output} if at in chosen else {})
        return original(kept["velocity"], timestep, sample, **kwargs)

    monkeypatch.setattr(pipe.scheduler, "step", step)
    np.testing.assert_allclose(fewer, run(family, pipe), atol=1e-5)


def test_the_strides_of_ddim_end_where_the_full_runs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the formula of a step, with the alphas of where the full run goes."""
    pipe, seen = tiny.tiny_cogvideox(), []
    scheduler = pipe.scheduler
    scheduler.set_timesteps(6)
    full, usual = scheduler.timesteps.tolist(), 1000 // 6
    with at_steps(pipe, (0, 2, 3)):
        scheduler.set_timesteps(6)
        sample, velocity = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
        for timestep, end in zip((full[0], full[2], full[3]), (full[1], full[2], full[5]), strict=True):
            alphas = scheduler.alphas_cumprod
            here = alphas[timestep]
            there = alphas[end - usual] if end >= usual else scheduler.final_alpha_cumprod
            clean = here.sqrt() * sample - (1 - here).sqrt() * velocity
            a = ((1 - there) / (1 - here)).sqrt()
            expected = a * sample + (there.sqrt() - here.sqrt() * a) * clean
            got = scheduler.step(velocity, torch.tensor(timestep), sample, return_dict=False)[0]
            np.testing.assert_allclose(got, expected, atol=1e-5)
            seen.append(timestep)
        assert scheduler.timesteps.tolist() == seen


def test_other_schedulers() -> None:
    pipe = tiny.tiny_wan()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    stock = run("wan", pipe)
    with at_steps(pipe, range(6)):
        assert np.array_equal(run("wan", pipe), stock)
    pipe.scheduler = CogVideoXDPMScheduler()
    with pytest.raises(ValueError, match="CogVideoXDPMScheduler does not take any steps"), at_steps(pipe, (0, 1)):
        pass


@pytest.mark.parametrize(("steps", "said"), [((), "do not begin"), ((1, 2), "do not begin with 0"), ((0, 2, 2), "rise"),
                                             ((0, 6), "step 6 is none of a schedule of 6 steps")])  # fmt: skip
@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_steps_that_are_none(family: str, steps: tuple[int, ...], said: str) -> None:
    pipe = FAMILIES[family][0]()
    with pytest.raises(ValueError, match=said), at_steps(pipe, steps):
        run(family, pipe)
    assert not {"set_timesteps", "step"} & set(pipe.scheduler.__dict__)


def test_a_cell_says_that_its_scheduler_takes_no_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.FlowMatchEulerDiscreteScheduler.order", 2)
    result = bench.run(tiny.tiny_wan(), tmp_path, **VALUES, cache=STATIC, baselines=["same-compute", "own-timesteps"])
    (reason,) = result.failed.values()
    assert reason.startswith("ValueError: FlowMatchEulerDiscreteScheduler does not take any steps")
