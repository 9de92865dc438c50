"""The error of the latents after the last step: what the transformer did, before the decoder."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.metrics.score import Score


def latent_error(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """Relative L2 error ``||b - a|| / ||a||``; 0 for identical latents."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    size = float(np.linalg.norm(a))
    if size == 0:
        return Score.missing("the reference's latents are zero: there is no relative error")
    return Score(float(np.linalg.norm(b - a)) / size)


def latent_snr(reference: NDArray[Any], other: NDArray[Any]) -> Score:
    """`latent_error` as a signal-to-noise ratio in dB, ``-20 log10(latent_error)``: the latents' PSNR."""
    error = latent_error(reference, other)
    if error.value == 0:
        return Score.missing("the latents are identical: their SNR is infinite")
    return error if error.value is None else Score(-20 * math.log10(error.value))


def check_latents(reference: NDArray[Any], other: NDArray[Any]) -> None:
    """Refuse what are not latents of one shape.

    Raises:
        ValueError: shapes that differ or are empty, or values that are not finite floating-point numbers.
    """
    if reference.shape != other.shape:
        raise ValueError(f"latents to compare have one shape, not {list(reference.shape)} and {list(other.shape)}")
    for latents in (reference, other):
        if not np.issubdtype(latents.dtype, np.floating) or not latents.size:
            raise ValueError(f"latents are floating point, got {latents.dtype} {list(latents.shape)}")
        wrong = latents.size - int(np.isfinite(latents).sum())
        if wrong:
            raise ValueError(f"latents are finite, got {wrong} of {latents.size} values that are not")
