"""LPIPS (arXiv 1801.03924): its arithmetic, and the metric itself by the package `lpips`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vidaccel.eval.metrics.score import Frame, Score, pairs, too_small

EPSILON = 1e-10
"""Added to the length of a feature vector, which may be zero after a ReLU."""
LEAST = 31
"""Side in pixels of the smallest frame from which AlexNet's last layer still gets a pixel."""


def distance(first: Sequence[Tensor], second: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Equation 1 of the paper: weighted squared distance of unit features, its mean over space, summed over layers.

    Args:
        first, second: features of each layer, ``[batch, channels, height, width]``.
        weights: of each layer's channels, ``[channels]``.

    Returns:
        One distance per image, ``[batch]``.
    """
    total = torch.zeros(len(first[0]))
    for a, b, weight in zip(first, second, weights, strict=True):
        squares = (_unit_vectors(a) - _unit_vectors(b)).square()
        total = total + torch.einsum("nchw,c->nhw", squares, weight).mean(dim=(1, 2))
    return total


def _unit_vectors(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)


def frame_distances(
    model: Callable[[Tensor, Tensor], Tensor], reference: NDArray[Any], other: NDArray[Any]
) -> list[float]:
    """A distance per frame from a `model` of two images ``[1, 3, height, width]`` in [-1, 1], float32."""
    with torch.no_grad():
        return [float(model(_image(a), _image(b))) for a, b in pairs(reference, other)]


def _image(frame: Frame) -> Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() * 2 - 1


def lpips(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """Mean over frames of LPIPS (AlexNet, version 0.1) by the package `lpips`."""
    if importlib.util.find_spec("lpips") is None:
        return Score.missing("the extra is not installed: pip install 'vidaccel[lpips]'")
    reason = too_small(reference, LEAST, "LPIPS's field of view")
    if reason is not None:
        return Score.missing(reason)
    try:
        model = importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()
    except (ImportError, OSError, RuntimeError) as error:
        # The package needs a torchvision that fits torch, and fetches its AlexNet on first use.
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Score.missing(f"the package lpips cannot start: {said}")
    return Score.mean(frame_distances(model, reference, other))
