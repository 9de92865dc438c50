"""NABLA: its map, its share and its window by hand, windows of a density, presets, and runs in pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.brute import LAYOUTS, Cut, blocks_of, check_nothing_waits, check_plan, patches, pooled_map, refused
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.nabla import Nabla, window_of

SIDE = 4
"""Of patches of 16 tokens."""


def windowed(layout: TokenLayout, cut: Cut, window: tuple[int, int, int]) -> set[tuple[int, int]]:
    """Blocks with any pair of tokens whose patches are within a window of patches, moved inside the clip."""
    counts = (layout.frames, -(-layout.height // SIDE), -(-layout.width // SIDE))
    sizes = [min(size, count) for size, count in zip(window, counts, strict=True)]

    def patch(token: int) -> tuple[int, int, int]:
        frame, at = divmod(token - layout.video_start, layout.frame_tokens)
        return frame, at // layout.width // SIDE, at % layout.width // SIDE

    def near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        starts = [min(max(0, x - size // 2), count - size) for x, size, count in zip(a, sizes, counts, strict=True)]
        return all(start <= y < start + size for start, y, size in zip(starts, b, sizes, strict=True))

    video = [{patch(t) for t in tile if layout.video_start <= t < layout.video_end} for tile in cut.tiles]
    every = range(len(video))
    return {(i, j) for i in every for j in every if any(near(a, b) for a in video[i] for b in video[j])}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_density_is_the_definition(layout: TokenLayout) -> None:
    cut = Cut.of(layout, patches(layout, SIDE, SIDE), 16)
    window = windowed(layout, cut, (1, 1, 2))
    chosen = Nabla(density=0.6, block=16, window="1x1x2")
    plan = check_plan(chosen, layout, cut, lambda query, key: pooled_map(query, key, cut), window)
    assert plan.notes == ()
    check_plan(Nabla(density=0.4, block=16, window="none"), layout, cut, lambda query, key: pooled_map(query, key, cut))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_share_is_united_with_the_window(layout: TokenLayout) -> None:
    """Blocks that reach the share without the window, then the window: it uses up none of the share."""
    cut = Cut.of(layout, patches(layout, SIDE, SIDE), 16)
    query, key, value = states(layout, batch=2)
    plan = Nabla(top_p=0.5, block=16, window="3x1x1").plan(query, key, value, site_of(layout), {})
    forced = cut.forced(windowed(layout, cut, (3, 1, 1)))
    for lane, kept in enumerate(blocks_of(plan)):
        scores = pooled_map(query[lane // 3, :, lane % 3], key[lane // 3, :, lane % 3], cut)
        for i, row in enumerate(scores):
            # In rising order: kept where it and all lesser ones hold at least the rest.
            share = {j for j in range(len(row)) if sum(x for x in row if x <= row[j]) > 0.5 * sum(row)}
            expected = share | {j for j in range(len(row)) if (i, j) in forced}
            assert {j for j in range(len(row)) if kept[i, j]} == expected


@pytest.mark.parametrize("grid", ["13x9x13", "21x30x52"])
@pytest.mark.parametrize("density", [0.5, 0.25, 0.1])
def test_default_window_leaves_room(grid: str, density: float) -> None:
    layout, block = TokenLayout.parse(grid), 16 if grid == "13x9x13" else 64
    window = window_of(None, density, layout, block)
    assert window.notes == ()
    kept = Nabla(density=density, block=block)
    assert float(window.blocks.double().mean()) < density * 1.01
    if grid == "13x9x13":
        plan = kept.plan(*states(layout), site_of(layout), {})
        assert plan.density(layout).video_density == pytest.approx(density, abs=0.01)
        assert plan.density(layout).video_density <= density


def test_windows_fit_curves_and_say_what_is_too_large() -> None:
    layout = TokenLayout(5, 9, 13)
    curve = Nabla(density=((0.5, 0.6), (1.0, 0.3)), block=16)
    first = curve._window(site_of(layout, 0))
    assert first is curve._window(site_of(layout, 49)) and first is window_of(None, 0.3, layout, 16)
    large = Nabla(density=0.2, block=16, window="5x3x1")
    plan = large.plan(*states(layout), site_of(layout), {})
    assert len(plan.notes) == 1 and plan.notes[0].startswith("nabla: the window 5x3x1 alone has video density 0.")
    assert plan.notes[0].endswith("the density asked for is 0.2") and plan.density(layout).video_density > 0.2
    # A window as large as the clip is the clip.
    whole = Nabla(top_p=0.01, block=16, window="99x99x99").plan(*states(layout), site_of(layout), {})
    assert whole.density(layout).video_density == 1


def test_presets_and_defaults() -> None:
    assert Nabla() == Nabla(density=0.25, block=64)
    five, six = method("nabla", "wan", preset="kandinsky5"), method("nabla", "wan", preset="kandinsky6-sr")
    assert isinstance(five, Nabla) and isinstance(six, Nabla)
    assert (five.top_p, five.window, five.density) == (0.9, "11x3x3", None)
    assert (six.top_p, six.window) == (0.8, "11x7x7") and five.schedule() is None
    assert torch.equal(
        window_of(None, None, TokenLayout(13, 40, 48), 64).blocks,
        window_of("11x3x3", None, TokenLayout(13, 40, 48), 64).blocks,
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"window": "3x3"}, "FRAMESxROWSxCOLUMNS"), ({"window": "0x1x1"}, "FRAMESxROWSxCOLUMNS"),
     ({"window": 3}, "window 3"), ({"preset": "wan"}, "unknown preset 'wan' of nabla"),
     ({"preset": "kandinsky5", "window": "none"}, "own window"), ({"block": 8}, "at least 16"),
     ({"preset": "kandinsky5", "density": 0.2}, "not both")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    refused(Nabla, complaint, **options)


@pytest.mark.parametrize("options", [{"density": 0.4}, {"top_p": 0.5, "window": "3x1x1"}], ids=str)
def test_nothing_waits(options: dict[str, Any]) -> None:
    check_nothing_waits(Nabla(block=16, **options))
    check_nothing_waits(Nabla(block=16, **options), LAYOUTS[1])


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("nabla", family)
