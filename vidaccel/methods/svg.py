"""Sparse VideoGen: each head is spatial or temporal, told apart online from sampled queries (arXiv 2502.01776).

Implemented from the paper and from the behaviour of its published code, whose settings the presets have. Heads are told
apart by the masks that will run; the published code does it by masks of a fixed width, as the presets do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.methods.candidates import KEPT_CHOICE, Sample, candidates, picked_by_head
from vidaccel.methods.checks import check_block, check_count, check_density, note_of_density
from vidaccel.patterns import Pattern, at_density
from vidaccel.patterns.bands import Band
from vidaccel.plan import AttentionPlan
from vidaccel.schedule import Schedule
from vidaccel.site import Site

SPATIAL, TEMPORAL = "FHW", "HWF"
"""The orders in which spatial and temporal heads are bands."""
BLOCK = 128
ROWS = 64
DENSITY = 0.25
KEPT = 64


@dataclass(frozen=True)
class Preset:
    """The published settings for one model.

    Args:
        density: kept pairs over all pairs, text included: what the band's width is calculated from.
        dense_steps: share of the steps, at the start.
        dense_layers: layers, at the start.
        judged: frames of the bands that heads are told apart by.
        sink: spatial heads keep the first frame's keys, and widths are rounded up to blocks, not down.
        limit: queries are sampled from the first so many tokens; None is all of them.
        rows: sampled queries.
    """

    density: float
    dense_steps: float
    dense_layers: int
    judged: float = 1.5
    sink: bool = False
    limit: int | None = 10_000
    rows: int = ROWS


def _wan(dense_steps: float) -> Preset:
    return Preset(0.3, dense_steps, dense_layers=2, judged=2.0, sink=True)


PRESETS = {
    "wan2.1-14b-t2v-720p": _wan(0.2),
    "wan2.1-14b-i2v-720p": _wan(0.35),
    "wan2.1-14b-i2v-480p": _wan(0.2),
    "hunyuanvideo-720p": Preset(0.25, 0.1, dense_layers=2),
    "hunyuanvideo-480p": Preset(0.2, 0.04, dense_layers=0),
    "cosmos-704p": Preset(0.25, 0.3, dense_layers=2),
    "cogvideox1.5-i2v": Preset(0.25, 0.2, dense_layers=2, limit=None, rows=32),
}
"""By model and size. Dense layers are those whose index is under 3 % of 40 (Wan), 60 (HunyuanVideo) and 36 (Cosmos)
layers, and under 2.5 % of CogVideoX's 42."""


@dataclass(frozen=True)
class Svg(Method):
    """Spatial heads attend to nearby frames, temporal ones to the same place in all frames; each head is told apart.

    At a sparse step both masks are measured against dense attention on a few queries, and each head of each batch row
    takes the nearer one. Text is kept whole.

    Args:
        density: video density of both masks, in (0, 1]; by default the family's, else 0.25.
        block: tile size in tokens of queries and keys.
        rows: queries that heads are told apart by; by default the family's, else 64.
        sink: spatial heads keep all keys of the first frame; by default on Wan only.
        refresh: steps that a head's sort is kept for; 1 looks at every step.
        preset: one of `PRESETS`, the published settings for a model: density and width of the bands, what heads are
            told apart by, dense steps and layers. It leaves `refresh` alone to be chosen.

    Raises:
        ValueError: a value out of range, or options beside a preset that has its own.
    """

    name: ClassVar[str] = "svg"
    paper: ClassVar[str] = "Sparse VideoGen, arXiv 2502.01776"
    alternatives: ClassVar[tuple[str, ...]] = ("density", "preset")

    density: float | None = None
    block: int = BLOCK
    rows: int | None = None
    sink: bool | None = None
    refresh: int = 1
    preset: str | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        check_block(self.block)
        check_count("rows", self.rows)
        check_count("refresh", self.refresh)
        if self.preset is None:
            return
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r} of svg; choose {', '.join(PRESETS)}")
        given = [name for name in ("density", "rows", "sink") if getattr(self, name) is not None]
        given += ["block"] if self.block != BLOCK else []
        if given:
            raise ValueError(f"preset {self.preset!r} has its own {given[0]}, not {getattr(self, given[0])}")

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, Any]:
        wan = family == "wan"
        return {"density": 0.3 if wan else DENSITY, "sink": wan, "rows": 32 if family == "cogvideox" else ROWS}

    @classmethod
    def for_family(cls, family: str, **options: Any) -> Method:
        if options.get("preset") is not None:
            options = dict.fromkeys(cls.family_defaults(family)) | options
        return super().for_family(family, **options)

    def schedule(self) -> Schedule | None:
        if self.preset is None:
            return None
        preset = PRESETS[self.preset]
        return Schedule(preset.dense_steps, 0, preset.dense_layers)

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        assert query is not None and key is not None and value is not None
        layout, bands = site.layout, bands_of(self, site.layout)
        run, judged = (candidates(each, layout, self.block, query.device) for each in (bands.run, bands.judged))
        preset = PRESETS[self.preset] if self.preset else None
        sample = Sample(self.rows or (preset.rows if preset else ROWS), preset.limit if preset else None, self.refresh)
        return run.picked(sample.chosen(judged.plans, query, key, value, site, state), bands.notes)

    def heads_have(self, site: Site, state: dict[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
        return picked_by_head(bands_of(self, site.layout).run, state)

    def reused(self, state: dict[str, Any]) -> bool:
        return bool(state.get(KEPT_CHOICE, True))


@dataclass(frozen=True)
class Bands:
    """The spatial and the temporal band of a grid: those that run, and those that heads are told apart by."""

    run: tuple[Pattern, ...]
    judged: tuple[Pattern, ...]
    notes: tuple[str, ...] = ()


@functools.lru_cache(KEPT)
def bands_of(method: Svg, layout: TokenLayout) -> Bands:
    """The bands of a method on a grid; solved once.

    Raises:
        ValueError: a preset whose density the grid's text alone takes up.
    """
    if method.preset is not None:
        return _published(PRESETS[method.preset], layout)
    density = DENSITY if method.density is None else method.density
    sink = 1 / layout.frames if method.sink else 0.0
    makes: tuple[Callable[[float], Pattern], ...] = (
        lambda share: Band(share, SPATIAL, sink), lambda share: Band(share, TEMPORAL),
    )  # fmt: skip
    found = [at_density(make, layout, method.block, density) for make in makes]
    patterns = tuple(pattern for pattern, _ in found)
    furthest = max((reached for _, reached in found), key=lambda reached: abs(reached - density))
    return Bands(patterns, patterns, note_of_density("svg", density, furthest, layout))


def _published(preset: Preset, layout: TokenLayout) -> Bands:
    """The published code's bands, in whole blocks."""
    text = layout.text_before + layout.text_after
    width = band_width(layout.tokens, text, preset.density) / BLOCK
    # Wan keeps distances up to the width, the others those under it.
    half = math.ceil(width) * BLOCK if preset.sink else math.floor(width) * BLOCK - 1
    judged = (int(preset.judged * layout.frame_tokens) // BLOCK - 1) * BLOCK
    sink = 1 / layout.frames if preset.sink else 0.0
    return Bands(_pair(half, sink, layout), _pair(judged, sink, layout))


def _pair(half: int, sink: float, layout: TokenLayout) -> tuple[Pattern, ...]:
    """A spatial and a temporal band that reach `half` tokens far."""
    # Half a token more than asked for comes back whole when the fraction is made tokens again.
    width = min(1.0, (max(0, half) + 0.5) / layout.video_tokens)
    return Band(width, SPATIAL, sink), Band(width, TEMPORAL)


def band_width(tokens: int, text: int, density: float) -> float:
    """Half-width in tokens of a band along the diagonal that holds, with all pairs of text, a share of all pairs.

    Args:
        tokens: of the sequence, text included.
        text: of those.
        density: of all pairs, at most 1.

    Raises:
        ValueError: a density above 1, or one that the pairs of text alone exceed.
    """
    rest = density - 2 * text / tokens
    if not (rest >= 0 and density <= 1):
        raise ValueError(
            f"density {density} is not from {2 * text / tokens:.4f}, which the pairs of {text} text tokens among "
            f"{tokens} take, to 1"
        )
    return tokens * (1 - math.sqrt(1 - rest))
