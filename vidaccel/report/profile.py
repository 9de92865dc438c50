"""Pictures of a calibration: for each layer, where each head's attention lies and what its pattern keeps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidaccel.report.attention import GAMMA

COLUMNS = 4
_KEPT = "#1d4f7c"


def layer_picture(heads: Sequence[tuple[Sequence[str], Any, Any]], title: str) -> bytes:
    """One layer as a PNG: each head's attention map in grey, with the cells that its pattern keeps in blue.

    Args:
        heads: of each its lines of text, the map ``[side, side]``, and the share that is kept of each of its cells.
        title: above all.

    Raises:
        ValueError: no head.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    if not heads:
        raise ValueError("there is no head to draw")
    columns = min(COLUMNS, len(heads))
    rows = -(-len(heads) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.7 * rows + 0.4), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    tint = LinearSegmentedColormap.from_list("kept", [(0.11, 0.31, 0.49, 0.0), (0.11, 0.31, 0.49, 0.35)])
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(heads) :]:
        axis.set_visible(False)
    for axis, (words, mass, kept) in zip(axes, heads, strict=False):
        grey, share = np.asarray(mass, np.float64), np.asarray(kept, np.float64)
        axis.imshow((grey / max(grey.max(), 1e-30)) ** GAMMA, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axis.imshow(share, cmap=tint, vmin=0, vmax=1, interpolation="nearest")
        if 0 < (share >= 0.5).sum() < share.size:
            axis.contour(share, levels=[0.5], colors=[_KEPT], linewidths=0.5)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title("\n".join(words), fontsize=7, loc="left")
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
