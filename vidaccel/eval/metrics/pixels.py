"""PSNR and SSIM: scikit-image's, and the SSIM of ffmpeg's filter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.metrics.score import Score, pairs, too_small

WINDOW = 11
"""Side in pixels of SSIM's Gaussian window (sigma 1.5, truncated at 3.5 sigma)."""
BOX, STRIDE = 8, 4
"""Side and distance in pixels of the windows of ffmpeg's SSIM."""
# ffmpeg rounds both constants to whole numbers for 8-bit frames. They stand beside sums, not means, over a window.
C1, C2 = round((0.01 * 255) ** 2 * BOX**2), round((0.03 * 255) ** 2 * BOX**2 * (BOX**2 - 1))


def psnr(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """PSNR in dB of the squared error over the whole clip, so that no single frame makes it infinite.

    As ffmpeg's filter ``psnr`` has it for planar RGB, as "average".
    """
    errors = [float(np.square(a - b).mean()) for a, b in pairs(reference, other)]
    value = _decibels(float(np.mean(errors)))
    frames = [_decibels(error) for error in errors]
    return Score(value, "the clips are identical: PSNR is infinite" if value is None else None, frames)


def _decibels(error: float) -> float | None:
    return -10 * math.log10(error) if error > 0 else None


def ssim(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """Mean over frames and channels of SSIM as in Wang et al. 2004: Gaussian window, population variances."""
    from skimage.metrics import structural_similarity

    reason = too_small(reference, WINDOW, "SSIM's window")
    if reason is not None:
        return Score.missing(reason)
    frames = [
        structural_similarity(a, b, channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for a, b in pairs(reference, other)
    ]  # fmt: skip
    return Score.mean([float(value) for value in frames])


def ssim_ffmpeg(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """Mean over frames and channels of SSIM as ffmpeg's filter ``ssim`` has it, as "All", for planar RGB of 8 bits."""
    reason = too_small(reference, BOX, "the window of ffmpeg's SSIM")
    if reason is not None:
        return Score.missing(reason)
    return Score.mean([_box_ssim(a * 255, b * 255) for a, b in pairs(reference, other)])


def _box_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Mean over windows and channels for one pair of frames in [0, 255]."""
    pixels = BOX**2
    sum_a, sum_b, squares, products = (_window_sums(each) for each in (a, b, a * a + b * b, a * b))
    variances = pixels * squares - sum_a**2 - sum_b**2
    covariance = pixels * products - sum_a * sum_b
    luminance = (2 * sum_a * sum_b + C1) / (sum_a**2 + sum_b**2 + C1)
    return float((luminance * (2 * covariance + C2) / (variances + C2)).mean())


def _window_sums(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over whole 8x8 windows, every 4 pixels: ``[height // 4 - 1, width // 4 - 1, channels]``."""
    height, width = (side // STRIDE for side in image.shape[:2])
    cut = image[: height * STRIDE, : width * STRIDE]
    cells = cut.reshape(height, STRIDE, width, STRIDE, -1).sum(axis=(1, 3))
    rows = cells[:-1] + cells[1:]
    return np.asarray(rows[:, :-1] + rows[:, 1:])
