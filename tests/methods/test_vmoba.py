"""VMoBA's chunks: boxes by layer, means, the best of all tiles of a head, token-exact ranges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods import brute
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.vmoba import Vmoba, box_sizes

BLOCK = 16


def _boxes(layout: TokenLayout, box: tuple[int, int, int]) -> list[list[int]]:
    """The tokens of each box, in raster order of boxes and inside."""
    found: dict[tuple[int, ...], list[int]] = {}
    for token in range(layout.video_tokens):
        frame, at = divmod(token, layout.frame_tokens)
        place = (frame, *divmod(at, layout.width))
        number = tuple(each // side for each, side in zip(place, box, strict=True))
        found.setdefault(number, []).append(token + layout.video_start)
    return [found[number] for number in sorted(found)]


def _likeness(query: Tensor, key: Tensor, tiles: list[list[int]], boxes: list[list[int]]) -> Tensor:
    """Products of means of tiles and boxes of one head, from 0 to 1."""
    means = [[states[group].double().mean(0) for group in groups] for states, groups in ((query, tiles), (key, boxes))]
    products = torch.tensor([[float(q @ k) for k in means[1]] for q in means[0]])
    return (products - products.min()) / (products.max() - products.min())


def _kept(chosen: Vmoba, alike: Tensor, tiles: list[list[int]], boxes: list[list[int]]) -> set[tuple[int, int]]:
    """Pairs of a tile and a box, over the whole head: its own first, then the most alike."""
    own = {(i, j) for i, tile in enumerate(tiles) for j, box in enumerate(boxes) if set(tile) & set(box)}
    every = [(i, j) for i in range(len(tiles)) for j in range(len(boxes))]
    every.sort(key=lambda at: (at not in own, -float(alike[at])))
    # What is left of the video shares a tile with text and keeps everything.
    kept, spent, held = set(own), (_video(boxes) - _video(tiles)) * _video(boxes), 0.0
    for i, j in every:
        spent += len(tiles[i]) * len(boxes[j])
        if chosen.density is not None and spent <= float(chosen.density) * _video(boxes) ** 2:  # type: ignore[arg-type]
            kept.add((i, j))
        if chosen.top_p is not None and held < chosen.top_p * float(alike.sum()):
            kept.add((i, j))
        held += float(alike[i, j])
    return kept


def _video(groups: list[list[int]]) -> int:
    return sum(map(len, groups))


@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("options", [{"density": 0.4}, {"top_p": 0.4, "spatial": (4, 3), "both": (3, 2, 5)}], ids=str)
@pytest.mark.parametrize("layout", brute.LAYOUTS, ids=str)
def test_plan_is_that_of_the_definition(layout: TokenLayout, options: dict[str, Any], layer: int) -> None:
    chosen, (query, key, value) = Vmoba(**options, block=BLOCK), states(layout, batch=2)
    plan = chosen.plan(query, key, value, site_of(layout, layer=layer), {})
    assert plan.mask is not None and plan.query_order is not None and plan.mask.patterns == 6
    plan.mask.validate()
    boxes = _boxes(layout, chosen.box(layer, layout))
    text = [token for token in range(layout.tokens) if not layout.video_start <= token < layout.video_end]
    sequence = [token for box in boxes for token in box] + text
    assert plan.query_order.tolist() == [sequence] and torch.equal(plan.query_order, plan.key_order)  # type: ignore[arg-type]
    tiles = [sequence[at : at + BLOCK] for at in range(0, len(sequence), BLOCK)]
    video = [tile for tile in tiles if not set(tile) & set(text)]
    mask = plan.mask.to_dense()
    for lane in range(6):
        q, k = query[lane // 3, :, lane % 3], key[lane // 3, :, lane % 3]
        kept = _kept(chosen, _likeness(q, k, video, boxes), video, boxes)
        for i, tile in enumerate(tiles):
            expected = set(text).union(*(box for j, box in enumerate(boxes) if i >= len(video) or (i, j) in kept))
            for row in range(i * BLOCK, i * BLOCK + len(tile)):
                found = {sequence[at] for at in mask[lane, row].nonzero().flatten().tolist()}
                assert found == expected
    if chosen.density is not None:
        own = sum(len(tile) * len(box) for tile in video for box in boxes if set(tile) & set(box))
        forced = own / _video(boxes) ** 2 + 1 - _video(video) / _video(boxes)
        assert plan.density(layout).video_density <= max(float(chosen.density), forced) + 1e-9  # type: ignore[arg-type]
    for each in (query, key, value):
        each[:, layout.video_end :] = 1e3
    again = chosen.plan(query, key, value, site_of(layout, layer=layer), {})
    assert again.mask is not None and torch.equal(again.mask.to_dense(), mask)


def test_layers_take_turns() -> None:
    layout, chosen = TokenLayout(21, 45, 80), Vmoba()
    assert [chosen.box(layer, layout) for layer in range(4)] == [(1, 45, 80), (21, 2, 4), (8, 4, 4), (1, 45, 80)]
    other = Vmoba(temporal=3, spatial=(5, 7), both=(2, 3, 4))
    assert [other.box(layer, layout) for layer in range(3)] == [(3, 45, 80), (21, 5, 7), (2, 3, 4)]
    assert Vmoba().box(1, TokenLayout(1, 3, 5)) == (1, 3, 5)


def test_boxes_at_the_far_ends_are_what_is_left() -> None:
    layout = TokenLayout(3, 5, 7)
    for box in ((1, 5, 7), (2, 2, 3), (9, 9, 9)):
        assert box_sizes(layout, box).tolist() == [len(each) for each in _boxes(layout, box)]


@pytest.mark.parametrize("options", [{"density": 0.3}, {"top_p": 0.3}], ids=str)
def test_nothing_waits(options: dict[str, Any]) -> None:
    for layout in brute.LAYOUTS[1:]:
        brute.check_nothing_waits(Vmoba(**options, block=BLOCK), layout)


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("vmoba", family)


def test_preset() -> None:
    chosen = method("vmoba", "wan", preset="wan2.1-1.3b-448p")
    assert isinstance(chosen, Vmoba) and chosen.density is None and chosen.top_p == 0.25
    layout = TokenLayout(20, 28, 52)
    assert [chosen.box(layer, layout) for layer in range(3)] == [(2, 28, 52), (20, 4, 13), (4, 4, 13)]
    schedule = chosen.schedule()
    assert schedule is not None and schedule.resolve(50, 30).first_step == 12 and Vmoba().schedule() is None
    assert Vmoba(spatial=[4, 13]) == Vmoba(spatial=(4, 13))  # type: ignore[arg-type]


def test_bad_options_are_refused() -> None:
    brute.refused(Vmoba, r"spatial is 2 whole numbers .* got \(1, 2, 3\)", spatial=(1, 2, 3))
    brute.refused(Vmoba, "both is 3 whole numbers", both=(1, 0, 3))
    brute.refused(Vmoba, r"temporal is 1 whole numbers .* got \[0\]", temporal=0)
    brute.refused(Vmoba, "has its own temporal, not 3", preset="wan2.1-1.3b-448p", temporal=3)
