"""PBS-Attn for video: keys by importance, text in its place, blocks by means in that order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods import brute
from tests.methods.brute import Cut, Map
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.candidates import Sample
from vidaccel.methods.permuted_blocks import PermutedBlocks, key_order
from vidaccel.plan import AttentionPlan


def _order(chosen: PermutedBlocks, layout: TokenLayout, query: Tensor, key: Tensor) -> list[int]:
    """Tokens of the keys of a head, by hand."""
    rows = Sample(chosen.rows).draw(site_of(layout), torch.device("cpu"))
    video = list(range(layout.video_start, layout.video_end))
    scores = query[rows].double() @ key[video].double().T * query.shape[1] ** -0.5
    mean = scores.softmax(1).mean(0).tolist()
    segment = 16 * chosen.segment if chosen.segment else len(video)
    found: list[int] = list(range(layout.video_start))
    for first in range(0, len(video), segment):
        found += sorted(video[first : first + segment], key=lambda token: -mean[token - layout.video_start])
    return found + list(range(layout.video_end, layout.tokens))


def _map(layout: TokenLayout, query: Tensor, key: Tensor, order: list[int]) -> Map:
    """Pooled map of tiles of queries in their places and of keys in their order."""
    queries = Cut.of(layout, brute.natural(layout), 16)
    moved = torch.tensor(order)
    return brute.pooled_map(query, key[moved], queries)


@pytest.mark.parametrize(
    "options", [{"density": 0.3, "segment": None}, {"top_p": 0.6}, {"density": 0.3, "segment": 3}], ids=str
)
@pytest.mark.parametrize("layout", brute.LAYOUTS, ids=str)
def test_plan_is_that_of_the_definition(layout: TokenLayout, options: dict[str, Any]) -> None:
    chosen, (query, key, value) = PermutedBlocks(**options, block=16, rows=20), states(layout, batch=2)
    query = query * 2
    plan = chosen.plan(query, key, value, site_of(layout), {})
    orders, maps = [], []
    for lane in range(6):
        q, k = query[lane // 3, :, lane % 3], key[lane // 3, :, lane % 3]
        orders.append(_order(chosen, layout, q, k))
        maps.append(_map(layout, q, k, orders[-1]))
    cut = Cut.of(layout, brute.natural(layout), 16)
    assert plan.query_order is None and plan.key_order is not None and plan.key_order.tolist() == orders
    assert torch.equal(brute.blocks_of(plan), _expected(chosen, maps, cut))
    if chosen.density is not None:
        text = {pair for pair in cut.forced() if set(pair) & cut.text}
        least = sum(cut.video[i] * cut.video[j] for i, j in text) / sum(cut.video) ** 2
        assert plan.density(layout).video_density <= max(0.3, least + 16 / layout.video_tokens) + 1e-9
    for each in (query, key, value):
        each[:, layout.video_end :] = 1e3
    again = chosen.plan(query, key, value, site_of(layout), {})
    assert again.key_order is not None and torch.equal(again.key_order, plan.key_order)
    assert torch.equal(brute.blocks_of(again), brute.blocks_of(plan))


def _expected(chosen: PermutedBlocks, maps: list[Map], cut: Cut) -> Tensor:
    """Text is kept, and the best block of each row."""
    text = {pair for pair in cut.forced() if set(pair) & cut.text}
    if chosen.top_p is not None:
        return torch.stack([brute.by_share(each, chosen.top_p, text) for each in maps])
    kept = []
    for part in (maps[:3], maps[3:]):
        # The best of a row comes before all others: as if it were more than any other.
        best = [[[each + 9 * (each == max(row)) for each in row] for row in one] for one in part]
        first = {(head, i, row.index(max(row))) for head, one in enumerate(best) for i, row in enumerate(one)}
        found = brute.within(best, cut, float(chosen.density), text)  # type: ignore[arg-type]
        assert all(found[at] for at in first)
        kept.append(found)
    return torch.cat(kept)


def test_attention_in_the_order_is_that_of_the_kept_keys() -> None:
    """A key of the plan is the token that its order names: dense attention over the kept tokens, by hand."""
    from vidaccel.kernels import attention

    layout = brute.LAYOUTS[2]
    query, key, value = states(layout, batch=2)
    plan = PermutedBlocks(density=0.3, block=16, rows=20).plan(query, key, value, site_of(layout), {})
    out, _ = attention(query, key, value, plan)
    for lane, kept in enumerate(_tokens(plan)):
        q, k, v = (each[lane // 3, :, lane % 3] for each in (query, key, value))
        weights = (q @ k.T / 4).masked_fill(~kept, float("-inf")).softmax(1)
        torch.testing.assert_close(out[lane // 3, :, lane % 3], weights @ v, atol=1e-5, rtol=1e-5)


def _tokens(plan: AttentionPlan) -> list[Tensor]:
    assert plan.mask is not None and plan.key_order is not None
    kept = plan.mask.to_dense()
    return [torch.zeros_like(each).scatter(1, order.long().expand(len(each), -1), each)
            for each, order in zip(kept, plan.key_order, strict=True)]  # fmt: skip


def test_keys_that_all_attend_to_are_in_one_block() -> None:
    """Sixteen keys spread over the clip hold nearly all attention: sorted, they are one block, and kept by all."""
    layout = TokenLayout(5, 8, 8)
    query, key, value = states(layout, heads=1)
    query[..., 0], key[:, ::20, :, 0] = 8.0, 8.0
    plan = PermutedBlocks(density=0.1, block=16, segment=None).plan(query, key, value, site_of(layout), {})
    assert plan.key_order is not None
    assert set(plan.key_order[0, :16].tolist()) == set(range(0, 320, 20))
    assert brute.blocks_of(plan)[0, :, 0].all()


def test_equal_keys_stay_in_their_order() -> None:
    layout = TokenLayout(2, 3, 4, text_before=2, text_after=3)
    importance = torch.zeros(2, 24)
    importance[1, 20] = 1.0
    order = key_order(importance, layout, None)
    assert order.dtype == torch.int32 and order[0].tolist() == list(range(29))
    assert order[1].tolist() == [0, 1, 22, *range(2, 22), 23, 24, *range(25, 29)][:29]
    assert key_order(importance, layout, 8)[1].tolist() == [*range(18), 22, 18, 19, 20, 21, *range(23, 29)]


def test_random_state_is_left_alone() -> None:
    before, tensors = torch.random.get_rng_state(), states(brute.LAYOUTS[0])
    PermutedBlocks(density=0.3, block=16).plan(*tensors, site_of(brute.LAYOUTS[0]), {})
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"density": 0.3, "segment": 2}, {"top_p": 0.6, "segment": None}], ids=str)
def test_nothing_waits(options: dict[str, Any]) -> None:
    for layout in brute.LAYOUTS[1:]:
        brute.check_nothing_waits(PermutedBlocks(**options, block=16), layout)


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("permuted_blocks", family)


def test_preset() -> None:
    chosen = method("permuted_blocks", "wan", preset="paper")
    assert isinstance(chosen, PermutedBlocks) and chosen.density is None
    assert (chosen.top_p, chosen.segment, chosen.block) == (0.9, 2, 128)
    assert chosen.schedule() is None and PermutedBlocks().density == 0.25


def test_bad_options_are_refused() -> None:
    brute.refused(PermutedBlocks, "segment 0 is not", segment=0)
    brute.refused(PermutedBlocks, "rows 0 is not", rows=0)
    brute.refused(PermutedBlocks, "has its own segment, not 3", preset="paper", segment=3)
