"""Every pattern against its definition token by token, on small odd grids with text before, after and none."""

from __future__ import annotations

import json

import pytest
import torch

from tests.patterns.definitions import PAIRS, RULES, blocks_of, pairs_of
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.patterns import PATTERNS, at_density, density_of, mask_of, pattern
from vidaccel.patterns.bands import Band
from vidaccel.patterns.cells import Cells
from vidaccel.patterns.compose import AtLeast, Union
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.grid import Grid
from vidaccel.patterns.multidiagonal import MultiDiagonal
from vidaccel.patterns.radial import Radial
from vidaccel.patterns.simple import Dense, Skip
from vidaccel.patterns.sink import Sink
from vidaccel.patterns.slashes import LogSpaced, VerticalSlash
from vidaccel.patterns.stripes import Stripes
from vidaccel.patterns.temporal import Temporal
from vidaccel.patterns.tile import Tile
from vidaccel.patterns.window import Window

ELSEWHERE = {"neighborhood"}
"""Patterns whose definition is in a test of their own."""


def some(rows, columns, seed=0, share=0.2):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share


def learned(grid, axes, density, seed=0, unit="tokens"):
    """A decay without structure: no two blocks have equal weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.rand(size, size, generator=generator, dtype=torch.float64) ** 4 for size in grid]
    return Decay.of(weights, axes, density, unit)


EXAMPLES = [
    Dense(), Skip(),
    Band(0.0), Band(0.13), Band(0.1, "HWF"), Band(0.06, "WFH"), Band(0.05, sink=0.3), Band(0.02, "FWH", sink=0.01),
    Window(0.0, 0.0), Window(0.4, 0.3), Window(0.4, 1.0), Window(1.0, 0.2, 0.25), Window(0.25, 1.0, 0.5),
    Temporal(), Temporal(0.34, 0.15), Temporal(0.0, 1.0), Temporal(1.0, 0.0),
    MultiDiagonal(0.0), MultiDiagonal(0.2), MultiDiagonal(0.3, 0.25), MultiDiagonal(1.0, 0.0),
    Sink(0.0), Sink(0.2), Sink(0.01, 0.4), Sink(0.3, axes="FWH"),
    Tile(0.0), Tile(0.4), Tile(0.01, 0.5), Tile(0.0, 0.4),
    Grid(), Grid(2.0, "row", 0.1), Grid(1.0, "frame"), Grid(0.4, "frame", 0.2, 0.2), Grid(0.5, "row", 0.0, 0.01),
    Grid(99.0, "frame", 0.1, 0.5),
    Stripes.of(some(3, 4)), Stripes.of(some(9, 5, 1, 0.1), 0.1), Stripes.of(some(1, 1, share=0.0)),
    VerticalSlash((), ()), VerticalSlash((0.0, 0.31, 1.0), ()), VerticalSlash((0.5,), (0.0, 0.2, -0.61), 0.02),
    VerticalSlash((), (1.0, -1.0, 0.4)),
    LogSpaced(0.0), LogSpaced(0.1), LogSpaced(0.02, 0.1),
    Radial(0.0), Radial(0.6, 0.4, 0.5, 8), Radial(0.0, 0.0, 0.0, 16), Radial(3.0, 1.0, 1.0),
    Cells.of(some(6, 6)), Cells.of(some(5, 5, 2), "HWF"), Cells.of(some(1, 1), "WHF"), Cells.of(some(128, 128), "FWH"),
    learned((5, 3, 7), "FHW", 0.3), learned((4, 9, 13), "HWF", 0.4, 1), learned((1, 2, 1), "WFH", 0.2, 2),
    learned((13, 6, 9), "HFW", 0.25, 3), learned((2, 4, 3), "FWH", 0.0, unit="frame"),
    learned((3, 5, 10), "HWF", 0.3, 4, "frame"), learned((5, 3, 7), "WHF", 1.0),
    Union((Band(0.05), Sink(0.2), Radial(0.2, 0.1, 0.0, 8))), Union((Temporal(), Band(0.1, "HWF"))), Union((Skip(),)),
    AtLeast(Skip(), 0.0), AtLeast(Skip(), 0.3), AtLeast(Window(0.4, 0.3), 0.4),
    AtLeast(Cells.of(some(6, 6), "HWF"), 1.0),
    AtLeast(Union((Sink(0.2), Skip())), 0.35),
]  # fmt: skip
SMALL_DECAY = {"name": "decay", "axes": "FHW", "grid": [1, 2, 1], "weights": "AAAAAAAAAAA=", "density": 0.5}
GRIDS = [(5, 3, 7), (4, 5, 3), (1, 6, 5)]
TEXTS = [(0, 0), (3, 0), (0, 5)]
SCALED = [each for each in PATTERNS.values() if "scaled" in vars(each)]


def test_every_pattern_has_a_definition():
    defined = {cls.name for cls in (*PAIRS, *RULES)}
    assert set(PATTERNS) - ELSEWHERE == defined == {type(each).name for each in EXAMPLES}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("text", TEXTS, ids=["no text", "text before", "text after"])
@pytest.mark.parametrize("each", EXAMPLES, ids=lambda each: str(each)[:60])
def test_blocks_are_the_definition(each, text, grid):
    layout = TokenLayout(*grid, *text)
    for block in (1, 3, 4, 7):
        assert each.blocks(layout, block).tolist() == blocks_of(each, layout, block), block


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("each", [each for each in EXAMPLES if type(each) in PAIRS], ids=lambda each: str(each)[:60])
def test_rectangles_are_the_definition(each, grid):
    layout = TokenLayout(*grid, text_before=2)
    kept = torch.zeros(layout.video_tokens, layout.video_tokens, dtype=torch.bool)
    for piece in each.rectangles(layout):
        for top, bottom, left, right in piece.clamp(min=0).tolist():
            kept[top:bottom, left:right] = True
    assert kept.tolist() == pairs_of(each, layout)


@pytest.mark.parametrize("each", EXAMPLES, ids=lambda each: str(each)[:60])
def test_json_round_trip(each):
    assert pattern(json.loads(json.dumps(each.to_dict()))) == each
    assert hash(each) == hash(pattern(each.to_dict()))


@pytest.mark.parametrize("cls", SCALED, ids=lambda cls: cls.name)
@pytest.mark.parametrize("grid, block", [((5, 3, 7), 4), ((9, 12, 20), 16), ((1, 6, 5), 3)], ids=str)
def test_density_rises_from_thin_to_dense(cls, grid, block):
    layout = TokenLayout(*grid, text_after=3)
    found = [density_of(cls.scaled(step / 40), layout, block) for step in range(41)]
    assert found == sorted(found) and found[-1] == 1
    if grid == (9, 12, 20):
        # The farther bands of the radial mask are a block wide at least.
        assert found[0] < (0.4 if cls is Radial else 0.2)


@pytest.mark.parametrize("cls", [Dense, Skip, Union, AtLeast], ids=lambda cls: cls.name)
def test_some_patterns_have_no_size(cls):
    with pytest.raises(TypeError, match=f"{cls.name!r} has no size"):
        cls.scaled(0.5)


@pytest.mark.parametrize("cls", SCALED, ids=lambda cls: cls.name)
def test_a_pattern_moves_between_resolutions(cls):
    """Solved for one grid, its density on another is nearly that."""
    small, large = TokenLayout(21, 30, 52), TokenLayout(21, 45, 80)
    # In blocks of the same part of a frame: larger ones reach farther beyond what a pattern keeps.
    found, density = at_density(cls.scaled, small, 32, 0.3)
    assert abs(density - 0.3) < 0.03
    assert abs(density_of(found, large, 72) - density) < 0.03


def test_a_union_keeps_what_its_parts_keep_in_any_order():
    layout = TokenLayout(5, 3, 7, 2, 2)
    parts = (Band(0.03, "hilbert"), Sink(0.2, axes="hilbert"), Cells.of(some(6, 6), "hilbert"))
    together = parts[0].blocks(layout, 4) | parts[1].blocks(layout, 4) | parts[2].blocks(layout, 4)
    assert torch.equal(Union(parts).blocks(layout, 4), together)


@pytest.mark.parametrize("keys", [0.0, 0.1, 0.37, 1.0])
def test_no_row_keeps_less_than_was_asked_for(keys):
    layout = TokenLayout(5, 3, 7, text_after=4)
    mask = mask_of(AtLeast(Skip(), keys), layout, 4)
    mask.validate()
    video = mask.to_dense()[0, : layout.video_tokens, : layout.video_tokens]
    # Two blocks are added at a time.
    assert int(video.sum(1).min()) >= keys * layout.video_tokens
    assert int(video.sum(1).min()) < keys * layout.video_tokens + 8 or keys == 1


@pytest.mark.parametrize("each", EXAMPLES, ids=lambda each: str(each)[:60])
def test_every_video_row_has_a_key(each):
    layout = TokenLayout(5, 3, 7)
    rows = each.blocks(layout, 4).any(1)
    assert bool(rows.all()) != (each in (Skip(), Union((Skip(),)), AtLeast(Skip(), 0.0)))


def test_a_drawing_has_a_line_for_each_tile():
    lines = ["██····", "██····", "████··", "████··", "██··██", "██··██"]
    assert Tile(0.3).draw(TokenLayout(3, 1, 2)).splitlines() == lines


def test_large_grids_need_little_memory():
    """No pattern builds tokens by tokens: a quarter of a million tokens squared would be 64 GiB."""
    layout = TokenLayout(41, 60, 106)
    for each in (Band(0.1), Window(0.2, 0.2, 0.1), Temporal(0.1, 0.1), Grid(), LogSpaced(0.05, 0.01), Radial(0.2)):
        mask = mask_of(each, layout, 128)
        assert isinstance(mask, BlockMask) and 0 < density_of(each, layout, 128) < 0.7


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"name": "band", "width": 1.5}, "width=1.5 is not a fraction from 0 to 1"),
        ({"name": "band", "width": float("nan")}, "not a fraction"),
        ({"name": "band", "width": True}, "not a fraction"),
        ({"name": "band", "width": 0.1, "axes": "FHX"}, "unknown token order 'FHX'"),
        ({"name": "band", "width": 0.1, "axes": "HWF", "sink": 0.1}, "frames slowest"),
        ({"name": "sink", "first": 0.1, "axes": "tile:2x2x2"}, "frames slowest"),
        ({"name": "window", "rows": -0.1, "columns": 0}, "rows=-0.1"),
        ({"name": "temporal", "columns": "1"}, "columns='1'"),
        ({"name": "multi_diagonal", "width": 0.1, "reach": 2}, "reach=2"),
        ({"name": "tile", "references": [0.1]}, "references="),
        ({"name": "grid", "stride": 0}, "stride=0 is not a number above 0"),
        ({"name": "grid", "stride": float("inf")}, "stride=inf"),
        ({"name": "grid", "unit": "column"}, "unit 'column' is not one of row, frame"),
        ({"name": "vertical_slash", "verticals": [2], "slashes": []}, "verticals=2"),
        ({"name": "vertical_slash", "verticals": [], "slashes": [0.0] * 1025}, "at most 1024"),
        ({"name": "vertical_slash", "verticals": 0.5, "slashes": []}, "verticals are a list"),
        ({"name": "log_spaced", "window": None}, "window=None"),
        ({"name": "radial", "decay": -1}, "decay=-1"),
        ({"name": "radial", "decay": 1, "split": 0}, "split=0"),
        ({"name": "stripes", "frames": 65, "rows": 1, "cells": ""}, "frames=65 is not a whole number from 1 to 64"),
        ({"name": "stripes", "frames": 3, "rows": 3, "cells": "ff"}, "2 bytes as hex"),
        ({"name": "stripes", "frames": 3, "rows": 3, "cells": "ff40"}, "the rest zeros"),
        ({"name": "stripes", "frames": 2, "rows": 4, "cells": "zz"}, "1 bytes as hex"),
        ({"name": "stripes", "frames": 2, "rows": 4, "cells": "FF"}, "1 bytes as hex"),
        ({"name": "cells", "axes": "FHW", "size": 129, "cells": ""}, "size=129"),
        ({"name": "cells", "axes": "FHW", "size": 3, "cells": "/4A"}, "2 bytes as base64"),
        ({"name": "cells", "axes": "FHW", "size": 3, "cells": "/8A="}, "the rest zeros"),
        ({"name": "cells", "axes": "FHW", "size": 3, "cells": 3}, "2 bytes as base64"),
        ({"name": "union", "parts": []}, "1 to 16 parts, not 0"),
        ({"name": "union", "parts": [{"name": "dense"}] * 17}, "1 to 16 parts, not 17"),
        ({"name": "union", "parts": [3]}, "list of patterns"),
        ({"name": "union", "parts": [{"name": "temporal"}, {"name": "dense"}]}, "one token order, not in FHW and HWF"),
        ({"name": "at_least", "part": {"name": "none"}, "keys": 0.1}, "unknown pattern 'none'"),
        ({"name": "at_least", "part": 3, "keys": 0.1}, "part=3 is not a pattern"),
        (SMALL_DECAY | {"weights": "AAAA"}, "weights of a grid of 1x2x1 are 8 bytes as base64"),
        (SMALL_DECAY | {"weights": 8}, "weights of a grid of 1x2x1 are 8 bytes"),
        (SMALL_DECAY | {"weights": "AAAAAAAAAA=="}, "weights of a grid of 1x2x1 are 8 bytes"),
        (SMALL_DECAY | {"grid": [1, 2]}, "is not frames, rows and columns"),
        (SMALL_DECAY | {"grid": [1, 2, 5000]}, "grid=5000 is not a whole number from 1 to 4096"),
        (SMALL_DECAY | {"density": 1.5}, "density=1.5"),
        (SMALL_DECAY | {"unit": "pixels"}, "unit='pixels' is neither tokens nor frame"),
        (SMALL_DECAY | {"axes": "up"}, "unknown token order 'up'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_fields_are_refused(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        pattern(values)


def test_hostile_nesting_is_refused():
    nested = {"name": "skip"}
    for _ in range(9):
        nested = {"name": "at_least", "part": nested, "keys": 0.1}
    with pytest.raises(ValueError, match="nested more than 8 deep"):
        pattern(nested)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested more than 8 deep"):
        pattern({"name": "band", "width": deep})


def test_maps_that_are_not_square_are_no_cells():
    with pytest.raises(ValueError, match=r"\[size, size\], got \[2, 3\]"):
        Cells.of(some(2, 3))
