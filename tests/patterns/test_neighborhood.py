"""Neighbourhood windows against a mask made token by token in (frame, row, column); the counts of sliding tiles."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import at_density, density_of, mask_of, orders, pattern, plan_of
from vidaccel.patterns.neighborhood import Neighborhood, Sizes

GRIDS = [(5, 3, 7), (4, 6, 5), (1, 5, 9), (7, 1, 3)]
TEXTS = [(0, 0), (3, 0), (0, 5)]
WINDOWS = [(0.0, 0.0, 0.0), (0.5, 0.7, 0.4), (0.6, 1.0, 0.3), (0.4, 0.5, 1.0), (0.3, 1.0, 1.0), (1.0, 1.0, 1.0)]
TILES = [(1, 1, 1), (1, 1, 3), (2, 2, 2), (2, 3, 4), (9, 9, 9)]


def keys_on_axis(place: int, length: int, tile: int, share: float) -> range:
    """Tokens on one axis that a token keeps there, written out from the definition."""
    tiles = -(-length // tile)
    window = max(1, int(share * tiles + 0.5))
    start = place // tile - window // 2
    start = min(max(start, 0), tiles - window)
    return range(start * tile, min((start + window) * tile, length))


def by_hand(layout: TokenLayout, each: Neighborhood) -> Tensor:
    """bool ``[video, video]`` in natural order."""
    grid = (layout.frames, layout.height, layout.width)
    shares = (each.frames, each.height, each.width)
    places = list(itertools.product(*map(range, grid)))
    kept = torch.zeros(len(places), len(places), dtype=torch.bool)
    for number, place in enumerate(places):
        axes = [keys_on_axis(*values) for values in zip(place, grid, each.tile, shares, strict=True)]
        for t, h, w in itertools.product(*axes):
            kept[number, (t * layout.height + h) * layout.width + w] = True
    return kept


def drawn(layout: TokenLayout, each: Neighborhood) -> Tensor:
    """What the rectangles hold: bool ``[video, video]`` in natural order."""
    tokens = layout.video_tokens
    kept = torch.zeros(tokens, tokens, dtype=torch.bool)
    for piece in each.rectangles(layout):
        for top, bottom, left, right in piece.tolist():
            kept[top:bottom, left:right] = True
    order = orders.video_order(layout, each.order)
    natural = torch.empty_like(kept)
    natural[order[:, None], order] = kept
    return natural


def blocks_by_hand(layout: TokenLayout, each: Neighborhood, block: int) -> Tensor:
    """Tiles that hold any kept pair, the diagonal, and all tiles with text."""
    token = orders.sequence(layout, each.order)
    token = torch.arange(layout.tokens) if token is None else token.long()
    kept = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
    video = slice(layout.video_start, layout.video_end)
    kept[video, video] = by_hand(layout, each)
    side = -(-layout.tokens // block)
    padded = torch.zeros(side * block, side * block, dtype=torch.bool)
    padded[: layout.tokens, : layout.tokens] = kept[token[:, None], token]
    found = padded.view(side, block, side, block).any(3).any(1)
    return found | torch.eye(side, dtype=torch.bool)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_rectangles_are_the_definition(grid: Sizes, tile: Sizes) -> None:
    layout = TokenLayout(*grid)
    for shares in WINDOWS:
        each = Neighborhood(*shares, tile)
        assert torch.equal(drawn(layout, each), by_hand(layout, each)), shares


@pytest.mark.parametrize("text", TEXTS, ids=["no text", "text before", "text after"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_are_those_with_any_kept_pair(grid: Sizes, text: Sizes) -> None:
    layout = TokenLayout(*grid, *text)
    for shares, tile, block in itertools.product(WINDOWS, TILES, (4, 16)):
        each = Neighborhood(*shares, tile)
        assert torch.equal(each.blocks(layout, block), blocks_by_hand(layout, each, block)), (shares, tile, block)


@pytest.mark.parametrize("window", [(1, 1, 1), (2, 3, 4), (3, 2, 5), (4, 1, 7), (5, 3, 7)])
def test_every_query_keeps_equally_many_keys(window: Sizes) -> None:
    """Odd, even and whole windows, at the edges too."""
    layout = TokenLayout(5, 3, 7)
    each = Neighborhood(*(k / n for k, n in zip(window, (5, 3, 7), strict=True)))
    assert each.window(layout) == window
    counts = drawn(layout, each).sum(1)
    assert (counts == window[0] * window[1] * window[2]).all()
    assert drawn(layout, each).diagonal().all()


@pytest.mark.parametrize(
    ("grid", "window", "density"),
    [((18, 48, 80), (3, 3, 3), 0.15), ((30, 48, 80), (5, 3, 3), 0.15), ((30, 48, 80), (1, 6, 10), 0.2),
     ((18, 48, 80), (3, 1, 10), 1 / 6), ((18, 48, 80), (1, 6, 5), 1 / 6), ((30, 48, 80), (3, 3, 3), 0.09)],
)  # fmt: skip
def test_sliding_tiles_of_the_paper(grid: Sizes, window: Sizes, density: float) -> None:
    layout = TokenLayout(*grid)
    each = Neighborhood(*(k * size / n for k, size, n in zip(window, (6, 8, 8), grid, strict=True)), (6, 8, 8))
    assert each.window(layout) == window
    assert density_of(each, layout, 128) == pytest.approx(density)
    mask = mask_of(each, layout, 128)
    row = mask.row_of_range()
    keys = torch.zeros(mask.tiles, dtype=torch.int64).index_add_(0, row, mask.ranges.long().diff(dim=1).flatten())
    assert (keys == 384 * window[0] * window[1] * window[2]).all()


@pytest.mark.parametrize("tile", [(1, 1, 1), (2, 2, 4), (6, 8, 8)])
def test_what_is_kept_never_shrinks(tile: Sizes) -> None:
    layout, before = TokenLayout(7, 6, 9), None
    for step in range(21):
        kept = drawn(layout, Neighborhood(step / 20, step / 20, step / 20, tile))
        assert before is None or not (before & ~kept).any()
        before = kept
    assert before is not None and before.all()


def test_a_density_is_met_at_a_real_size() -> None:
    layout = TokenLayout(21, 30, 52)
    each, density = at_density(Neighborhood.scaled, layout, 128, 0.25)
    assert density == pytest.approx(0.25, abs=0.02)
    plan = plan_of([each], layout, 128)
    assert plan.mask is not None and plan.density(layout).video_density == pytest.approx(density)


def test_json_round_trip() -> None:
    each = Neighborhood(0.5, 0.25, 1.0, (6, 8, 8))
    assert pattern(json.loads(json.dumps(each.to_dict()))) == each


@pytest.mark.parametrize(
    ("values", "complaint"),
    [((1.5, 1, 1), "frames=1.5 is not a fraction"), ((1, -0.1, 1), "height=-0.1"), ((1, 1, "1"), "width='1'"),
     ((1, 1, 1, (6, 8)), "three whole numbers"), ((1, 1, 1, (0, 8, 8)), "at least 1"),
     ((1, 1, 1, [6, 8, 8]), "three whole numbers"), ((1, 1, 1, (True, 8, 8)), "three whole numbers")],
)  # fmt: skip
def test_bad_values(values: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Neighborhood(*values)
