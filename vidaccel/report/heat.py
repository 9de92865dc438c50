"""Square block maps as small pictures of a few colours, for pages: a cell of the record is a pixel."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.report.html import data_uri

MAP = ("#ffffff", "#9cc3e4", "#2f6ea8", "#0c1c30")
MASK = ("#eef2f6", "#1d4f7c")
"""From nothing to all; light at first, so that they print, and the same on a dark page."""


def heat_uri(cells: bytes, width: int, colours: Sequence[str]) -> str:
    """A PNG of so many pixels a row as the address of itself; byte 0 has the first of the colours, 255 the last."""
    from PIL import Image

    picture = Image.frombytes("P", (width, len(cells) // width), cells)
    picture.putpalette(_palette(colours).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def ramp_uri(colours: Sequence[str]) -> str:
    """All colours from byte 0 to 255, as a line of 256 pixels."""
    return heat_uri(bytes(range(256)), 256, colours)


def square(encoded: Any, side: int) -> bytes:
    """The bytes of a square map in base64.

    Raises:
        ValueError: others.
    """
    try:
        cells = base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"a map is not base64: {error}") from error
    if len(cells) != side * side:
        raise ValueError(f"a map of {side} x {side} cells has {len(cells)} bytes")
    return cells


def _palette(colours: Sequence[str]) -> NDArray[np.uint8]:
    """256 colours ``[256, 3]``, straight from each to the next."""
    stops = np.array([[int(each[at : at + 2], 16) for at in (1, 3, 5)] for each in colours], dtype=np.float64)
    place = np.linspace(0, len(stops) - 1, 256)
    channels = [np.interp(place, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    palette: NDArray[np.uint8] = np.stack(channels, 1).round().astype(np.uint8)
    return palette
