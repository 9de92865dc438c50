"""How near one clip is to another: PSNR, SSIM and LPIPS."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SSIM_WINDOW = 11
"""Side in pixels of SSIM's Gaussian window (sigma 1.5, truncated at 3.5 sigma)."""


def compare_videos(reference: NDArray[Any], other: NDArray[Any]) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS of `other` against `reference`, as JSON-ready values.

    Args:
        reference, other: ``[frames, height, width, 3]``, uint8 or floats in [0, 1].

    Returns:
        ``psnr`` in dB from the squared error over the whole clip, so that no single frame can make it infinite;
        ``ssim`` (Wang et al. 2004: Gaussian window, sigma 1.5) and ``lpips`` (AlexNet, v0.1), means over the frames.
        A value that cannot be given is None, with ``psnr_reason``, ``ssim_reason`` or ``lpips_reason`` saying why:
        clips that are identical have no finite PSNR.

    Raises:
        ValueError: shapes that differ, are not those of clips, or floats outside [0, 1].
    """
    reference, other = np.asarray(reference), np.asarray(other)
    if reference.shape != other.shape:
        raise ValueError(f"clips to compare have one shape, not {list(reference.shape)} and {list(other.shape)}")
    _check(reference)
    _check(other)
    values: dict[str, Any] = {}
    for name, measure in (("psnr", psnr), ("ssim", ssim), ("lpips", lpips)):
        values[name], values[f"{name}_reason"] = measure(reference, other)
    return values


def psnr(reference: NDArray[Any], other: NDArray[Any]) -> tuple[float | None, str | None]:
    """PSNR in dB over all pixels of the clip, or None and why not."""
    errors = [np.square(_unit(a) - _unit(b)).mean() for a, b in zip(reference, other, strict=True)]
    error = float(np.mean(errors))
    return (-10 * math.log10(error), None) if error > 0 else (None, "the clips are identical: PSNR is infinite")


def ssim(reference: NDArray[Any], other: NDArray[Any]) -> tuple[float | None, str | None]:
    """Mean over frames of the structural similarity, or None and why not."""
    from skimage.metrics import structural_similarity

    if min(reference.shape[1:3]) < SSIM_WINDOW:
        size = f"{reference.shape[2]}x{reference.shape[1]}"
        return None, f"frames of {size} are smaller than SSIM's window of {SSIM_WINDOW}x{SSIM_WINDOW}"
    frames = [
        structural_similarity(_unit(a), _unit(b), channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for a, b in zip(reference, other, strict=True)
    ]
    return float(np.mean(frames)), None


def lpips(reference: NDArray[Any], other: NDArray[Any]) -> tuple[float | None, str | None]:
    """Mean over frames of LPIPS (arXiv 1801.03924) by the package `lpips`, or None and why not."""
    if importlib.util.find_spec("lpips") is None:
        return None, "the extra is not installed: pip install 'vidaccel[lpips]'"
    import torch

    try:
        model = importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()
    except (ImportError, OSError, RuntimeError) as error:
        # The package needs a torchvision that fits torch, and fetches its AlexNet on first use.
        return None, f"the package lpips cannot start: {type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def tensor(frame: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(_unit(frame)).permute(2, 0, 1)[None].float() * 2 - 1

    with torch.no_grad():
        values = [float(model(tensor(a), tensor(b))) for a, b in zip(reference, other, strict=True)]
    return float(np.mean(values)), None


def _check(frames: NDArray[Any]) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a clip is [frames, height, width, 3], got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        return
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"a clip is uint8 or floating point, got {frames.dtype}")
    low, high = float(frames.min()), float(frames.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"a floating-point clip is in [0, 1], got values from {low:g} to {high:g}")


def _unit(frame: NDArray[Any]) -> NDArray[np.float64]:
    """A frame as float64 in [0, 1]."""
    scale = 255.0 if frame.dtype == np.uint8 else 1.0
    return frame.astype(np.float64) / scale
