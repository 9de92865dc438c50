"""The arithmetic against its formula and against the package; the package as a metric."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vidaccel.eval.metrics.perceptual import LEAST, distance, lpips

SHAPES = ((4, 5, 3), (6, 2, 3), (3, 1, 1))


def slow_distance(first: list[Tensor], second: list[Tensor], weights: list[Tensor]) -> float:
    """Equation 1 pixel by pixel, in Python's numbers."""
    total = 0.0
    for a, b, weight in zip(first, second, weights, strict=True):
        channels, height, width = a.shape
        layer = 0.0
        for row in range(height):
            for column in range(width):
                x, y = (features[:, row, column].tolist() for features in (a, b))
                long, wide = (math.hypot(*vector) or 1.0 for vector in (x, y))
                layer += sum(weight[c].item() * (x[c] / long - y[c] / wide) ** 2 for c in range(channels))
        total += layer / (height * width)
    return total


def test_distance_is_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = ([torch.rand(2, *shape, generator=draw).sub(0.4).relu() for shape in SHAPES] for _ in range(2))
    # A pixel without any activation, as ReLU leaves them, has no direction.
    first[0][0, :, 1, 1] = 0
    weights = [torch.rand(shape[0], generator=draw) for shape in SHAPES]
    expected = [slow_distance([x[i] for x in first], [x[i] for x in second], weights) for i in range(2)]
    assert distance(first, second, weights).tolist() == pytest.approx(expected, rel=1e-5)


def test_distance_is_of_directions() -> None:
    features, weights = [torch.rand(1, *shape) for shape in SHAPES], [torch.ones(shape[0]) for shape in SHAPES]
    assert distance(features, features, weights).item() == 0
    assert distance(features, [3 * each for each in features], weights).item() == pytest.approx(0, abs=1e-10)
    # Opposite unit vectors are 2 apart: a distance of 4 in each layer.
    assert distance(features, [-each for each in features], weights).item() == pytest.approx(4 * len(SHAPES))


def package() -> Any:
    try:
        return importlib.import_module("lpips")
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"the package lpips cannot be imported, torchvision beside CPU builds of torch neither: {error}")


def test_distance_equals_the_packages() -> None:
    """Its own linear weights on a random trunk: the trained trunk is a download."""
    model = package().LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    weights = [layer.model[-1].weight.flatten() for layer in model.lins]

    def features(image: Tensor) -> list[Tensor]:
        return list(model.net(model.scaling_layer(image)))

    with torch.no_grad():
        for height, width in ((64, 80), (45, 101), (LEAST, LEAST)):
            a, b = (torch.rand(2, 3, height, width) * 2 - 1 for _ in range(2))
            expected = model(a, b).flatten()
            assert torch.allclose(distance(features(a), features(b), weights), expected, rtol=1e-5, atol=0)
        with pytest.raises(RuntimeError):
            features(torch.zeros(1, 3, LEAST - 1, LEAST - 1))


def installed(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """A package `lpips` whose LPIPS is `model`."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=model))


def test_missing_is_a_reason(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lpips" else find(name, *rest))
    score = lpips(clip, clip[::-1])
    assert score.value is None and "vidaccel[lpips]" in score.reason


class Distance(torch.nn.Module):
    """Stands in for `lpips.LPIPS`: a per-frame score that shows what it was given."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "alex"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape == (1, 3, 66, 82) and a.dtype == torch.float32 and not torch.is_grad_enabled()
        assert a.min() >= -1 and a.max() <= 1
        return (a - b).abs().mean()


def test_frames_come_in_its_range_and_are_averaged(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Distance)
    black, white = np.zeros_like(clip), np.full_like(clip, 255)
    white[2] = 0
    # [0, 255] becomes [-1, 1]: two frames differ by 2, one by 0.
    score = lpips(black, white)
    assert score.value == pytest.approx(4 / 3) and score.frames == [2, 2, 0] and score.reason is None


def test_what_cannot_start_is_a_reason(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    installed(monkeypatch, broken)
    score = lpips(clip, clip)
    assert score.value is None and "torchvision::nms does not exist" in score.reason


def test_frames_too_small_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Distance)
    small = np.zeros((1, 64, LEAST - 1, 3))
    score = lpips(small, small)
    assert score.value is None and "30x64" in score.reason
