"""Token orders: each a permutation, each against its definition in frames, rows and columns."""

from __future__ import annotations

import itertools

import pytest
import torch

from vidaccel.layout import TokenLayout
from vidaccel.patterns import orders
from vidaccel.patterns.hilbert import curve

GRIDS = [TokenLayout(5, 3, 7), TokenLayout(4, 5, 3), TokenLayout(1, 6, 5), TokenLayout(3, 1, 1), TokenLayout(2, 2, 9)]
NAMES = [*orders.AXES, "hilbert", "tile:2x2x3", "tile:1x1x1", "tile:999x2x2", "phase:1", "phase:4", "phase:1000000",
         "phase:1row", "phase:0.4frame", "phase:0frame"]  # fmt: skip


def places(layout):
    return list(itertools.product(range(layout.frames), range(layout.height), range(layout.width)))


@pytest.mark.parametrize("layout", GRIDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_order_is_a_permutation_of_the_tokens(layout, name):
    with_text = TokenLayout(layout.frames, layout.height, layout.width, 3, 2)
    assert orders.video_order(layout, name).sort().values.tolist() == list(range(layout.video_tokens))
    order = orders.sequence(with_text, name)
    if name == orders.NATURAL:
        assert order is None
        return
    assert order.dtype == torch.int32
    assert (order[: layout.video_tokens] - 3).tolist() == orders.video_order(layout, name).tolist()
    assert order[layout.video_tokens :].tolist() == [0, 1, 2, with_text.tokens - 2, with_text.tokens - 1]


@pytest.mark.parametrize("layout", GRIDS, ids=str)
@pytest.mark.parametrize(
    "name, rank",
    [
        ("HWF", lambda f, h, w, n: (h, w, f)),
        ("WFH", lambda f, h, w, n: (w, f, h)),
        ("tile:2x3x4", lambda f, h, w, n: (f // 2, h // 3, w // 4, f, h, w)),
        ("tile:99x1x2", lambda f, h, w, n: (f // 99, h, w // 2, f, h, w)),
        ("phase:4", lambda f, h, w, n: (n % 4, n)),
        ("phase:1row", lambda f, h, w, n: (w, n)),
        ("phase:1frame", lambda f, h, w, n: (h, w, f)),
    ],
)
def test_orders_sort_by_what_they_are_named_for(layout, name, rank):
    found = places(layout)
    expected = sorted(range(len(found)), key=lambda n: rank(*found[n], n))
    assert orders.video_order(layout, name).tolist() == expected


@pytest.mark.parametrize("height, width", list(itertools.product(range(1, 18), repeat=2)))
def test_hilbert_steps_to_a_neighbour(height, width):
    cells = [(cell // width, cell % width) for cell in curve(height, width).tolist()]
    assert cells[0] == (0, 0) and sorted(cells) == sorted(itertools.product(range(height), range(width)))
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in itertools.pairwise(cells))


@pytest.mark.parametrize("layout", [*GRIDS, TokenLayout(3, 45, 80)], ids=str)
def test_hilbert_goes_on_from_frame_to_frame(layout):
    found = places(layout)
    walk = [found[token] for token in orders.video_order(layout, "hilbert").tolist()]
    assert all(sum(abs(x - y) for x, y in zip(a, b, strict=True)) == 1 for a, b in itertools.pairwise(walk))
    assert [place[0] for place in walk] == sorted(place[0] for place in walk)


def test_hilbert_fills_squares():
    """What the curve is for: a run of tokens spans a small part of the frame, in both directions."""
    cells = curve(48, 80).view(-1, 64)
    rows, columns = cells // 80, cells % 80
    for spread in (rows, columns):
        assert int((spread.amax(1) - spread.amin(1)).max()) < 24


@pytest.mark.parametrize(
    "name", ["", "FHH", "fhw", "tile:", "tile:0x1x1", "tile:2x2", "phase:0", "phase:-1", "phase:x", "phase:1e3row", 3]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="unknown token order .*hilbert, tile:FRAMESxROWSxCOLUMNS, phase:TOKENS"):
        orders.video_order(GRIDS[0], name)


@pytest.mark.parametrize(
    ("grid", "block", "tile"),
    [("21x45x80", 128, (8, 4, 4)), ("13x9x13", 16, (4, 2, 2)), ("2x60x60", 128, (2, 8, 8)), ("1x2x3", 128, (1, 2, 2)),
     ("21x45x80", 64, (4, 4, 4)), ("21x45x80", 100, (4, 4, 4))],
)  # fmt: skip
def test_compact_tile(grid: str, block: int, tile: tuple[int, int, int]) -> None:
    assert orders.compact_tile(TokenLayout.parse(grid), block) == tile
