"""The Ulysses exchange on plain tensors, and what methods share over heads that are dealt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from tests.parallel.test_split import of
from tests.parallel.world import World
from vidaccel.layout import TokenLayout
from vidaccel.parallel.exchange import Exchange
from vidaccel.planning import select
from vidaccel.planning.kmeans import sample

LAYOUTS = {
    "video alone": TokenLayout(2, 3, 4),
    "text before": TokenLayout(2, 3, 4, text_before=5),
    "text on both sides": TokenLayout(2, 3, 4, text_before=2, text_after=3),
}
DEALS = {
    "slices": ((0, 1), (2, 3)),
    "dealt": ((1, 2), (0, 3)),
    "uneven": ((0, 3, 4), (1, 2)),
}


def states(layout: TokenLayout, heads: int, seed: int) -> Tensor:
    """The whole of a query of two rows."""
    return torch.randn(2, layout.tokens, heads, 8, generator=torch.Generator().manual_seed(seed))


def local(whole: Tensor, layout: TokenLayout, sizes: tuple[int, ...], rank: int) -> Tensor:
    """The tokens of a rank: all text, and its part of the video."""
    start = layout.video_start + sum(sizes[:rank])
    return torch.cat([whole[:, : layout.video_start], whole[:, start : start + sizes[rank]],
                      whole[:, layout.video_end :]], 1)  # fmt: skip


def there_and_back(layout: TokenLayout, deal: Any, ulysses: int = 2, ring: int = 1, anything: bool = False) -> bool:
    """Whether each rank gets the tokens and heads that it should, and its own back."""
    split = of(ulysses, ring, anything)
    exchange, sizes = Exchange(split, layout, deal), split.sizes(layout.video_tokens)
    whole = tuple(states(layout, exchange.heads, seed) for seed in range(3))
    mine = tuple(local(each, layout, sizes, split.every.rank) for each in whole)
    came = exchange.gathered(*mine)
    chunks = tuple(sum(sizes[at : at + ulysses]) for at in range(0, len(sizes), ulysses))
    right = [torch.equal(found, local(each, layout, chunks, split.ring.rank)[:, :, list(deal[split.ulysses.rank])])
             for found, each in zip(came, whole, strict=True)]  # fmt: skip
    back = exchange.scattered(came[1])
    return all(right) and came[0].is_contiguous() and torch.equal(back, mine[1])


@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_tokens_of_some_heads_and_back(name: str, deal: str, world: World) -> None:
    assert world(there_and_back, LAYOUTS[name], DEALS[deal]) == [True, True]


def test_unequal_parts_of_the_video(world: World) -> None:
    assert world(there_and_back, TokenLayout(3, 3, 5, text_after=2), DEALS["uneven"], 2, 1, True) == [True, True]


def test_inside_each_ulysses_group_of_a_ring(four: World) -> None:
    assert four(there_and_back, LAYOUTS["text on both sides"], DEALS["dealt"], 2, 2) == [True] * 4


def misfit() -> None:
    exchange = Exchange(of(2), LAYOUTS["text before"], DEALS["slices"])
    every = states(LAYOUTS["text before"], 4, 0)
    exchange.gathered(every, every, every)


def test_tokens_that_were_not_split_are_an_error(world: World) -> None:
    with pytest.raises(RuntimeError, match=r"of 29 tokens and 4 heads .* which has 17 tokens and 4 heads"):
        world(misfit)


def compiled() -> tuple[int, int, bool]:
    """Graphs of an attention between exchanges, before and after the heads were dealt anew."""
    counter = torch._dynamo.testing.CompileCounter()
    layout, counts, same = LAYOUTS["text before"], [], []

    def around(exchange: Exchange, each: Tensor) -> Tensor:
        query, key, value = exchange.gathered(each, each * 2, each * 3)
        return exchange.scattered(query + key - value)

    traced = torch.compile(around, fullgraph=True, backend=counter)
    split = of(2)
    for deal in (DEALS["slices"], DEALS["dealt"]):
        exchange = Exchange(split, layout, deal)
        each = local(states(layout, 4, 0), layout, (12, 12), split.every.rank)
        same.append(torch.equal(traced(exchange, each), around(exchange, each)))
        counts.append(counter.frame_count)
    return counts[0], counts[1], all(same)


def test_one_graph_whatever_the_deal(world: World) -> None:
    assert world(compiled) == [(1, 1, True)] * 2


def dealt(deal: Any) -> Any:
    return Exchange(of(2), LAYOUTS["video alone"], deal).dealt


def gathered() -> tuple[list[float], list[int], list[float], list[float]]:
    heads = dealt(DEALS["uneven"])
    mine = torch.tensor([float(head) for head in heads.own])
    return (heads.gather(mine[None], 1)[0].tolist(), heads.here(torch.arange(5), 0).tolist(),
            heads.mean(mine.sum()[None]).tolist(), heads.mean(torch.tensor([float(len(mine))])).tolist())  # fmt: skip


def test_values_of_all_heads(world: World) -> None:
    for rank, (every, here, sums, counts) in enumerate(world(gathered)):
        assert every == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert tuple(here) == DEALS["uneven"][rank]
        assert (sums, counts) == ([5.0], [2.5]), "so that the mean over heads is 2"


def budgets() -> list[bool]:
    """Whether each rank chooses for its heads what one process chooses for all."""
    draw, heads, same = torch.Generator().manual_seed(5), dealt(DEALS["uneven"]), []
    for density in (0.02, 0.3, 0.5, 1.0):
        for levels in (3, 1000):
            scores = torch.randint(-levels, levels, (2, 5, 6, 7), generator=draw).float() / 8
            scores[scores == 0] *= -1
            scores[0, 1, 2, 3] = torch.nan
            scores[1, 0, 0] = -torch.inf
            keep = torch.rand(2, 5, 6, 7, generator=draw) < 0.1
            weights = torch.randint(0, 9, (2, 5, 6, 7), generator=draw)
            for given in (weights, None):
                every = select.budgeted_reference(
                    scores.flatten(0, 1), density, weights=None if given is None else given.flatten(0, 1), minimum=1,
                    groups=2, keep=keep.flatten(0, 1),
                ).view(scores.shape)  # fmt: skip
                mine = [None if each is None else heads.here(each, 1).flatten(0, 1) for each in (scores, given, keep)]
                assert mine[0] is not None
                found = select.budgeted(mine[0], density, weights=mine[1], minimum=1, groups=2, keep=mine[2],
                                        heads=heads)  # fmt: skip
                same.append(torch.equal(found, heads.here(every, 1).flatten(0, 1)))
    return same


def test_a_budget_over_dealt_heads_is_that_over_all(world: World) -> None:
    for same in world(budgets):
        assert len(same) == 16 and all(same)


def samples() -> bool:
    heads, points = dealt(DEALS["dealt"]), states(LAYOUTS["video alone"], 4, 1)
    mine, every = points[:, :, list(heads.own)], sample(points, 6, seed=3).unflatten(0, (2, 4))
    return torch.equal(sample(mine, 6, 3, 1, heads), every[:, list(heads.own)].flatten(0, 1))


def test_k_means_starts_alike_whatever_process_has_a_head(world: World) -> None:
    assert world(samples) == [True, True]
