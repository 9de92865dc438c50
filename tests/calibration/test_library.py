from __future__ import annotations

import pytest
import torch

from vidaccel.calibration import library
from vidaccel.calibration.grid import Grid
from vidaccel.calibration.library import Ladder, ladder, libraries
from vidaccel.layout import TokenLayout
from vidaccel.patterns import density_of, plan_of
from vidaccel.planning.rows import keys_of_rows
from vidaccel.schedule import Schedule
from vidaccel.site import Site

LAYOUT = TokenLayout(5, 6, 8, text_after=7)


@pytest.mark.parametrize("name", libraries())
def test_candidates_differ_and_none_is_dense(name: str) -> None:
    made = library.library(name)
    patterns = ladder(made, LAYOUT, 8)
    assert bool(patterns) == bool(made.makers)
    maps = [(each.order, each.blocks(LAYOUT, 8).numpy().tobytes()) for each in patterns]
    assert len(set(maps)) == len(maps)
    densities = [density_of(each, LAYOUT, 8) for each in patterns]
    assert all(density < 1 for density in densities)
    if name in ("all", "geometry"):
        assert min(densities) == 0 and all(any(abs(each - level) < 0.05 for each in densities)
                                           for level in library.LEVELS)  # fmt: skip


def test_every_sized_pattern_is_tried() -> None:
    known = library.makers()
    assert {"band", "temporal", "radial", "window", "multi_diagonal", "grid", "tile", "log_spaced"} <= set(known)
    for make in known.values():
        thin, wide = (density_of(make(share), LAYOUT, 8) for share in (0.0, 1.0))
        assert thin < 1 and wide == 1


def test_unknown_library() -> None:
    with pytest.raises(ValueError, match="unknown library 'sparse'; choose all, geometry"):
        library.library("sparse")


def test_rows_of_the_ladder_are_those_of_plans() -> None:
    patterns = ladder(library.library("geometry"), LAYOUT, 8)
    made, rows = Ladder(patterns, LAYOUT, 8), torch.tensor([0, 17, 18, 101, 239])
    for name, places in made.groups.items():
        kept = made.kept(name, rows)
        for of_pattern, at in zip(kept, places, strict=True):
            expected = keys_of_rows(plan_of([patterns[at]], LAYOUT, 8), rows)[0]
            order = library.places_of(LAYOUT, name)
            assert torch.equal(of_pattern[:, order // 8], expected)


def grid(steps: int = 20, dense: float = 0.25, layout: TokenLayout = LAYOUT) -> Grid:
    site = Site(0, 2, 0, steps, "cond", "transformer", layout)
    return Grid.of(site, Schedule(dense, 0, 0).resolve(steps, 2), None)


def test_steps_are_sampled_inside_their_bands() -> None:
    assert grid().bands(1) == (1.0,) and grid().bands(3) == (0.5, 0.75, 1.0)
    assert grid().sampled(1, 3) == {7: 0, 12: 0, 17: 0}
    assert grid().sampled(3, 2) == {6: 0, 8: 0, 11: 1, 13: 1, 16: 2, 18: 2}
    assert grid(4).sampled(1, 100) == {1: 0, 2: 0, 3: 0}
    assert Grid.from_dict(grid().to_dict()) == grid()


def test_too_few_steps() -> None:
    with pytest.raises(ValueError, match="4 bands are too many for 3 sparse steps"):
        grid(4).sampled(4, 1)
    with pytest.raises(ValueError, match="a run of 4 steps has none that the schedule leaves sparse"):
        grid(4, dense=1.0)


def test_cells_hold_whole_blocks() -> None:
    # 1,521 tokens in blocks of 16: a cell each; 75,600 in blocks of 128: 7 of 590.6 each.
    assert grid(layout=TokenLayout(13, 9, 13)).side == 95
    assert grid(layout=TokenLayout(21, 45, 80)).side == 84
    assert grid(layout=TokenLayout(1, 2, 2)).side == 1
