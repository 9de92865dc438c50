"""How near one clip is to another: a registry of metrics on frames and on latents, see docs/metrics.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.metrics.first_frame import first_frame_psnr, first_frame_ssim
from vidaccel.eval.metrics.latents import check_latents, latent_error, latent_snr
from vidaccel.eval.metrics.motion import flicker, flicker_ratio
from vidaccel.eval.metrics.perceptual import lpips
from vidaccel.eval.metrics.pixels import psnr, ssim, ssim_ffmpeg
from vidaccel.eval.metrics.score import Score, check_frames
from vidaccel.eval.metrics.shift_tolerant import st_lpips

Measure = Callable[[NDArray[Any], NDArray[Any]], Score]
NO_IMAGE, NOT_DECODED = "no image was given", "the clip was not decoded"
Arrays = tuple[NDArray[Any], NDArray[Any]]
# Adding a metric: its function, and its line here. The order is that of results.
ON_FRAMES: dict[str, Measure] = {
    "psnr": psnr,
    "ssim": ssim,
    "ssim_ffmpeg": ssim_ffmpeg,
    "lpips": lpips,
    "st_lpips": st_lpips,
    "flicker": flicker,
    "flicker_ratio": flicker_ratio,
}
"""Metrics of two clips ``[frames, height, width, 3]``, uint8 or floats in [0, 1]."""
ON_FIRST_FRAME: dict[str, Measure] = {"first_frame_psnr": first_frame_psnr, "first_frame_ssim": first_frame_ssim}
"""Metrics of the image that a run began with, ``[height, width, 3]``, and its clip: no dense clip is looked at."""
ON_LATENTS: dict[str, Measure] = {"latent_error": latent_error, "latent_snr": latent_snr}
"""Metrics of two latents of one shape."""


def compare_videos(
    reference: NDArray[Any] | None,
    other: NDArray[Any] | None,
    *,
    reference_latents: NDArray[Any] | None = None,
    other_latents: NDArray[Any] | None = None,
    image: NDArray[Any] | None = None,
    image_reason: str = NO_IMAGE,
    metrics: Iterable[str] | None = None,
    per_frame: bool = False,
) -> dict[str, Any]:
    """Every metric of `other` against `reference`, as JSON-ready values.

    Args:
        reference, other: ``[frames, height, width, 3]``, uint8 or floats in [0, 1]; both None where
            nothing was decoded.
        reference_latents, other_latents: after the last step, of one shape; None where they were not kept.
        image: the first frame that the clips were made from, ``[height, width, 3]`` of their size; None without one.
        image_reason: why there is none.
        metrics: names of those to measure; None for all.
        per_frame: also give the values of each frame, for the metrics that have one.

    Returns:
        For each metric its value under its name, and under ``<name>_reason`` None or why there is no value: then the
        value is None. PSNR of identical clips is infinite and so is None. With `per_frame`, ``per_frame`` maps names to
        one value per frame.

    Raises:
        ValueError: an unknown metric, shapes that differ or are not those of clips, floats outside [0, 1], an image of
            another size, or latents that are not finite; before anything is measured.
    """
    chosen = _chosen(metrics)
    frames = _both("frames", reference, other, NOT_DECODED)
    latents = _both("latents", reference_latents, other_latents, "latents were not kept")
    begun = image_reason if image is None else _both("frames", image, other, NOT_DECODED)
    if not isinstance(frames, str):
        check_frames(*frames)
    if not isinstance(latents, str):
        check_latents(*latents)
    if not isinstance(begun, str):
        check_frames(begun[0][None], begun[1][:1])
    groups = ((ON_FRAMES, frames), (ON_FIRST_FRAME, begun), (ON_LATENTS, latents))
    measures = {name: (measure, arrays) for group, arrays in groups for name, measure in group.items()}
    values: dict[str, Any] = {}
    single: dict[str, list[float | None]] = {}
    for name in chosen:
        score = _score(*measures[name])
        values[name], values[f"{name}_reason"] = score.value, score.reason
        if score.frames is not None:
            single[name] = score.frames
    return {**values, "per_frame": single} if per_frame else values


def metric_names() -> tuple[str, ...]:
    """Names of all metrics, in the order of results."""
    return (*ON_FRAMES, *ON_FIRST_FRAME, *ON_LATENTS)


def _chosen(metrics: Iterable[str] | None) -> list[str]:
    known = metric_names()
    chosen = known if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [repr(name) for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}; choose {', '.join(known)}")
    return [name for name in known if name in chosen]


def _both(what: str, reference: NDArray[Any] | None, other: NDArray[Any] | None, absent: str) -> Arrays | str:
    """Both arrays, or why there are not two."""
    if reference is None and other is None:
        return absent
    if reference is None or other is None:
        return f"only the {'other clip' if reference is None else 'reference'} has {what}"
    return np.asarray(reference), np.asarray(other)


def _score(measure: Measure, arrays: Arrays | str) -> Score:
    return Score.missing(arrays) if isinstance(arrays, str) else measure(*arrays)
