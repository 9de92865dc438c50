"""The registry: what is given for which input, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from vidaccel.eval.metrics import ON_FRAMES, ON_LATENTS, compare_videos, metric_names
from vidaccel.eval.metrics.score import Score

CHEAP = ["psnr", "ssim", "ssim_ffmpeg", "flicker", "flicker_ratio", "latent_error", "latent_snr"]


def compared(clip: np.ndarray, other: np.ndarray, **arguments: Any) -> dict[str, Any]:
    return compare_videos(clip, other, **{"metrics": CHEAP, **arguments})


def test_every_metric_has_a_value_or_a_reason(clip: np.ndarray, blurred: np.ndarray) -> None:
    latents = np.random.default_rng(0).normal(size=(1, 4, 2, 3)).astype(np.float32)
    values = compare_videos(clip, blurred, reference_latents=latents, other_latents=latents * 0.9)
    assert list(values) == [key for name in metric_names() for key in (name, f"{name}_reason")]
    assert all((values[name] is None) == (values[f"{name}_reason"] is not None) for name in metric_names())
    assert all(isinstance(values[name], float) for name in CHEAP)
    json.dumps(values, allow_nan=False)


def test_identical_clips_are_strict_json(clip: np.ndarray) -> None:
    values = compared(clip, clip.copy(), per_frame=True)
    assert values["psnr"] is None and "identical" in values["psnr_reason"]
    assert values["ssim"] == pytest.approx(1.0) == values["ssim_ffmpeg"] and values["ssim_reason"] is None
    assert values["flicker"] == 0 and values["flicker_ratio"] == 1
    assert values["per_frame"]["psnr"] == [None] * 3
    json.dumps(values, allow_nan=False)


def test_uint8_and_float_agree(clip: np.ndarray, blurred: np.ndarray) -> None:
    of_bytes, of_floats = compared(clip, blurred), compared(clip / 255, (blurred / 255).astype(np.float32))
    for name in ON_FRAMES.keys() & set(CHEAP):
        assert of_bytes[name] == pytest.approx(of_floats[name], rel=1e-5), name


def test_worse_clips_score_worse(clip: np.ndarray) -> None:
    scores = []
    for noise in (4, 16, 64):
        drawn = np.random.default_rng(0).normal(0, noise, clip.shape)
        scores.append(compared(clip, np.clip(clip + drawn, 0, 255).astype(np.uint8)))
    for name in ("psnr", "ssim", "ssim_ffmpeg"):
        assert scores[0][name] > scores[1][name] > scores[2][name] > 0
    assert scores[0]["flicker"] < scores[1]["flicker"] < scores[2]["flicker"]


def test_a_subset_measures_nothing_else(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    for name in ON_FRAMES:
        monkeypatch.setitem(ON_FRAMES, name, lambda *_, name=name: measured.append(name) or Score(1.0))
    values = compare_videos(clip, clip, metrics=["ssim", "psnr"])
    # In the registry's order, whatever the order asked for.
    assert list(values) == ["psnr", "psnr_reason", "ssim", "ssim_reason"] and measured == ["psnr", "ssim"]
    assert list(compare_videos(clip, clip, metrics="flicker")) == ["flicker", "flicker_reason"]


def test_a_metric_is_one_line_of_the_registry(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ON_FRAMES, "brightness", lambda a, b: Score(float(b.mean() - a.mean())))
    assert compare_videos(clip, clip, metrics=["brightness"]) == {"brightness": 0.0, "brightness_reason": None}


def test_unknown_metrics_are_named_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match=r"unknown metric 'vmaf', 'fvd'; choose psnr, ssim, .*latent_snr"):
        compare_videos(object(), object(), metrics=["psnr", "vmaf", "fvd"])  # type: ignore[arg-type]


def test_values_of_each_frame(clip: np.ndarray, blurred: np.ndarray) -> None:
    assert "per_frame" not in compared(clip, blurred)
    values = compared(clip, blurred, per_frame=True)
    assert set(values["per_frame"]) == {"psnr", "ssim", "ssim_ffmpeg"}
    for name, frames in values["per_frame"].items():
        alone = [compared(a[None], b[None])[name] for a, b in zip(clip, blurred, strict=True)]
        assert frames == alone and len(set(frames)) == 3
    json.dumps(values, allow_nan=False)


def test_latents_alone_are_enough(clip: np.ndarray) -> None:
    latents = np.ones((1, 2, 3), np.float32)
    values = compare_videos(None, None, reference_latents=latents, other_latents=latents * 1.5)
    assert values["latent_error"] == pytest.approx(0.5)
    assert all(values[name] is None and "not decoded" in values[f"{name}_reason"] for name in ON_FRAMES)


def test_what_only_one_side_has_is_a_reason(clip: np.ndarray) -> None:
    latents = np.ones((1, 2, 3), np.float32)
    values = compared(clip, clip, reference_latents=latents)
    assert all(values[name] is None and "only the reference has latents" in values[f"{name}_reason"]
               for name in ON_LATENTS)  # fmt: skip
    assert "were not kept" in compared(clip, clip)["latent_error_reason"]
    assert "only the other clip has frames" in compare_videos(None, clip, metrics="psnr")["psnr_reason"]


@pytest.mark.parametrize(
    ("reference", "other", "said"),
    [
        (np.zeros((2, 16, 16, 3)), np.zeros((3, 16, 16, 3)), r"one shape, not \[2, 16, 16, 3\] and \[3, 16, 16, 3\]"),
        (np.zeros((16, 16, 3)), np.zeros((16, 16, 3)), "frames, height, width, 3"),
        (np.zeros((0, 16, 16, 3)), np.zeros((0, 16, 16, 3)), "frames, height, width, 3"),
        (np.zeros((2, 16, 16, 3), int), np.zeros((2, 16, 16, 3), int), "int64"),
        (np.zeros((2, 16, 16, 3)), np.full((2, 16, 16, 3), 1.5), "from 1.5 to 1.5"),
        (np.zeros((2, 16, 16, 3)), np.full((2, 16, 16, 3), np.nan), "nan"),
    ],
)
def test_what_is_no_clip_is_refused(reference: np.ndarray, other: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare_videos(reference, other)
