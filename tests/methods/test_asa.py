"""The mask of Video-BLADE: sampled attention, largest weight of each pair of blocks, by definition and in pipelines."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods import brute
from tests.methods.brute import Cut, Map
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import asa
from vidaccel.methods.asa import Asa, drawn
from vidaccel.patterns import orders


def _cut(method: Asa, layout: TokenLayout) -> Cut:
    order = orders.sequence(layout, method.order)
    return Cut.of(layout, brute.natural(layout) if order is None else order.tolist(), method.block)


def _maxima(method: Asa, layout: TokenLayout, cut: Cut, query: Tensor, key: Tensor) -> Map:
    """The definition in loops: softmax over all samples, the largest of each pair of tiles, rows that sum to 1."""
    tokens = [token for tile in cut.tiles for token in tile]
    places = drawn(site_of(layout), method.block, method.sampled, torch.device("cpu")).tolist()
    picked = [[] for _ in cut.tiles]  # type: list[list[int]]
    for place in places:
        if place < len(tokens) and layout.video_start <= tokens[place] < layout.video_end:
            picked[place // method.block].append(tokens[place])
    every = [token for tile in picked for token in tile]
    rows = []
    for tile in picked:
        best = [0.0] * len(picked)
        for at in tile:
            weight = {each: math.exp(float(query[at] @ key[each]) * query.shape[1] ** -0.5) for each in every}
            total = sum(weight.values())
            for column, others in enumerate(picked):
                best[column] = max([best[column], *(weight[each] / total for each in others)])
        whole = sum(best)
        rows.append([each / whole if whole else 0.0 for each in best])
    return rows


@pytest.mark.parametrize("options", [{"density": 0.3}, {"top_p": 0.6, "order": "FHW"}], ids=str)
@pytest.mark.parametrize("layout", brute.LAYOUTS, ids=str)
def test_plan_is_that_of_the_definition(layout: TokenLayout, options: dict[str, Any]) -> None:
    method = Asa(**options, block=16, samples=3)
    cut = _cut(method, layout)
    brute.check_plan(method, layout, cut, lambda query, key: _maxima(method, layout, cut, query, key))


def test_groups_of_tiles_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = brute.LAYOUTS[1]
    method, tensors = Asa(density=0.3, block=16, samples=4), states(layout, batch=2)
    whole = method.plan(*tensors, site_of(layout), {})
    monkeypatch.setattr(asa, "WORKING_BYTES", 1)
    assert torch.equal(brute.blocks_of(whole), brute.blocks_of(method.plan(*tensors, site_of(layout), {})))


def test_samples_are_one_of_each_stretch_and_differ_between_steps_and_layers() -> None:
    layout, cpu = TokenLayout(5, 6, 8), torch.device("cpu")
    picked = drawn(site_of(layout), 16, 4, cpu)
    assert torch.equal(picked // 4, torch.arange(60))
    assert len({tuple((picked % 4)[at : at + 4].tolist()) for at in range(0, 60, 4)}) > 5
    others = [drawn(site_of(layout, step, layer), 16, 4, cpu) for step, layer in ((10, 1), (11, 0), (10, 0))]
    assert [torch.equal(picked, other) for other in others] == [False, False, True]
    assert torch.equal(drawn(site_of(layout), 16, 16, cpu), torch.arange(240))


def test_random_state_is_left_alone() -> None:
    layout = brute.LAYOUTS[0]
    before = torch.random.get_rng_state()
    tensors = states(layout)
    Asa(density=0.3, block=16).plan(*tensors, site_of(layout), {})
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"density": 0.3}, {"top_p": 0.6}], ids=str)
def test_nothing_waits(options: dict[str, Any]) -> None:
    for layout in brute.LAYOUTS[1:]:
        brute.check_nothing_waits(Asa(**options, block=16, samples=4), layout)


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("asa", family)


def test_an_eighth_is_sampled() -> None:
    assert [Asa(block=block).sampled for block in (16, 64, 128)] == [4, 8, 16] and Asa(samples=5).sampled == 5


def test_bad_options_are_refused() -> None:
    brute.refused(Asa, "samples 17 is not from 1 to the 16 tokens", samples=17, block=16)
    brute.refused(Asa, "samples 0 is not", samples=0)
    brute.refused(Asa, "unknown token order 'gilbert'", order="gilbert")
