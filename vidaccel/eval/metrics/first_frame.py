"""First-frame fidelity of image-to-video: the clip's first frame against the image that the run was given."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from vidaccel.eval.metrics.pixels import psnr, ssim
from vidaccel.eval.metrics.score import Score


def first_frame_psnr(image: NDArray[Any], other: NDArray[Any]) -> Score:
    """PSNR in dB of the first frame against `image`, ``[height, width, 3]`` as the pipeline prepared it."""
    found = psnr(image[None], other[:1])
    reason = "the first frame is the image: PSNR is infinite" if found.value is None else None
    return Score(found.value, reason)


def first_frame_ssim(image: NDArray[Any], other: NDArray[Any]) -> Score:
    """SSIM of the first frame against `image`, ``[height, width, 3]`` as the pipeline prepared it."""
    found = ssim(image[None], other[:1])
    return Score(found.value, found.reason)
