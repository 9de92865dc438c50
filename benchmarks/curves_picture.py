"""The pictures of benchmarks/curves.py: small SVGs with a ground of their own, readable on light and dark pages."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from curves import FAMILIES, FEWER, ORACLE, RANDOM, Curve, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONTS = ["DejaVu Sans", "Arial", "sans-serif"]
INK, FAINT = "#1c2733", "#8793a0"
OWN = ("#1d4f7c", "#c2571a")
"""Of the first and the second curve of a page's own."""
DASHES = {RANDOM: (0, (1, 2)), ORACLE: (0, (4, 2)), FEWER: (0, (4, 1, 1, 1))}
INDENT = re.compile(rb"^\s+", re.MULTILINE)
NAMES = {RANDOM: "random blocks", ORACLE: "oracle", FEWER: "dense, fewer steps"}


def picture(measured: Measured) -> bytes:
    """A panel for each family."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    families = [family for family in FAMILIES if any(curve.family == family for curve in measured.curves)]
    # Text stays text, so that pictures are small; equal curves are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": measured.name, "font.sans-serif": FONTS}):
        figure = Figure(figsize=(2.9 * len(families) + 0.4, 2.9), facecolor="white", layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
        for family, axes in zip(families, panels, strict=True):
            _panel(axes, [curve for curve in measured.curves if curve.family == family])
            axes.set_title(FAMILIES[family], fontsize=9, color=INK)
            axes.set_xlabel(measured.axis, fontsize=8, color=INK)
        panels[0].set_ylabel("latents, dB", fontsize=8, color=INK)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Description": measured.digest()})
    return INDENT.sub(b"", file.getvalue())


def _panel(axes: Axes, curves: list[Curve]) -> None:
    own = [curve.label for curve in curves if not curve.beside]
    for curve in curves:
        x, y = zip(*sorted((share, snr) for _, share, snr in curve.points), strict=True)
        name = NAMES[curve.label] if curve.beside else curve.label.replace("+", " with ")
        if curve.beside:
            axes.plot(x, y, color=FAINT, linestyle=DASHES[curve.label], linewidth=1.2, label=name)
        else:
            axes.plot(x, y, color=OWN[own.index(curve.label)], marker="o", markersize=3.5, linewidth=1.6, label=name)
    axes.locator_params(nbins=4)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.6)
    axes.tick_params(labelsize=7, colors=INK, length=0)
    axes.spines[:].set_visible(False)
