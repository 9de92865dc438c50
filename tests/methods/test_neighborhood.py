"""Neighbourhood attention: candidates of equal density, which head gets which window, presets, runs in pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.online import PIPES, check_choice, check_nothing_waits, check_pipeline, near_on, site_of, states
from vidaccel.eval.settings import Choice
from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.candidates import Sample, candidates
from vidaccel.methods.neighborhood import PRESETS, NeighborhoodAttention, windows_of
from vidaccel.patterns import density_of, orders
from vidaccel.patterns.neighborhood import TOKEN, Neighborhood

TEXTS = [TokenLayout(5, 6, 7), TokenLayout(5, 6, 7, text_before=9), TokenLayout(5, 6, 7, text_after=11)]
CPU = torch.device("cpu")


def windows(layout: TokenLayout, **options: Any) -> list[Neighborhood]:
    found = windows_of(NeighborhoodAttention(**options), layout)[0]
    assert all(isinstance(each, Neighborhood) for each in found)
    return [each for each in found if isinstance(each, Neighborhood)]


@pytest.mark.parametrize(("grid", "block"), [("13x9x13", 16), ("21x30x52", 128)])
@pytest.mark.parametrize("density", [0.5, 0.3, 0.2, 0.1])
def test_candidates_are_of_one_density_and_many_shapes(grid: str, block: int, density: float) -> None:
    layout = TokenLayout.parse(grid)
    found = windows(layout, density=density, block=block)
    reached = [density_of(each, layout, block) / density for each in found]
    assert min(reached) >= 0.9 and max(reached) <= 1.05
    assert len({(each.tile, each.window(layout)) for each in found}) == len(found) >= 4
    lengths = sorted(each.window(layout)[0] / each.tiles(layout)[0] for each in found)
    assert lengths[-1] >= 2 * lengths[0]
    assert {each.tile for each in found} == {TOKEN, orders.compact_tile(layout, block)}


def test_density_that_no_window_has_is_noted() -> None:
    layout = TokenLayout(3, 4, 8)
    found, notes = windows_of(NeighborhoodAttention(density=0.05, block=64), layout)
    assert len(found) == 1
    assert notes[0].startswith("neighborhood: density 0.05 was asked for; the nearest on 3x4x8 is 0.")
    assert windows_of(NeighborhoodAttention(density=0.25), TokenLayout(21, 30, 52))[1] == ()


@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_each_head_gets_the_window_of_its_shape(layout: TokenLayout) -> None:
    """A head of near frames gets fewer frames than one of near rows and columns, in either batch row."""
    wide, long = near_on(layout, 0), near_on(layout, 1) + near_on(layout, 2)
    query = torch.stack([torch.stack([wide, long], 1), torch.stack([long, wide], 1)])
    state: dict[str, Any] = {}
    options = {"density": 0.5, "block": 16, "tile": "1x1x1"}
    NeighborhoodAttention(**options).plan(query * 4, query, torch.randn_like(query), site_of(layout), state)
    frames = [each.frames for each in windows(layout, **options)]
    a, b, c, d = (frames[index] for index in state["index"])
    assert a == d < b == c


@pytest.mark.parametrize("tile", [None, "1x1x1", "2x3x3"])
@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_choice_is_that_of_whole_masks(layout: TokenLayout, tile: str | None) -> None:
    options: dict[str, Any] = {"density": 0.6, "block": 16, "rows": 40, "tile": tile}
    found = tuple(windows(layout, **options))
    assert len(found) > 1
    plans = candidates(found, layout, 16, CPU).plans
    check_choice(NeighborhoodAttention(**options), layout, plans, Sample(40))


def test_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    check_nothing_waits(NeighborhoodAttention(density=0.6, block=16, refresh=1), TEXTS[2], monkeypatch)


def test_choice_is_made_once_a_run_unless_asked() -> None:
    layout = TEXTS[0]
    for refresh, same in ((None, True), (2, False)):
        chosen, state = NeighborhoodAttention(density=0.6, block=16, refresh=refresh), {}  # type: Any, dict[str, Any]
        index, reused = [], []
        for step in range(3):
            chosen.plan(*states(layout, heads=24, seed=step), site_of(layout, step), state)
            index.append(state["index"])
            reused.append(chosen.reused(state))
        assert reused == [False, True, same]
        assert torch.equal(index[0], index[1]) and torch.equal(index[0], index[2]) == same


@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_one_window_for_all_heads(layout: TokenLayout) -> None:
    """Every query keeps its window exactly with blocks of nothing but it: here, all rows and columns."""
    state: dict[str, Any] = {}
    method = NeighborhoodAttention(window="3x9x9", block=16)
    plan = method.plan(*states(layout), site_of(layout), state)
    assert plan.mask is not None and plan.mask.patterns == 1 and plan.query_order is None and state == {}
    assert method.reused(state), "nothing was chosen"
    assert windows(layout, window="3x9x9") == [Neighborhood(0.6, 1.0, 1.0)]
    assert plan.density(layout).video_density == pytest.approx(density_of(Neighborhood(0.6, 1, 1), layout, 16))


def test_one_window_in_tiles() -> None:
    layout = TokenLayout(30, 48, 80)
    (found,) = windows(layout, window="30x24x24", tile="6x8x8")
    assert found.tile == (6, 8, 8) and found.window(layout) == (5, 3, 3)
    plan = NeighborhoodAttention(window="30x24x24", tile="6x8x8").plan(*states(layout, heads=1), site_of(layout), {})
    assert plan.density(layout).video_density == pytest.approx(0.15) and plan.query_order is not None


@pytest.mark.parametrize(
    ("preset", "grid", "expected"),
    [("sta-wan", (18, 48, 80), [(3, 1, 10), (1, 5, 7), (3, 3, 3), (1, 6, 5), (1, 3, 10), (3, 6, 1)]),
     ("sta-hunyuanvideo", (30, 48, 80), [(5, 3, 3), (1, 6, 10), (3, 3, 5), (5, 1, 10), (5, 6, 1)])],
)  # fmt: skip
def test_presets_have_the_published_windows(preset: str, grid: tuple[int, int, int], expected: list[Any]) -> None:
    layout, whole = TokenLayout(*grid), PRESETS[preset].whole
    found = windows(layout, preset=preset)
    assert [each.window(layout) for each in found] == expected and found[0].tiles(layout) == whole
    for each, window in zip(found, expected, strict=True):
        share = window[0] * window[1] * window[2] / (whole[0] * whole[1] * whole[2])
        assert density_of(each, layout, 128) == pytest.approx(share)


def test_presets_on_other_grids_and_their_schedules() -> None:
    """Any grid works: last tiles are smaller, and windows that come to be equal are one."""
    layout, state = TokenLayout(5, 9, 17), {}  # type: tuple[TokenLayout, dict[str, Any]]
    plan = NeighborhoodAttention(preset="sta-wan").plan(*states(layout), site_of(layout), state)
    assert plan.mask is not None
    plan.mask.validate()
    assert 1 < len(windows(layout, preset="sta-wan")) < 6
    for name, first in (("sta-wan", 12), ("sta-hunyuanvideo", 15)):
        schedule = NeighborhoodAttention(preset=name).schedule()
        assert schedule is not None
        assert (schedule.resolve(50, 40).first_step, schedule.resolve(50, 40).first_layer) == (first, 0)
    assert NeighborhoodAttention().schedule() is None


def test_presets_choose_at_every_step() -> None:
    layout, state = TokenLayout(12, 16, 24), {}  # type: tuple[TokenLayout, dict[str, Any]]
    for step in range(2):
        NeighborhoodAttention(preset="sta-wan").plan(*states(layout), site_of(layout, step), state)
        assert state["step"] == step


def test_preset_of_the_family() -> None:
    assert method("neighborhood", "wan", preset="sta") == NeighborhoodAttention(preset="sta-wan")
    with pytest.raises(ValueError, match="unknown preset 'sta-cogvideox' of neighborhood; choose sta-wan, sta-hunyuan"):
        method("neighborhood", "cogvideox", preset="sta")


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("neighborhood", family)


def test_density_axis_of_an_eval() -> None:
    assert Choice.of({"name": "neighborhood", "tile": "4x2x2"}).crosses()
    for option in ({"preset": "sta-wan"}, {"window": "3x5x5"}, {"density": 0.2}):
        assert not Choice.of({"name": "neighborhood", **option}).crosses()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"density": 1.5}, "density 1.5 is outside"), ({"block": 8}, "power of two"), ({"rows": 0}, "rows 0 is not"),
     ({"refresh": 0}, "refresh 0 is not"), ({"window": "3x3"}, "window '3x3' is not FRAMESxROWSxCOLUMNS"),
     ({"window": (3, 3, 3)}, "such as '5x9x13'"), ({"tile": "0x8x8"}, "tile '0x8x8' is not"),
     ({"preset": "sliding"}, "unknown preset 'sliding'"),
     ({"density": 0.2, "window": "3x3x3"}, "one of density, window, preset, not density and window"),
     ({"preset": "sta", "tile": "6x8x8"}, "has its own tile")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        method("neighborhood", "wan", **options)
