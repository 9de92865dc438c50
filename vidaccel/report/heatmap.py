"""What each layer did in each step: computed at a density, reused or predicted, as a picture and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidaccel.report.svg import COLOURS, inline_svg, style

KINDS = {"D": "dense", "S": "sparse", "R": "reused", "P": "predicted", "M": "different in each guidance pass"}
"""The letters of a record's map."""
PASSED = {"R": "reused", "P": "predicted", "M": "mixed"}
"""Those that are no density, and their colours."""
Colour = NDArray[np.float64]


def heatmap_svg(values: Mapping[str, Any], name: str, title: str) -> Markup:
    """The map of a record, for a page.

    Args:
        values: ``layers`` and ``steps``, each with ``kinds``, a letter for each layer, and ``density``, for each layer
            the mean video density of what was computed, null where nothing was.
        name: a word that no other figure of the page has.
        title: whose map it is.

    Raises:
        ValueError: a map that is not of this form.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    kinds, density = _checked(values)
    layers, steps = kinds.shape
    passed = [letter for letter in PASSED if (kinds == letter).any()]
    with style():
        figure = Figure(figsize=(5.4, min(1.45 + 0.17 * layers, 5)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="step", ylabel="layer")
        axes.imshow(_colours(kinds, density), aspect="auto", interpolation="none", extent=(0.5, steps + 0.5,
                    layers - 0.5, -0.5))  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), _ramp()), ax=axes, pad=0.02, fraction=0.05, ticks=[0, 1])
        bar.set_label("density", labelpad=-6)
        if passed:
            handles = [Patch(color=COLOURS[PASSED[letter]], label=KINDS[letter]) for letter in passed]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(passed), fontsize=9)
    return inline_svg(figure, name, f"Step by layer map of {title}. {told(values)}")


def told(values: Mapping[str, Any]) -> str:
    """The map in a sentence.

    Raises:
        ValueError: as `heatmap_svg`.
    """
    kinds, density = _checked(values)
    sparse = density[kinds == "S"]
    mean = f" at a mean density of {np.nanmean(sparse):.2f}" if np.isfinite(sparse).any() else ""
    counts = {letter: int((kinds == letter).sum()) for letter in KINDS}
    parts = [f"{count:,} {KINDS[letter]}{mean if letter == 'S' else ''}" for letter, count in counts.items() if count]
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    return f"Of {kinds.size:,} places, layers by steps, {listed}."


def _checked(values: Mapping[str, Any]) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Letters and densities ``[layers, steps]``, NaN for none."""
    try:
        steps = values["steps"]
        kinds = np.array([list(step["kinds"]) for step in steps])
        density = np.array([step["density"] for step in steps], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a record's map has steps with kinds and densities of every layer: {error!r}") from error
    if kinds.ndim != 2 or kinds.shape != density.shape or kinds.shape[1:] != (values.get("layers"),):
        raise ValueError(f"a record's map of {values.get('layers')} layers has kinds {list(kinds.shape)} and densities "
                         f"{list(density.shape)}, not steps by layers")
    unknown = set(np.unique(kinds)) - set(KINDS)
    if unknown or (density < 0).any() or (density > 1).any():
        raise ValueError(f"a record's map has letters of {', '.join(KINDS)} and densities of 0 to 1, not "
                         f"{', '.join(sorted(unknown)) or 'others'}")
    return kinds.T, density.T


def _colours(kinds: NDArray[np.str_], density: NDArray[np.float64]) -> Colour:
    from matplotlib.colors import to_rgb

    picture: Colour = np.asarray(_ramp()(np.nan_to_num(density)))[..., :3]
    for letter, colour in PASSED.items():
        picture[kinds == letter] = to_rgb(COLOURS[colour])
    return picture


def _ramp() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("density", ["#e2ecf5", "#79a9d1", "#123f68"])
