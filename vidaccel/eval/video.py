"""Clips on disk, whole or not at all: H.264 in MP4, which browsers play, and without loss."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PANEL = 400
"""Width in pixels that a panel of a side-by-side clip reaches by whole-number enlargement."""
INK, PAPER = (235, 235, 235), (24, 24, 24)
LOSSLESS: dict[str, tuple[str, str, list[str]]] = {
    ".mkv": ("ffv1", "bgr0", ["-level", "3", "-slicecrc", "1"]),
    ".mp4": ("libx264rgb", "rgb24", ["-qp", "0", "-preset", "medium", "-movflags", "+faststart"]),
}
"""Codec, layout of pixels and options by the ending of the file. Both keep the bytes of RGB."""
ENDINGS = (".mp4", ".mkv")


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
    path, clip = Path(path), to_uint8(frames)
    _check(path, ".mp4", fps)
    clip = np.pad(clip, ((0, 0), (0, clip.shape[1] % 2), (0, clip.shape[2] % 2), (0, 0)), mode="edge")
    options = ["-crf", "16", "-preset", "medium", "-movflags", "+faststart"]
    return _write(clip, path, fps, "libx264", "yuv420p", options)


def write_lossless(frames: Any, path: str | os.PathLike[str], fps: float) -> Path:
    """Write a clip as RGB without loss: read back, its bytes are those of `to_uint8`.

    Args:
        frames: as for `to_uint8`.
        path: ending in ".mkv" for FFV1, the smaller one, or in ".mp4" for H.264 in RGB, which other tools may need;
            replaced as a whole once the clip is complete.
        fps: frames per second, above 0.

    Raises:
        ValueError: frames, ending or rate that no clip has.
        OSError: the folder cannot be written.
    """
    path, clip = Path(path), to_uint8(frames)
    _check(path, tuple(LOSSLESS), fps)
    return _write(clip, path, fps, *LOSSLESS[path.suffix.lower()])


def write_video(frames: Any, path: str | os.PathLike[str], fps: float) -> Path:
    """Write a clip as its ending says: ".mp4" as `write_mp4`, ".mkv" as `write_lossless`.

    Raises:
        ValueError: frames, ending or rate that no clip has.
        OSError: the folder cannot be written.
    """
    check_video_path(path)
    return (write_mp4 if Path(path).suffix.lower() == ".mp4" else write_lossless)(frames, path, fps)


def check_video_path(path: str | os.PathLike[str]) -> None:
    """Refuse what `write_video` does not write.

    Raises:
        ValueError: another ending.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(f"video file {str(path)!r} does not end in .mp4, or in .mkv, which is without loss")


def read_video(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The frames of a video file, uint8 ``[frames, height, width, 3]``.

    Raises:
        OSError: it cannot be read.
    """
    import imageio.v2 as imageio

    with imageio.get_reader(path, format="FFMPEG") as reader:
        return np.stack(list(reader.iter_data()))


def _check(path: Path, endings: str | tuple[str, ...], fps: float) -> None:
    if not path.name.lower().endswith(endings):
        known = endings if isinstance(endings, str) else " or ".join(endings)
        raise ValueError(f"video file {str(path)!r} does not end in {known}")
    if not 0 < fps < 1000:
        raise ValueError(f"fps {fps} is not a number of frames per second between 0 and 1000")


def _write(clip: NDArray[np.uint8], path: Path, fps: float, codec: str, pixels: str, options: list[str]) -> Path:
    import imageio.v2 as imageio

    with _whole(path) as part, imageio.get_writer(part, format="FFMPEG", mode="I", fps=fps, codec=codec,
                                                  pixelformat=pixels, quality=None, macro_block_size=1,
                                                  output_params=options) as writer:  # fmt: skip
        for frame in clip:
            writer.append_data(frame)
    return path


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, moved there after the block; on an error nothing is left of it."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix.lower()}")
    try:
        # Opened first: ffmpeg would report a folder that cannot be written as a broken pipe.
        part.touch()
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
