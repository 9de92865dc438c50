"""Points of a profile: read, refused, chosen by a target, and enabled."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import vidaccel
from tests import tiny
from tests.test_heads import table
from tests.tune.cases import STEPS, calibration, point, spread
from vidaccel import TokenLayout, points
from vidaccel.points import Point
from vidaccel.profile import Profile
from vidaccel.target import Target
from vidaccel.tune.candidate import settings

STATIC = {"name": "static", "file": "dense", "computed_steps": 4, "min_steps": 1,
          "predictor": {"name": "fitted", "outputs": 2}}  # fmt: skip
EASY = {"name": "easycache", "threshold": 0.5, "min_steps": 1,
        "predictor": {"name": "fitted", "outputs": 2, "file": "dense"}}  # fmt: skip
SLOW, MIDDLE, FAST = point(1.2, 40.0), point(1.5, 35.0, STATIC), point(2.0, 28.0, EASY)


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_wan()


@pytest.fixture(scope="module")
def profile() -> Profile:
    made = Profile("dense", points=(SLOW, MIDDLE, FAST), calibrations={"dense": calibration()})
    return made.at(MIDDLE)


@pytest.mark.parametrize(
    "target, expected",
    [
        ("psnr>=30", MIDDLE),  # 27 dB is the worse end of FAST's interval
        ("psnr>=27", FAST),
        ("psnr>=35", SLOW),  # that of MIDDLE is 34
        ("speedup>=1.5", MIDDLE),
        ("speedup>=1.6", FAST),
        ("speedup>=1.1 and psnr>=30", MIDDLE),
        ("speedup>=1.6 and psnr>=30", None),
        ("psnr>=41", None),
        ("lpips<=0.1", None),
    ],
)
def test_the_point_for_a_target(target, expected):
    assert points.best((SLOW, MIDDLE, FAST), Target.of(target)) == expected


def test_less_is_better_by_its_upper_end():
    near = dataclasses.replace(SLOW, metrics={"psnr": spread(30.0), "st_lpips": spread(0.02, 0.005)})
    assert near.assured("st_lpips") == pytest.approx(0.025) and near.assured("speedup") == 1.2
    assert points.best([near], Target.of("st_lpips<=0.025")) == near
    assert points.best([near], Target.of("st_lpips<=0.024")) is None


def test_the_front_drops_what_is_beaten():
    beaten = point(1.4, 34.0)
    assert points.front([FAST, beaten, SLOW, MIDDLE]) == [SLOW, MIDDLE, FAST]
    assert points.front([MIDDLE, MIDDLE]) == [MIDDLE]


def test_the_front_keeps_what_only_the_clock_found_slower():
    def searched(speedup: float, psnr: float, expected: float) -> Point:
        made = point(speedup, psnr)
        return dataclasses.replace(made, evidence={**made.evidence, "searched": {"speedup": expected}})

    nine, ten = searched(1.45, 33.0, 1.8), searched(1.46, 35.0, 1.7)
    assert points.front([nine, ten]) == [nine, ten]
    assert points.front([searched(1.45, 33.0, 1.6), ten]) == [ten]


def test_round_trip(tmp_path, profile):
    profile.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    assert again == profile and again.aim == MIDDLE and again.cache == STATIC
    assert again.calibrations["dense"].digest == calibration().digest
    again.aimed("psnr>=27").save(tmp_path / "q.json")
    assert Profile.load(tmp_path / "q.json").cache == EASY
    values = json.loads((tmp_path / "p.json").read_text())
    assert {"cache", "calibrations", "points"} <= values.keys()


def test_a_profile_without_has_none_of_it(tmp_path):
    assert not {"cache", "calibrations", "points"} & Profile("radial").to_dict().keys()


def test_enabled_it_does_as_the_point_says(pipe, profile):
    with vidaccel.enable(pipe, profile) as session:
        tiny.generate(pipe, num_inference_steps=STEPS, output_type="latent")
        made = session.summary().to_dict()
    assert made["cache"]["options"]["computed_steps"] == 4 and made["cache"]["computed_share"] == pytest.approx(4 / 6)
    assert made["cache"]["calibration"]["sha256"] == calibration().digest and not made["notes"]
    with vidaccel.enable(pipe, profile, target="psnr>=27") as session:
        assert session.setting.cache.to_dict()["options"] == {"threshold": 0.5}
        assert session.setting.cache.to_dict()["fitted_to"] == calibration().digest
    with vidaccel.enable(pipe, "radial", cache="none", min_tokens=0) as session:
        assert session.setting.cache is None


def test_the_same_clip_as_by_hand(pipe, profile):
    by_hand = {**STATIC, "file": calibration()}
    clips = []
    for given in ((profile, None), (None, by_hand)):
        with vidaccel.enable(pipe, given[0], cache=given[1]):
            clips.append(tiny.generate(pipe, num_inference_steps=STEPS, output_type="latent"))
    assert (clips[0] == clips[1]).all()


def test_a_profile_in_the_models_folder_is_aimed_at(tmp_path, profile):
    pipe = tiny.tiny_wan()
    pipe.save_pretrained(tmp_path)
    profile.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    session = again.enable_sparse_attention(target="speedup>=1.9")
    assert session.setting.cache.policy.name == "easycache"
    again.disable_sparse_attention()


def test_runs_of_other_steps_or_guidance_are_noted(pipe, profile):
    easy = profile.at(FAST)
    easy = dataclasses.replace(easy, cache={"name": "easycache", "min_steps": 1})
    with vidaccel.enable(pipe, easy) as session:
        tiny.generate(pipe, num_inference_steps=4, output_type="latent", guidance_scale=2.0)
        notes = session.summary().to_dict()["notes"]
    assert notes == ["these settings were measured with 6 steps, not 4 and 3 guidance, not 2: tune for such runs"]
    with vidaccel.enable(pipe, profile), pytest.raises(ValueError, match="for runs of 6 steps, not of 4"):
        tiny.generate(pipe, num_inference_steps=4, output_type="latent")


def test_what_enable_refuses(pipe, profile):
    with pytest.raises(ValueError, match=r"no point of the profile has psnr>=50; it has 1.20x, psnr 40 \(39 to 41\)"):
        vidaccel.enable(pipe, profile, target="psnr>=50")
    with pytest.raises(ValueError, match="has no measured points"):
        vidaccel.enable(pipe, Profile("radial"), target="psnr>=30")
    with pytest.raises(ValueError, match="target 'psnr>=30' is for a profile with measured points"):
        vidaccel.enable(pipe, target="psnr>=30")
    with pytest.raises(ValueError, match="is for a profile"):
        vidaccel.enable(pipe, "radial", target="psnr>=30")
    with pytest.raises(ValueError, match="names 'speed'"):
        vidaccel.enable(pipe, profile, target="speed>=30")
    with pytest.raises(ValueError, match="leaves attention alone, and there is no cache"):
        vidaccel.enable(pipe, profile, cache="none")
    with pytest.raises(ValueError, match="leaves attention alone: it has no option 'density'"):
        vidaccel.enable(pipe, profile, density=0.3)
    with pytest.raises(ValueError, match="reuses steps, which only a pipeline"):
        vidaccel.sparse_attention(*[torch.zeros(1, 120, 2, 64)] * 3, layout=TokenLayout(5, 4, 6), method=profile)
    assert "_vidaccel_session" not in pipe.__dict__


def broken(change=None, **changes) -> str:
    values = Profile("dense", points=(MIDDLE,), calibrations={"dense": calibration()}).at(MIDDLE).to_dict()
    values["points"][0] |= change or {}
    return json.dumps(values | changes)


def with_settings(**changes) -> str:
    return broken({"settings": {**MIDDLE.to_dict()["settings"], **changes}})


HOSTILE = [
    (broken(points={}), "points={} does not belong"),
    (broken(points=[]), "points has 0 entries"),
    (broken(points=[1]), r"points\[0\] is 1, not an object"),
    (broken(points=json.loads(broken())["points"] * 65), "points has 65 entries"),
    (broken({"why": "x"}), "'why', which does not belong there"),
    (broken({"speedup": -1}), "speedup is -1"),
    (broken({"speedup": True}), "speedup is True"),
    (broken({"metrics": {}}), "neither 'psnr' nor 'latent_snr'"),
    (broken({"metrics": {"vmaf": spread(1)}}), "'vmaf', which does not belong"),
    (broken({"metrics": {"psnr": {"mean": 1, "low": 2, "high": 3}}}), "psnr is not low <= mean <= high"),
    (broken({"metrics": {"psnr": {"mean": 1, "low": 0}}}), "has no 'high'"),
    (broken({"metrics": {"psnr": {**spread(1), "mean": "x"}}}), "psnr has 'x', not a finite number"),
    (broken({"evidence": []}), r"evidence is \[\], not an object"),
    (broken({"evidence": {}}), "evidence has no 'steps'"),
    (broken({"evidence": {"steps": 0}}), "steps is 0"),
    (broken({"evidence": {"steps": 4, "guidance": "x"}}), "guidance has 'x'"),
    (broken({"settings": {}}), "settings has no 'method'"),
    (with_settings(method=3), "method=3 does not belong there"),
    (with_settings(options=[]), r"options=\[\] does not belong there"),
    (with_settings(cache={"name": "static", "file": "/etc/passwd"}), r"file is '/etc/passwd', not one of .* \(dense\)"),
    (with_settings(cache={"name": "static", "file": "miniature:wan/../../x.json"}), "not one of the file's"),
    (with_settings(cache={"name": "static", "file": "miniature:../x.json"}), "not one of the file's"),
    (with_settings(cache={"name": "easycache", "predictor": {"name": "fitted", "file": "x.json"}}), "predictor: file"),
    (with_settings(cache={"name": "static", "compute": [[0]]}), "'compute' is .* not a value or a list"),
    (with_settings(cache={"file": "dense"}), "name is None"),
    (with_settings(cache=3), "cache=3 does not belong"),
    (broken(cache={"name": "static", "file": "other"}), r"cache: file is 'other', not one of"),
    (broken(cache=[]), r"cache=\[\] does not belong"),
    (broken(calibrations=[]), r"calibrations=\[\] does not belong"),
    (broken(calibrations={"dense": {}}), "calibrations: 'dense' is no cache calibration"),
    (broken(calibrations={"miniature:wan": {}}), "is the name of a miniature's own"),
    (json.dumps({**Profile("dense", points=(MIDDLE,)).to_dict(), "heads": table().to_dict()}), "not one of the file's"),
]


@pytest.mark.parametrize("text, complaint", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files(text, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        Profile.parse(text, "here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_heads_may_stand_beside_points_of_other_methods():
    heads = settings("head_profile", {"density": 0.7})
    mixed = dataclasses.replace(SLOW, settings=heads)
    made = Profile("dense", points=(mixed, FAST), heads=table(), calibrations={"dense": calibration()}).at(FAST)
    again = Profile.parse(json.dumps(made.to_dict()), "here")
    assert again.heads == table() and again.method == "dense"
    assert again.aimed("psnr>=39").options == {"density": 0.7}
    for name in ("profile", "digest"):
        bad = Point({**heads, "options": {name: "x"}}, SLOW.metrics, 1.0, SLOW.evidence)
        text = json.dumps(dataclasses.replace(made, points=(bad,)).to_dict())
        with pytest.raises(ValueError, match=f"no option '{name}'"):
            Profile.parse(text, "here")
