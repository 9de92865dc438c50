"""Pictures of attention maps: one cell for each layer and head."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

GAMMA = 0.4
"""Exponent of the grey scale: attention is so uneven that a linear one would show the diagonal alone."""


def attention_picture(
    maps: Mapping[int, Any], title: str = "", notes: Mapping[int, Sequence[str]] | None = None
) -> bytes:
    """All layers' maps of one step as a PNG, a row for each layer and a column for each head.

    Args:
        maps: by layer, ``[heads, query blocks, key blocks]``.
        notes: by layer, a word for each head, shown above its map.

    Raises:
        ValueError: no map.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not maps:
        raise ValueError("there is no attention map to draw")
    pictures: dict[int, NDArray[np.float64]] = {layer: np.asarray(maps[layer], np.float64) for layer in sorted(maps)}
    heads = max(len(picture) for picture in pictures.values())
    figure = Figure(figsize=(1.9 * heads + 0.5, 2.0 * len(pictures) + 0.5), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(pictures), heads, squeeze=False)
    for row, (layer, picture) in zip(axes, pictures.items(), strict=True):
        for head, axis in enumerate(row):
            axis.set_xticks([])
            axis.set_yticks([])
            if head >= len(picture):
                axis.set_visible(False)
                continue
            axis.imshow((picture[head] / picture[head].max()) ** GAMMA, cmap="Greys", vmin=0, vmax=1,
                        interpolation="nearest")  # fmt: skip
            word = f" {notes[layer][head]}" if notes and layer in notes else ""
            axis.set_title(f"layer {layer}, head {head}{word}", fontsize=7)
    if title:
        figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
