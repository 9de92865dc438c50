"""The first frame that an image-to-video run was given, as its pipeline prepared it, and where settings name it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vidaccel.eval.identity import file_digest
from vidaccel.eval.stand_in import stand_in

IMAGE = "image"
"""The pipelines' argument."""
DIGEST = "sha256:"


def identify_image(path: str) -> str:
    """The digest of an image file, which stands for it in what a result depends on.

    Raises:
        ValueError: it cannot be read, or is no image.
    """
    load_image(path)
    return DIGEST + file_digest(Path(path).expanduser())


def load_image(path: str) -> Any:
    """An image file as RGB.

    Raises:
        ValueError: it cannot be read, or is no image.
    """
    from PIL import Image

    try:
        return Image.open(Path(path).expanduser()).convert("RGB")
    except OSError as error:
        raise ValueError(f"image {path!r} cannot be read: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def prepared(pipe: Any) -> Iterator[list[Tensor]]:
    """What the pipeline's video processor makes of images in the block: ``[1, 3, height, width]`` in [-1, 1].

    So the image is cut and resized as each pipeline does it. Empty for one that prepares images otherwise.
    """
    seen: list[Tensor] = []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def preprocess(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            seen.append(made)
            return made

        return preprocess

    processor = getattr(pipe, "video_processor", None)
    with contextlib.nullcontext() if processor is None else stand_in(processor, "preprocess", wrap):
        yield seen


def first_of(seen: Sequence[Tensor], frames: NDArray[Any]) -> NDArray[np.float32] | None:
    """The first of prepared images as a frame ``[height, width, 3]`` in [0, 1]; None if it is not one of the clip's
    size."""
    if not seen or tuple(seen[0].shape) != (1, 3, *frames.shape[1:3]):
        return None
    image = seen[0][0].float().cpu().permute(1, 2, 0).numpy()
    return np.asarray((image + 1) / 2, dtype=np.float32).clip(0, 1)
