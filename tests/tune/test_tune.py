"""A whole tuning of a tiny pipeline: what it writes holds, and a kill costs nothing that was done."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import vidaccel
from tests import tiny
from tests.methods.test_head_profile import BLOCK, PATTERNS, option
from tests.tune.cases import CALL, PROMPTS, STEPS, calibration, steady
from vidaccel.eval.metrics import compare_videos
from vidaccel.heads import HeadTable
from vidaccel.profile import Profile
from vidaccel.tune import lab as labs
from vidaccel.tune import ready, run
from vidaccel.tune import tune as tuned

pytest.importorskip("optuna")
LONG = 1e6
"""A budget that no test spends."""


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path) -> dict[str, Any]:
    """One method to look at, and few candidates."""
    steady(monkeypatch)
    monkeypatch.setattr(ready, "methods", lambda heads, block: iter([("radial", {"block": 16})]))
    calibration().save(tmp_path / "cache.json")
    return {"budget": LONG, "trials": 4, "cache_file": str(tmp_path / "cache.json"), **CALL}


def test_from_prompts_to_a_profile(pipe, few, tmp_path):
    told: list[tuple[str, float, float]] = []
    found = tuned(pipe, PROMPTS, tmp_path / "work", target="speedup>=0.01", progress=lambda *each: told.append(each),
                  **few)  # fmt: skip
    assert found.met and found.trials == 4 and "_vidaccel_session" not in pipe.__dict__
    assert not pipe.transformer._forward_pre_hooks and not pipe.transformer._forward_hooks
    assert {"loading", "dense references", "pace of radial"} <= {what for what, *_ in told}
    assert [spent for _, spent, _ in told] == sorted(spent for _, spent, _ in told) and told[-1][2] == LONG
    found.profile.save(tmp_path / "p.json")
    profile = Profile.load(tmp_path / "p.json")
    assert profile == found.profile and profile.aim == found.chosen and profile.points
    assert set(profile.calibrations) <= {"dense"} and profile.heads is None
    # What a point says is what a user gets: the same prompts, noise and setting again.
    chosen = found.chosen
    assert chosen.evidence["prompts"]["count"] == 2 and chosen.evidence["searched"]["same_prompts"] is False
    values = [fidelity(pipe, profile, prompt) for prompt in PROMPTS[2:]]
    assert np.mean(values) == pytest.approx(chosen.metrics["psnr"]["mean"], abs=1e-3)
    assert json.loads(json.dumps(found.to_dict()))["chosen"]["settings"] == chosen.to_dict()["settings"]


def fidelity(pipe: Any, profile: Profile, prompt: str) -> float:
    def clip() -> Any:
        frames = tiny.generate(pipe, prompt=prompt, num_inference_steps=STEPS, max_sequence_length=512)
        return (frames * 255).round().astype(np.uint8)

    dense = clip()
    with vidaccel.enable(pipe, profile):
        value = compare_videos(dense, clip(), metrics=["psnr"])["psnr"]
    return 150.0 if value is None else value


@pytest.mark.parametrize("after", [1, 3, 6, 9])
def test_stopped_anywhere_it_goes_on(pipe, few, tmp_path, monkeypatch, after):
    work, runs = tmp_path / "work", []
    whole = labs.Runner.run

    def counted(self, label, prompt, *args, **kwargs):
        if label in ("tuning", "final"):
            runs.append(label)
            if after is not None and len(runs) > after:
                raise KeyboardInterrupt
        return whole(self, label, prompt, *args, **kwargs)

    monkeypatch.setattr(labs.Runner, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        tuned(pipe, PROMPTS, work, target="speedup>=0.01", **few)
    assert "_vidaccel_session" not in pipe.__dict__ and not pipe.transformer._forward_pre_hooks
    lines = (work / run.JOURNAL).read_text().splitlines()
    after = None
    found = tuned(pipe, PROMPTS, work, target="speedup>=0.01", **few)
    again = (work / run.JOURNAL).read_text().splitlines()
    assert again[: len(lines)] == lines and found.trials == 4
    done = [(line["candidate"], line["prompt"]) for line in map(json.loads, again) if line["kind"] == labs.RUN]
    assert len(done) == len(set(done)), "nothing ran twice"


def test_a_budget_that_is_too_short_says_so_and_goes_on(pipe, few, tmp_path):
    short = {**few, "budget": 0.01}
    with pytest.raises(ValueError, match="budget of 0 s ended before any settings were measured on 2 prompts"):
        tuned(pipe, PROMPTS, tmp_path / "work", **short)
    assert tuned(pipe, PROMPTS, tmp_path / "work", target="speedup>=0.01", **few).met


def test_a_target_out_of_reach_still_ends_with_points(pipe, few, tmp_path):
    found = tuned(pipe, PROMPTS[:2], tmp_path / "work", target="speedup>=1000", **few)
    assert not found.met and found.profile.points and found.chosen in found.profile.points
    assert found.chosen.speedup == max(each.speedup for each in found.profile.points)
    assert found.chosen.evidence["searched"]["same_prompts"] is True


def test_a_calibration_is_made_where_none_is_given(pipe, few, tmp_path):
    said: list[str] = []
    options = {**few, "cache_file": None, "trials": 1}
    found = tuned(pipe, PROMPTS, tmp_path / "work", target="speedup>=0.01", say=said.append, **options)
    made = found.profile.calibrations["dense"]
    assert made.steps == STEPS and made.attention == "dense" and made.prompts["count"] == 2 and not said
    assert (tmp_path / "work" / "calibrations" / "dense.json").exists()


def test_sparse_attention_that_pays_is_cached_by_a_calibration_of_its_own(pipe, few, tmp_path, monkeypatch):
    """Tiny pipelines are never faster sparse: let the clock say that they are."""
    monkeypatch.setattr(labs.Lab, "_paced", lambda self, candidate: (0.3, None))
    monkeypatch.setattr(ready, "methods", lambda heads, block: iter([("antidiagonal", {"block": 16})]))
    found = tuned(pipe, PROMPTS[:2], tmp_path / "work", target="psnr>=1", **{**few, "trials": 10})
    lines = [json.loads(line) for line in (tmp_path / "work" / run.JOURNAL).read_text().splitlines()]
    ran = [line["settings"] for line in lines if line["kind"] == labs.RUN]
    sparse = [each for each in ran if each["method"] == "antidiagonal"]
    assert any(each["cache"] is None for each in sparse)
    own = [each for each in sparse if str((each["cache"] or {}).get("file")).startswith("sparse-")]
    assert own and {each["cache"]["predictor"]["name"] for each in own} == {"fitted"}
    assert not [line["why"] for line in lines if line["kind"] == labs.FAILED]
    files = {path.stem for path in (tmp_path / "work" / "calibrations").glob("sparse-*.json")}
    assert {each["cache"]["file"] for each in own} == files
    # What was measured with such a calibration brings it along.
    caches = [each.settings["cache"] or {} for each in found.profile.points]
    needed = {each["file"] for each in caches if "file" in each}
    assert needed <= set(found.profile.calibrations) and Profile.parse(json.dumps(found.profile.to_dict()), "here")


def test_profiled_heads_come_along_and_are_the_same_wherever_the_file_lies(pipe, few, tmp_path, monkeypatch):
    # Sparse calls are fast, and no measured time drops a point.
    monkeypatch.setattr(labs.Lab, "_paced", lambda self, candidate: (0.1, None))
    monkeypatch.setattr(run.points, "front", list)
    monkeypatch.setattr(ready, "methods", lambda heads, block: iter([("head_profile", {})] if heads else []))
    head = (option(0, 0.2), option(1, 0.1), option(2, 0.05), option(3, 0.0))
    table = HeadTable(BLOCK, PATTERNS, (1.0,), {"transformer": (((head, head),) * 2,)})
    heads = Profile("head_profile", {"density": 0.9}, heads=table)
    found = tuned(pipe, PROMPTS, tmp_path / "work", target="psnr>=1", heads=heads, **{**few, "trials": 4})
    caches = [(each, each.settings["cache"] or {}) for each in found.profile.points]
    cached = [each for each, cache in caches if cache.get("file", "").startswith("sparse-")]
    assert cached and found.profile.heads is not None
    found.profile.at(cached[0]).save(tmp_path / "elsewhere.json")
    # Its calibration is of sparse runs of just these heads: read from a file they are no others.
    with vidaccel.enable(pipe, tmp_path / "elsewhere.json") as session:
        tiny.generate(pipe, num_inference_steps=STEPS, max_sequence_length=512, output_type="latent")
        made = session.summary().to_dict()
    assert made["method"]["name"] == "head_profile" and made["cache"]["computed_share"] < 1 and made["calls"]["sparse"]


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"prompts": PROMPTS[:1]}, "needs 2 prompts or more, each another one"),
        ({"prompts": ["a", "a", "b"]}, "needs 2 prompts or more, each another one"),
        ({"prompts": "a red circle"}, "needs 2 prompts or more"),
        ({"budget": 0}, "budget 0 is not a number of seconds above 0"),
        ({"trials": 0}, "trials 0 is not a whole number of at least 1"),
        ({"target": "vmaf>=3"}, "names 'vmaf'"),
        ({"heads": Profile("radial")}, "has no heads"),
        ({"cache_file": "absent.json"}, "no cache calibration at absent.json"),
        ({"steps": 0}, "steps 0 is not a whole number"),
        ({"pace": 3}, "no setting 'pace'"),
    ],
)
def test_what_is_refused_before_anything_runs(pipe, few, tmp_path, changes, complaint):
    values = {"prompts": PROMPTS, **few, **changes}
    with pytest.raises(ValueError, match=complaint):
        tuned(pipe, work=tmp_path / "work", **values)
    assert not (tmp_path / "work").exists()


def test_a_folder_is_of_one_tuning(pipe, few, tmp_path):
    short = {**few, "budget": 0.01}
    with pytest.raises(ValueError, match="ended before"):
        tuned(pipe, PROMPTS, tmp_path / "work", **short)
    for changes, what in (({"seed": 1}, "references, seed"), ({"guidance": 2.0}, "references"),
                          ({"cache_file": None}, "cache_file")):  # fmt: skip
        with pytest.raises(ValueError, match=f"is of another tuning: it differs in {what}"):
            tuned(pipe, PROMPTS, tmp_path / "work", **{**short, **changes})
    with pytest.raises(ValueError, match="it differs in prompts"):
        tuned(pipe, [*PROMPTS[:3], "a circle"], tmp_path / "work", **short)
    with pytest.raises(ValueError, match="for runs of 6 steps, not of 4"):
        tuned(pipe, PROMPTS, tmp_path / "other", **{**few, "steps": 4})
