"""The pictures of docs/how-it-works.md: ``python docs/pictures.py`` draws them from vidaccel's own masks and one run.

The run is of the Wan miniature, half a minute on a core; all else is geometry and counted work.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vidaccel import Site, TokenLayout
from vidaccel.methods import method
from vidaccel.patterns import Pattern, at_density, plan_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.neighborhood import Neighborhood
from vidaccel.plan import AttentionPlan
from vidaccel.report.patterns import plan_maps

IMAGES = Path(__file__).parent / "images"
CLIP = TokenLayout.parse("7x12x16")
BLOCK = 16
QUERY = (3, 6, 8)
"""Frame, row and column of the query whose keys are shown."""
DENSITY = 0.3
PALE, KEPT, MARK, WARM, INK = "#e8edf2", "#2f6ea5", "#c2571a", "#e3a35c", "#1c2733"
SITE = Site(0, 1, 0, None, "cond", "transformer", CLIP)


def kept_keys(plan: AttentionPlan, token: int) -> NDArray[np.bool_]:
    """Which tokens a query token attends to, by the plan's first pattern, in the natural order."""
    mask = plan.mask
    assert mask is not None
    orders = (plan.query_order, plan.key_order)
    query, key = (list(range(mask.keys)) if order is None else order[0].tolist() for order in orders)
    tile = query.index(token) // mask.query_block
    kept = np.zeros(mask.keys, bool)
    for start, end in mask.ranges[mask.offsets[0, tile] : mask.offsets[0, tile + 1]].tolist():
        kept[key[start:end]] = True
    return kept


def temporal() -> Band:
    """Equal places of all frames and what is near them."""
    band, _ = at_density(Band.scaled, CLIP, BLOCK, DENSITY)
    return Band(band.width, axes="HWF")


def choices() -> dict[str, AttentionPlan]:
    """Four masks of one density."""
    band, _ = at_density(Band.scaled, CLIP, BLOCK, DENSITY)
    window = Neighborhood(1, 4 / 12, 12 / 16, tile=(1, 4, 4))
    patterns: dict[str, Pattern] = {"spatial head of svg": band, "temporal head of svg": temporal(),
                                    "window of neighborhood": window}  # fmt: skip
    plans = {name: plan_of([each], CLIP, BLOCK) for name, each in patterns.items()}
    return {"radial": method("radial", "wan", density=DENSITY, block=BLOCK).plan(None, None, None, SITE, {}), **plans}


def keys_picture() -> Figure:
    """Of one query: the keys that it keeps in each frame, and beside it the map of all blocks."""
    plans = choices()
    figure = Figure(figsize=(10.4, 1.2 * len(plans)), dpi=80, layout="constrained")
    rows = figure.subplots(len(plans), CLIP.frames + 1, width_ratios=[*[1.35] * CLIP.frames, 1.2])
    frame, row, column = QUERY
    token = (frame * CLIP.height + row) * CLIP.width + column
    colours = ListedColormap([PALE, KEPT, MARK])
    for line, (axes, (name, plan)) in enumerate(zip(rows, plans.items(), strict=True)):
        kept = kept_keys(plan, token).astype(int)
        kept[token] = 2
        frames = kept.reshape(CLIP.frames, CLIP.height, CLIP.width)
        for at, (axis, picture) in enumerate(zip(axes, frames, strict=False)):
            axis.imshow(picture, cmap=colours, vmin=0, vmax=2, interpolation="nearest")
            axis.set_title(f"frame {at}" if line == 0 else "", fontsize=8, color=INK)
        words = f"{name},\ndensity {plan.density(CLIP).video_density:.2f}"
        axes[0].set_ylabel(words, fontsize=7.5, color=INK, rotation=0, ha="right", va="center")
        axes[-1].imshow(plan_maps(plan)[0][1], cmap=ListedColormap([PALE, KEPT]), interpolation="nearest")
        axes[-1].set_title("all blocks" if line == 0 else "", fontsize=8, color=INK)
        _bare(axes)
    return figure


def order_picture() -> Figure:
    """What a temporal head keeps, as blocks of the natural order and of its own."""
    plan = plan_of([temporal()], CLIP, BLOCK)
    tokens = np.stack([kept_keys(plan, token) for token in range(CLIP.tokens)])
    natural = tokens.reshape(CLIP.tokens // BLOCK, BLOCK, -1, BLOCK).any(axis=(1, 3))
    maps = {"tokens frame by frame": natural, "equal places of all frames side by side": plan_maps(plan)[0][1]}
    figure = Figure(figsize=(6.4, 3.5), dpi=80, layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, blocks) in zip(axes, maps.items(), strict=True):
        axis.imshow(blocks, cmap=ListedColormap([PALE, KEPT]), vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{name}:\n{blocks.mean():.0%} of the blocks computed", fontsize=9, color=INK)
    figure.supxlabel(f"the head needs {tokens.mean():.0%} of the pairs", fontsize=8, color=INK)
    _bare(axes)
    return figure


def run() -> Mapping[str, Any]:
    """The map of a run with sparse attention and a cache."""
    import vidaccel
    from vidaccel.miniature import generation_defaults

    pipe = vidaccel.load_miniature("wan")
    given = {"density": DENSITY, "cache": {"name": "easycache", "threshold": 0.2}, "min_tokens": 0}
    with vidaccel.enable(pipe, "head_profile", profile="miniature:wan", **given) as session:
        pipe("a red circle moves right over stripes", **generation_defaults("wan"))
        found = session.summary().step_map()
    assert found is not None
    return found


def steps_picture(found: Mapping[str, Any]) -> Figure:
    """Steps across, layers down; computed ones with their density."""
    names = {"D": ("dense", KEPT), "S": ("sparse", "#8ab6d9"), "P": ("predicted from computed steps", WARM)}
    figure = Figure(figsize=(8.4, 2.0), dpi=80, layout="constrained")
    axis = figure.subplots()
    kinds = np.array([["DSP".index(kind) for kind in step["kinds"]] for step in found["steps"]]).T
    axis.imshow(kinds, cmap=ListedColormap([colour for _, colour in names.values()]), vmin=0, vmax=2, aspect="auto")
    for step, each in enumerate(found["steps"]):
        for layer, (kind, density) in enumerate(zip(each["kinds"], each["density"], strict=True)):
            if kind == "S":
                axis.text(step, layer, f"{density:.2f}".lstrip("0"), ha="center", va="center", fontsize=6.5, color=INK)
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.set_xticks(range(kinds.shape[1]))
    axis.set_yticks(range(kinds.shape[0]))
    axis.tick_params(labelsize=7, length=0)
    axis.spines[:].set_visible(False)
    handles = [axis.plot([], [], "s", color=colour, label=name)[0] for name, colour in names.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def work(layout: TokenLayout, density: float = 1.0) -> tuple[float, float]:
    """Petaflops of one pass of Wan 14B: its self-attention, and all else."""
    dim, hidden, layers, text = 5120, 13_824, 40, 512
    tokens = layout.tokens
    attention = 4 * tokens**2 * dim * density
    # Queries, keys, values and outputs of self-attention; queries and outputs of cross-attention; the feed-forward.
    linear = 2 * tokens * (6 * dim**2 + 2 * dim * hidden) + 4 * tokens * text * dim
    return layers * attention / 1e15, layers * linear / 1e15


def by_default(layout: TokenLayout) -> float:
    """Video density of `radial` with Wan's defaults."""
    plan = method("radial", "wan").plan(None, None, None, Site(0, 1, 0, None, "", "", layout), {})
    return plan.density(layout).video_density


def work_picture() -> Figure:
    """Counted work of a pass, dense and sparse, at two sizes."""
    figure = Figure(figsize=(7.2, 2.5), dpi=80, layout="constrained")
    axis = figure.subplots()
    clips = {"480p": TokenLayout.parse("21x30x52"), "720p": TokenLayout.parse("21x45x80")}
    bars = [(f"{name}, 81 frames, {layout.tokens:,} tokens, density {density:.2f}", *work(layout, density))
            for name, layout in clips.items() for density in (1.0, by_default(layout))]  # fmt: skip
    labels, attention, rest = zip(*reversed(bars), strict=True)
    axis.barh(labels, rest, color="#b8c4d0", label="all else")
    axis.barh(labels, attention, left=rest, color=KEPT, label="self-attention")
    axis.set_xlabel("counted work of one pass of Wan 14B, PFLOP", fontsize=8)
    axis.tick_params(labelsize=8, length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _bare(axes: Sequence[Any]) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def save(name: str, figure: Figure) -> None:
    """As a PNG of few colours."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    Image.open(buffer).convert("RGB").quantize(64).save(IMAGES / f"how-{name}.png", optimize=True)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    save("keys", keys_picture())
    save("order", order_picture())
    save("work", work_picture())
    save("steps", steps_picture(run()))
