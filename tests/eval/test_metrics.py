from __future__ import annotations

import importlib.util
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage import data

from vidaccel.eval import metrics
from vidaccel.eval.metrics import compare_videos


@pytest.fixture
def clip() -> np.ndarray:
    """Three different photographic frames, uint8 ``[3, 64, 80, 3]``."""
    photo = data.astronaut()
    return np.stack([photo[at : at + 64, at : at + 80] for at in (0, 100, 200)])


def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lpips" else find(name, *rest))


def test_psnr_is_of_the_whole_clip(clip: np.ndarray) -> None:
    other = clip.astype(np.float64) / 255
    other[1] = np.where(other[1] > 0.5, other[1] - 0.1, other[1] + 0.1)
    # One of three frames is off by 0.1 everywhere: the error is 0.01 / 3, and no frame makes it infinite.
    assert compare_videos(clip, other)["psnr"] == pytest.approx(-10 * math.log10(0.01 / 3), abs=1e-9)


def test_identical_clips_are_strict_json(clip: np.ndarray) -> None:
    values = compare_videos(clip, clip.copy())
    assert values["psnr"] is None and "identical" in values["psnr_reason"]
    assert values["ssim"] == pytest.approx(1.0) and values["ssim_reason"] is None
    json.dumps(values, allow_nan=False)


def test_uint8_and_float_agree(clip: np.ndarray) -> None:
    noisy = np.clip(clip.astype(int) + np.random.default_rng(0).integers(-20, 21, clip.shape), 0, 255).astype(np.uint8)
    of_bytes, of_floats = compare_videos(clip, noisy), compare_videos(clip / 255, noisy / 255)
    assert of_bytes["psnr"] == pytest.approx(of_floats["psnr"])
    assert of_bytes["ssim"] == pytest.approx(of_floats["ssim"])


def test_worse_clips_score_worse(clip: np.ndarray) -> None:
    scores = []
    for noise in (4, 16, 64):
        drawn = np.random.default_rng(0).normal(0, noise, clip.shape)
        scores.append(compare_videos(clip, np.clip(clip + drawn, 0, 255).astype(np.uint8)))
    assert scores[0]["psnr"] > scores[1]["psnr"] > scores[2]["psnr"]
    assert 1 > scores[0]["ssim"] > scores[1]["ssim"] > scores[2]["ssim"] > 0


def test_ssim_by_hand() -> None:
    """Constant frames have no variance: only the luminance term of the formula is left."""
    low, high = np.full((1, 16, 16, 3), 0.25), np.full((1, 16, 16, 3), 0.75)
    stabiliser = 0.01**2
    expected = (2 * 0.25 * 0.75 + stabiliser) / (0.25**2 + 0.75**2 + stabiliser)
    assert compare_videos(low, high)["ssim"] == pytest.approx(expected, rel=1e-6)


def test_frames_too_small_for_ssim_say_so() -> None:
    values = compare_videos(np.zeros((2, 8, 8, 3)), np.ones((2, 8, 8, 3)))
    assert values["ssim"] is None and "8x8" in values["ssim_reason"] and values["psnr"] == pytest.approx(0)


def test_lpips_missing_is_a_reason(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lpips(monkeypatch)
    values = compare_videos(clip, clip[::-1])
    assert values["lpips"] is None and "vidaccel[lpips]" in values["lpips_reason"]
    assert "torchvision" not in sys.modules


class Distance(torch.nn.Module):
    """Stands in for `lpips.LPIPS`: a per-frame score that shows what it was given."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "alex"

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape == (1, 3, 64, 80) and a.dtype == torch.float32 and not torch.is_grad_enabled()
        assert a.min() >= -1 and a.max() <= 1
        return (a - b).abs().mean()


def test_lpips_gets_frames_in_its_range_and_is_averaged(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Distance))
    black, white = np.zeros_like(clip), np.full_like(clip, 255)
    white[2] = 0
    # [0, 255] becomes [-1, 1]: two frames differ by 2, one by 0.
    assert metrics.lpips(black, white) == (pytest.approx(4 / 3), None)


def test_lpips_that_cannot_start_is_a_reason(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=broken))
    score, reason = metrics.lpips(clip, clip)
    assert score is None and reason is not None and "torchvision::nms does not exist" in reason


@pytest.mark.parametrize(
    ("reference", "other", "said"),
    [
        (np.zeros((2, 16, 16, 3)), np.zeros((3, 16, 16, 3)), r"one shape, not \[2, 16, 16, 3\] and \[3, 16, 16, 3\]"),
        (np.zeros((16, 16, 3)), np.zeros((16, 16, 3)), "frames, height, width, 3"),
        (np.zeros((2, 16, 16, 3), int), np.zeros((2, 16, 16, 3), int), "int64"),
        (np.zeros((2, 16, 16, 3)), np.full((2, 16, 16, 3), 1.5), "from 1.5 to 1.5"),
        (np.zeros((2, 16, 16, 3)), np.full((2, 16, 16, 3), np.nan), "nan"),
    ],
)  # fmt: skip
def test_what_is_no_clip_is_refused(reference: np.ndarray, other: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare_videos(reference, other)
