"""SpargeAttn's choice: its gate and its budgets by hand, presets, and runs in pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods import brute
from tests.methods.brute import LAYOUTS, Cut, blocks_of, check_nothing_waits, natural, patches, pooled_map, refused
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import meansim
from vidaccel.methods.meansim import MeanSim, centred
from vidaccel.planning import pool


def alike(each: Tensor, tile: list[int]) -> float:
    """Mean cosine similarity over all pairs of a tile's tokens ``[tokens, head_dim]``."""
    pairs = torch.cosine_similarity(each[tile, None].double(), each[None, tile].double(), dim=-1)
    return float(pairs.mean())


def rough(layout: TokenLayout, seed: int = 0) -> list[Tensor]:
    """States of which some blocks' tokens are alike: a direction for each stretch of tokens, and noise that differs."""
    query, key, value = states(layout, batch=2, heads=2, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for each in (query, key):
        stretch = torch.arange(layout.tokens) // 16
        bases = torch.randn(2, int(stretch[-1]) + 1, 2, 16, generator=generator)
        loud = torch.rand(2, int(stretch[-1]) + 1, 2, 1, generator=generator) * 2
        each.mul_(loud[:, stretch]).add_(bases[:, stretch])
    return [query, key + 3.0, value]


def gate(query: Tensor, key: Tensor, layout: TokenLayout, cut: Cut, threshold: float) -> tuple[set[int], set[int]]:
    """Tiles of queries and of keys ``[tokens, head_dim]`` that are not alike, keys less their mean over the video."""
    centre = key - key[layout.video_start : layout.video_end].mean(0)
    rows, columns = (
        {at for at, tile in enumerate(cut.tiles) if alike(each, tile) <= threshold} for each in (query, centre)
    )
    return rows, columns


@pytest.mark.parametrize("order", ["FHW", "tile:1x4x4"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_share_is_the_definition(layout: TokenLayout, order: str) -> None:
    """Rows and columns that are not alike whole; among the others a share of a softmax over those keys that are."""
    query, key, value = rough(layout)
    plan = MeanSim(top_p=0.5, block=16, order=order, similarity=0.5).plan(query, key, value, site_of(layout), {})
    cut = Cut.of(layout, natural(layout) if order == "FHW" else patches(layout, 4, 4), 16)
    brute.check_order(plan, cut)
    every, gates = range(len(cut.tiles)), 0
    for lane, kept in enumerate(blocks_of(plan)):
        of_lane = query[lane // 2, :, lane % 2], key[lane // 2, :, lane % 2]
        rows, columns = gate(*of_lane, layout, cut, 0.5)
        gates += len((rows | columns) - cut.text)
        scores = pooled_map(*of_lane, cut, set(every) - cut.text - columns)
        gated = {(i, j) for i in every for j in every if i in rows or j in columns}
        scores = [[0.0 if (i, j) in gated else scores[i][j] for j in every] for i in every]
        assert torch.equal(kept, brute.by_share(scores, 0.5, cut.forced(gated)))
    assert 0 < gates < 4 * len(every)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_density_is_met_with_the_gate_first(layout: TokenLayout) -> None:
    query, key, value = rough(layout)
    cut = Cut.of(layout, natural(layout), 16)
    every = range(len(cut.tiles))
    for density in (0.3, 0.7):
        plan = MeanSim(density=density, block=16, similarity=0.5).plan(query, key, value, site_of(layout), {})
        maps = []
        for lane in range(4):
            of_lane = query[lane // 2, :, lane % 2], key[lane // 2, :, lane % 2]
            rows, columns = gate(*of_lane, layout, cut, 0.5)
            scores = pooled_map(*of_lane, cut)
            maps.append([[scores[i][j] + 2 * (i in rows or j in columns) for j in every] for i in every])
        expected = torch.cat([brute.within(each, cut, density, cut.forced()) for each in (maps[:2], maps[2:])])
        assert torch.equal(blocks_of(plan), expected)
        assert plan.density(layout).video_density <= max(density, 0.5 if cut.text else 0.0)


@pytest.mark.parametrize("options", [{"density": 0.4}, {"top_p": 0.5, "similarity": -1}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_without_gate_is_the_pooled_map(layout: TokenLayout, options: dict[str, Any]) -> None:
    cut = Cut.of(layout, natural(layout), 16)
    brute.check_plan(MeanSim(block=16, **options), layout, cut, lambda query, key: pooled_map(query, key, cut))


def test_padding_after_the_video_changes_nothing() -> None:
    layout = LAYOUTS[3]
    query, key, value = rough(layout)
    chosen = MeanSim(top_p=0.5, block=16, similarity=0.5)
    before = blocks_of(chosen.plan(query, key, value, site_of(layout), {}))
    for each in (query, key, value):
        each[:, layout.video_end :] = 1e3
    assert torch.equal(blocks_of(chosen.plan(query, key, value, site_of(layout), {})), before)


def test_summary_of_centred_keys_by_groups_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = TokenLayout(3, 6, 7, text_before=5)
    _, key, _ = states(layout, batch=2, heads=5)
    expected = pool.summary(key - key[:, 5:].mean(1, keepdim=True), 16)
    monkeypatch.setattr(meansim, "HEADS", 2)
    found = centred(key, layout, 16, None)
    assert torch.allclose(found.mean, expected.mean, atol=1e-6)
    assert torch.allclose(found.similarity, expected.similarity, atol=1e-6)


def test_presets_and_thresholds() -> None:
    assert MeanSim().threshold < 0 and MeanSim().density == 0.25 and MeanSim(top_p=0.9).threshold == 0.6
    assert MeanSim(similarity=0.2).threshold == 0.2 and MeanSim(top_p=0.9, similarity=-0.1).threshold < 0
    for name, settings in {"cdf": (0.98, 0.6), "demo": (0.96, 0.3)}.items():
        chosen = MeanSim(preset=name)
        assert (chosen.top_p, chosen.threshold, chosen.density) == (*settings, None) and chosen.schedule() is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"similarity": 1.5}, "similarity 1.5 is not a number from -1 to 1"),
     ({"similarity": float("nan")}, "from -1 to 1"), ({"similarity": True}, "from -1 to 1"),
     ({"order": "best"}, "unknown token order 'best'"), ({"preset": "wan"}, "unknown preset 'wan' of meansim"),
     ({"preset": "cdf", "similarity": 0.5}, "own similarity")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    refused(MeanSim, complaint, **options)


@pytest.mark.parametrize(
    "options", [{"density": 0.4}, {"density": 0.4, "similarity": 0.5}, {"top_p": 0.5, "order": "hilbert"}], ids=str
)
def test_nothing_waits(options: dict[str, Any]) -> None:
    check_nothing_waits(MeanSim(block=16, **options))
    check_nothing_waits(MeanSim(block=16, **options), LAYOUTS[1])


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("meansim", family, similarity=0.2)
