"""Clips on disk: H.264 in MP4, playable in browsers, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PANEL = 400
"""Width in pixels that a panel of a side-by-side clip reaches by whole-number enlargement."""
INK, PAPER = (235, 235, 235), (24, 24, 24)


def to_uint8(frames: Any) -> NDArray[np.uint8]:
    """Frames ``[frames, height, width, 3]`` as uint8; floats are in [0, 1] and are rounded.

    Raises:
        ValueError: another shape or dtype, or no frame.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a clip is [frames, height, width, 3], got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        return np.ascontiguousarray(frames)
    if not np.issubdtype(frames.dtype, np.floating) or not np.isfinite(frames).all():
        raise ValueError(f"a clip is uint8 or finite floating point, got {frames.dtype}")
    return np.asarray((frames.clip(0, 1) * 255).round(), dtype=np.uint8)


def write_mp4(frames: Any, path: str | os.PathLike[str], fps: float) -> Path:
    """Write a clip as H.264 (yuv420p); an odd side gains one repeated row or column, which yuv420p needs.

    Args:
        frames: as for `to_uint8`.
        path: ending in ".mp4"; replaced as a whole once the clip is complete.
        fps: frames per second, above 0.

    Raises:
        ValueError: frames, ending or rate that no clip has.
        OSError: the folder cannot be written.
    """
    import imageio.v2 as imageio

    path, clip = Path(path), to_uint8(frames)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"video file {str(path)!r} does not end in .mp4")
    if not 0 < fps < 1000:
        raise ValueError(f"fps {fps} is not a number of frames per second between 0 and 1000")
    clip = np.pad(clip, ((0, 0), (0, clip.shape[1] % 2), (0, clip.shape[2] % 2), (0, 0)), mode="edge")
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.mp4")
    options = ["-crf", "16", "-preset", "medium", "-movflags", "+faststart"]
    try:
        # Opened first: ffmpeg would report a folder that cannot be written as a broken pipe.
        part.touch()
        with imageio.get_writer(part, format="FFMPEG", mode="I", fps=fps, codec="libx264", pixelformat="yuv420p",
                                quality=None, macro_block_size=2, output_params=options) as writer:
            for frame in clip:
                writer.append_data(frame)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def side_by_side(left: Any, right: Any, labels: tuple[str, str] = ("dense", "fast")) -> NDArray[np.uint8]:
    """Two clips next to each other under a band with their labels.

    Args:
        left, right: clips of one shape, as for `to_uint8`; small ones are enlarged by a whole number, pixel by pixel.
        labels: what the band says above each.

    Returns:
        uint8 ``[frames, band + scale * height, 2 * scale * width + gap, 3]``, both sides even.

    Raises:
        ValueError: clips of different shapes.
    """
    left, right = to_uint8(left), to_uint8(right)
    if left.shape != right.shape:
        raise ValueError(f"clips side by side have one shape, not {list(left.shape)} and {list(right.shape)}")
    scale = -(-PANEL // left.shape[2])
    panels = [clip.repeat(scale, axis=1).repeat(scale, axis=2) for clip in (left, right)]
    frames, height, width, _ = panels[0].shape
    gap, band = 8, max(28, width // 14 // 2 * 2)
    out = np.empty((frames, band + height + height % 2, 2 * width + gap, 3), dtype=np.uint8)
    out[:] = PAPER
    out[:, :band] = _band((2 * width + gap, band), labels, width + gap)
    out[:, band : band + height, :width], out[:, band : band + height, width + gap :] = panels
    return out


def _band(size: tuple[int, int], labels: tuple[str, str], second: int) -> NDArray[np.uint8]:
    """The header ``[height, width, 3]``: one label from the left edge, one from column `second`."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=int(size[1] * 0.55))
    for label, start in zip(labels, (0, second), strict=True):
        draw.text((start + 10, size[1] // 2), label, fill=INK, font=font, anchor="lm")
    return np.asarray(image)
