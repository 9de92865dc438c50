"""The file of a cache calibration: read back as written, hostile contents refused, other runs refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.caching.made import FACTS, made
from vidaccel.caching.calibration import CacheCalibration, shift_of
from vidaccel.methods import ModelFacts

FITS: dict[str, Any] = {"models": {"transformer": FACTS}, "steps": 12, "scheduler": "FlowMatchEulerDiscreteScheduler",
                        "shift": 3.0, "guidance": 5.0}  # fmt: skip


@pytest.mark.parametrize("switch", [None, 7])
def test_read_back_as_written(tmp_path: Path, switch: int | None) -> None:
    path, calibration = tmp_path / "cache.json", made(switch=switch)
    calibration.save(path)
    found = CacheCalibration.load(path)
    assert found == calibration and found.digest == calibration.digest
    assert found.reference == str(path) and calibration.reference == ""
    assert CacheCalibration.of(str(path)) == found and CacheCalibration.of(found) is found
    found.save(path)
    assert CacheCalibration.load(path) == calibration
    assert [each.name for each in tmp_path.iterdir()] == ["cache.json"]


def test_digest_is_of_the_contents() -> None:
    assert made().digest == made().digest != made(seed=1).digest
    assert len({made(), made(), made(shift=4.0)}) == 2


def test_none_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text("before")
    track = made().tracks["transformer"]["cond"]
    bad = dataclasses.replace(track, ratio=(math.nan, *track.ratio[1:]))
    tracks = {"transformer": {"cond": bad}}
    for changed in ({"tracks": tracks}, {"scheduler": "x" * 300}, {"prompts": {"count": object()}}):
        with pytest.raises(ValueError, match="cannot be saved"):
            made(**changed).save(tmp_path / "cache.json")
    assert (tmp_path / "cache.json").read_text() == "before"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cache calibration at"):
        CacheCalibration.load(tmp_path / "none.json")
    bad: list[Any] = [None, 3, "", "a\0b", {}]
    for given in bad:
        with pytest.raises(ValueError, match="path of a JSON file"):
            CacheCalibration.of(given)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what lies at a path such as "tracks.transformer.cond.ratio.0"; `...` removes it."""

    def apply(values: dict[str, Any]) -> None:
        *above, last = [int(each) if each.isdigit() else each for each in path.split(".")]
        inside: Any = values
        for name in above:
            inside = inside[name]
        if value is ...:
            del inside[last]
        else:
            inside[last] = value

    return apply


COND = "tracks.transformer.cond"
HOSTILE = [
    ("format", 2, "format"), ("format", True, "format"), ("extra", 1, "extra"), ("steps", ..., "no 'steps'"),
    ("steps", 10**9, "steps"), ("steps", 12.0, "steps"), ("timesteps", [1.0], "12"), ("timesteps.3", 9e9, "timesteps"),
    ("timesteps.3", "x", "timesteps"), ("timesteps.3", 999.0, "neither fall nor rise"), ("scheduler", 3, "scheduler"),
    ("scheduler", "x" * 300, "scheduler"), ("shift", -1, "shift"), ("guidance", [], "guidance"),
    ("attention", None, "attention"), ("prompts", {}, "count"), ("prompts.sha256", "0" * 65, "sha256"),
    ("prompts.count", 0, "count"), ("versions", [], "versions"), ("versions.torch", 2, "torch"),
    ("model", {}, "model"), ("model.transformer.layers", 0, "layers"), ("model.transformer.fingerprint", "0", "config"),
    ("tracks", {}, "no 'transformer'"), ("tracks.other", {}, "other"), ("tracks.transformer", {}, "branches"),
    (f"{COND}.ratio", [1.0] * 3, "experts together|different steps|ratio|entries"), (f"{COND}.ratio.2", -1, "ratio"),
    (f"{COND}.ratio.2", 1e13, "ratio"), (f"{COND}.ratio.2", True, "ratio"), (f"{COND}.first_step", 12, "first_step"),
    (f"{COND}.first_step", 1, "ratio"), (f"{COND}.stack.3", [0.1] * 4, r"stack\[3\]"), (f"{COND}.more", 1, "more"),
    (f"{COND}.stack.3.1", "x", r"stack\[3\]"), (f"{COND}.output", [], "output"),
    (f"{COND}.affine.2.1", [1.0], "affine"),
    (f"{COND}.affine.2.1", [1.0, "x"], "affine"), (f"{COND}.blocks", [], "blocks"),
    (f"{COND}.blocks.0", [0.0] * 2000, "blocks"), (f"{COND}.blocks.4", [0.1], r"blocks\[4\]"),
    (f"{COND}.change", None, "change"), (f"{COND}.time_distance", [0.0], "time_distance"),
    (f"{COND}.output_size", ..., "output_size"), ("guided", ..., "guided"), ("guided", [], "guided"),
    ("guided.products", [[1.0]], "products"), ("guided.products.2", [1.0] * 2, r"products\[2\]"),
    ("guided.products.2.1", 1e13, r"products\[2\]"), ("guided.products.2.1", "x", r"products\[2\]"),
    ("guided.effects", [0.1], "effects"), ("guided.effects.3", -0.1, "effects"), ("guided.more", 1, "more"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "told"), HOSTILE, ids=[f"{path}-{told}" for path, _, told in HOSTILE])
def test_hostile_files(path: str, value: Any, told: str) -> None:
    values = copy.deepcopy(made().to_dict())
    assert CacheCalibration.parse(json.dumps(values), "it") == made()
    change(path, value)(values)
    with pytest.raises(ValueError, match=told) as caught:
        CacheCalibration.parse(json.dumps(values), "it")
    assert str(caught.value).startswith("it") and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["", "[]", "null", "NaN", '{"format": 1}', '{"format": 1, "format": 1}', "[" * 9999,
                                  json.dumps(made().to_dict()).replace("3.0", "NaN", 1)])  # fmt: skip
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="^it"):
        CacheCalibration.parse(text, "it")


def test_experts_share_the_run_between_them() -> None:
    values = copy.deepcopy(made(switch=7).to_dict())
    values["tracks"]["transformer_2"] = values["tracks"]["transformer"]
    with pytest.raises(ValueError, match="do not run each of the 12 steps once"):
        CacheCalibration.parse(json.dumps(values), "it")
    values["tracks"]["transformer_2"] = made(switch=6).to_dict()["tracks"]["transformer_2"]
    with pytest.raises(ValueError, match="do not run each of the 12 steps once"):
        CacheCalibration.parse(json.dumps(values), "it")


def test_tracks_are_found_by_expert_and_branch() -> None:
    calibration = made(switch=7)
    assert calibration.track("transformer_2", "uncond") is calibration.tracks["transformer_2"]["uncond"]
    assert [calibration.covered(name) for name in calibration.tracks] == [range(7), range(7, 12)]
    with pytest.raises(ValueError, match="knows transformer, transformer_2, not denoiser"):
        calibration.track("denoiser", "cond")
    with pytest.raises(ValueError, match="no guidance branch 'pass2' of transformer: it was made with cond, uncond"):
        calibration.track("transformer", "pass2")


def test_the_run_that_it_was_made_for() -> None:
    made().check(**FITS)
    made().check(**FITS | {"guidance": None})
    made().check(**FITS | {"scheduler": None, "shift": None})
    made().check(**FITS | {"guidance": 5.0001})
    made().check(**FITS | {"steps": 30}, same_steps=False)
    made().check(**FITS | {"steps": None}, same_steps=False)
    made(attention="ab").check(**FITS, attention="ab")


OTHER = ModelFacts(FACTS.name, {"num_layers": 5}, 4, 2, 64)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"steps": 30}, "for runs of 12 steps, not of 30"), ({"steps": None}, "give num_inference_steps"),
        ({"scheduler": "Other"}, "made with a FlowMatchEulerDiscreteScheduler, not a Other"),
        ({"shift": 5.0}, "a shift of 3, not 5"), ({"shift": None}, "a shift of 3, not none"),
        ({"guidance": 6.0}, "a guidance scale of 5, not 6"),
        ({"attention": "ab"}, "dense attention, the run has sparse"),
        ({"models": {"transformer": OTHER}}, "num_layers is 5, there 4"),
        ({"models": {"transformer": FACTS, "transformer_2": FACTS}}, "has transformer_2, too"),
    ],
)  # fmt: skip
def test_other_runs_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made().check(**FITS | changed)
    # A guidance scale where the calibration had none.
    with pytest.raises(ValueError, match="a guidance scale of none, not 5"):
        made(guidance=None).check(**FITS)


def test_shift_of_schedulers() -> None:
    from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert shift_of(euler) == 3.0
    euler.set_shift(7.0)
    assert shift_of(euler) == 7.0
    assert shift_of(UniPCMultistepScheduler(flow_shift=5.0)) == 5.0
    assert shift_of(CogVideoXDDIMScheduler()) is None
