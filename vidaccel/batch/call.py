"""What goes to a pipeline's call: arguments that it has, images as it takes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from vidaccel.eval.first_frame import identify_image, load_image

IMAGES = ("image", "last_image")
"""Arguments that are pictures; until a clip is made, they stand as paths."""


def call_kwargs(pipe: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that go to the pipeline's call.

    Raises:
        ValueError: one that this pipeline does not take, or an image that it needs.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    values = {name: item for name, item in values.items() if name != "fps"}
    unknown = [name for name in values if name not in parameters]
    if unknown:
        raise ValueError(f"{type(pipe).__name__} takes no {unknown[0]}")
    image = parameters.get("image")
    if image is not None and image.default is inspect.Parameter.empty and "image" not in values:
        raise ValueError(f"{type(pipe).__name__} needs a first frame: --image PATH")
    return values


def loaded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None, with pictures in place of their paths.

    Raises:
        ValueError: one that cannot be read.
    """
    return {name: load_image(str(item)) if name in IMAGES else item for name, item in values.items()
            if item is not None}  # fmt: skip


def identified(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with digests of pictures in place of their paths, JSON-ready.

    Raises:
        ValueError: a picture that cannot be read.
    """
    return {name: _digest(str(item)) if name in IMAGES else item for name, item in values.items()}


@functools.lru_cache(4096)
def _digest(path: str) -> str:
    """Of an image that many clips may share."""
    return identify_image(path)
