"""ST-LPIPS, the shift-tolerant LPIPS of Ghildyal and Liu (ECCV 2022): needs neither a network nor torchvision.

Written from the paper and the shapes of the weights. Of the distribution `stlpips-pytorch` only a file of weights is
read (BSD 2-clause): its code is never imported. The trunk is an AlexNet whose strided convolution and poolings run at
stride 1, each followed by a blur that halves the size.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vidaccel.eval.metrics.perceptual import distance, frame_distances
from vidaccel.eval.metrics.score import Score, too_small

DISTRIBUTION = "stlpips-pytorch"
WEIGHTS = "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
CONVOLUTIONS = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")
PADDING = (2, 2, 1, 1, 1)
BLURS = ("net.slice1.1.filt", "net.slice2.4.filt", "net.slice3.8.filt")
LINEAR = tuple(f"lin{layer}.model.1.weight" for layer in range(len(CONVOLUTIONS)))
BLUR_PADDING = 2
LEAST = 21
"""Side in pixels of the smallest frame that the last blur can still pad by reflection."""


class StLpips:
    """The metric with given weights: two images ``[batch, 3, height, width]`` in [-1, 1] to ``[batch]``.

    Args:
        weights: the state dictionary of the file.

    Raises:
        ValueError: a weight is missing.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        convolutions = [f"{name}.{part}" for name in CONVOLUTIONS for part in ("weight", "bias")]
        needed = {"scaling_layer.shift", "scaling_layer.scale", *BLURS, *LINEAR, *convolutions}
        missing = sorted(needed - set(weights))
        if missing:
            raise ValueError(f"weights of ST-LPIPS lack {', '.join(missing)}")
        self.weights = weights
        self.linear = [weights[name].flatten() for name in LINEAR]

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return distance(self.features(first), self.features(second), self.linear)

    def features(self, images: Tensor) -> list[Tensor]:
        """Features after each of the five convolutions."""
        x = (images - self.weights["scaling_layer.shift"]) / self.weights["scaling_layer.scale"]
        found = []
        for layer in range(len(CONVOLUTIONS)):
            if layer in (1, 2):
                x = self._blur(functional.max_pool2d(x, kernel_size=3, stride=1), layer)
            x = self._convolution(x, layer)
            x = torch.relu(self._blur(x, 0) if layer == 0 else x)
            found.append(x)
        return found

    def _convolution(self, x: Tensor, layer: int) -> Tensor:
        name = CONVOLUTIONS[layer]
        return functional.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"],
                                 padding=PADDING[layer])  # fmt: skip

    def _blur(self, x: Tensor, which: int) -> Tensor:
        """Every channel blurred, every second pixel kept."""
        padded = functional.pad(x, (BLUR_PADDING,) * 4, mode="reflect")
        return functional.conv2d(padded, self.weights[BLURS[which]], stride=2, groups=x.shape[1])


def st_lpips(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """Mean over frames of ST-LPIPS with the AlexNet weights of `stlpips-pytorch`."""
    path = weights_file()
    if path is None:
        return Score.missing(f"its weights are not installed: pip install --no-deps {DISTRIBUTION} (only a file of "
                             "weights is read, so nothing else is needed)")  # fmt: skip
    reason = too_small(reference, LEAST, "ST-LPIPS's field of view")
    if reason is not None:
        return Score.missing(reason)
    # weights_only builds tensors and nothing else: no object of the file is unpickled.
    model = StLpips(torch.load(path, map_location="cpu", weights_only=True))
    return Score.mean(frame_distances(model, reference, other))


def weights_file() -> Path | None:
    """The file of weights that pip installed, or None."""
    try:
        found = Path(str(importlib.metadata.distribution(DISTRIBUTION).locate_file(WEIGHTS)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if found.is_file() else None
