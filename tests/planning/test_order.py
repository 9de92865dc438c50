"""Orders of tokens and the masks of clusters, against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planning.no_sync import NoSync, on_meta
from vidaccel.mask import BlockMask
from vidaccel.planning import order as order_module
from vidaccel.planning.order import (
    chain,
    cluster_mask,
    order_by,
    permute,
    permute_reference,
    tile_mask,
    unpermute,
    unpermute_reference,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("lanes, tokens, clusters", [(1, 1, 1), (3, 50, 4), (2, 5, 90), (4, 257, 1)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_order_by(lanes: int, tokens: int, clusters: int, dtype: torch.dtype) -> None:
    labels = torch.randint(clusters, (lanes, tokens), dtype=dtype)
    result = order_by(labels, clusters)
    assert {each.dtype for each in (result.order, result.inverse, result.starts, result.sizes)} == {torch.int32}
    for lane in range(lanes):
        by_label = sorted(range(tokens), key=lambda token, lane=lane: (labels[lane, token].item(), token))
        assert result.order[lane].tolist() == by_label
        assert [result.inverse[lane].tolist()[token] for token in by_label] == list(range(tokens))
        sizes = [int((labels[lane] == cluster).sum()) for cluster in range(clusters)]
        assert result.sizes[lane].tolist() == sizes
        assert result.starts[lane].tolist() == [sum(sizes[:cluster]) for cluster in range(clusters + 1)]


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_permute(rows: int) -> None:
    states = torch.randn(2, 40, 3, 8)
    order = torch.stack([torch.randperm(40) for _ in range(rows)]).int()
    moved = permute(states, order)
    for batch in range(2):
        for head in range(3):
            lane = order[(batch * 3 + head) % rows].long()
            assert torch.equal(moved[batch, :, head], states[batch, lane, head])
    assert torch.equal(unpermute(moved, order), states)
    assert torch.equal(permute(unpermute(states, order), order), states)


def test_permute_of_views_and_of_one_token() -> None:
    whole = torch.randn(2, 8, 90, 3).permute(0, 2, 3, 1)
    view = whole[:, 7:60:2]
    order = torch.stack([torch.randperm(27) for _ in range(6)]).int()
    assert torch.equal(permute(view, order), permute(view.contiguous(), order))
    assert torch.equal(unpermute(permute(view, order), order), view)
    single = torch.randn(1, 1, 2, 4)
    assert torch.equal(permute(single, torch.zeros(1, 1, dtype=torch.int32)), single)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 17, 4), (2, 40, 1)])
def test_chain(shape: tuple[int, int, int]) -> None:
    points = torch.randn(shape)
    order = chain(points)
    for lane, given in enumerate(points.double()):
        left, expected = set(range(1, len(given))), [0]
        while left:
            expected.append(min(left, key=lambda each, given=given: float((given[each] - given[expected[-1]]).norm())))
            left.remove(expected[-1])
        assert order[lane].tolist() == expected


def test_permuted_attention_over_clusters_is_that_of_the_tokens() -> None:
    """An order and the mask over its positions say the same as a mask over tokens."""
    labels = torch.randint(5, (2, 64))
    result = order_by(labels, 5)
    kept = torch.rand(2, 5, 5) < 0.5
    mask = cluster_mask(result.starts, result.starts, kept, queries=64, keys=64, query_block=1)
    at = result.inverse.long()
    dense = torch.stack([mask.to_dense()[lane][at[lane]][:, at[lane]] for lane in range(2)])
    expected = torch.stack([kept[lane][labels[lane]][:, labels[lane]] for lane in range(2)])
    assert torch.equal(dense, expected)


def starts_of(sizes: Tensor) -> Tensor:
    return torch.nn.functional.pad(sizes.cumsum(1), (1, 0)).int()


def random_sizes(lanes: int, clusters: int, tokens: int) -> Tensor:
    """Sizes that add up to `tokens`, some of them 0."""
    labels = torch.randint(clusters, (lanes, tokens)) * torch.randint(2, (lanes, tokens))
    return torch.nn.functional.one_hot(labels, clusters).sum(1)


def brute_force(query_sizes: Tensor, key_sizes: Tensor, kept: Tensor, query_block: int) -> Tensor:
    """Token by token, then every row gets what any row of its tile has."""
    lanes = []
    for lane in range(len(kept)):
        rows = kept[lane].repeat_interleave(query_sizes[lane], 0).repeat_interleave(key_sizes[lane], 1)
        tiles = [tile.any(0, keepdim=True).expand(len(tile), -1) for tile in rows.split(query_block)]
        lanes.append(torch.cat(tiles))
    return torch.stack(lanes)


def test_tile_mask() -> None:
    sizes = random_sizes(2, 12, 50)
    kept = torch.rand(2, 5, 12) < 0.4
    mask = tile_mask(starts_of(sizes), kept, queries=36, keys=50, query_block=8)
    mask.validate()
    for lane in range(2):
        expected = kept[lane].repeat_interleave(8, 0)[:36].repeat_interleave(sizes[lane], 1)
        assert torch.equal(mask.to_dense()[lane], expected)
    on_meta(lambda *given: tile_mask(given[0], given[1], queries=36, keys=50, query_block=8), starts_of(sizes), kept)
    with pytest.raises(ValueError, match=r"bool \[2, 5, 12\] by 36 queries in tiles of 8 and \[2, 13\], got"):
        tile_mask(starts_of(sizes), kept[:, :4], queries=36, keys=50, query_block=8)


@pytest.mark.parametrize("query_block", [1, 7, 16, 500])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (90, 70, 6, 9), (64, 128, 40, 3), (33, 90, 3, 70)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("at_once", [1, 1500, order_module.RUN])
def test_cluster_mask(
    query_block: int, sizes: tuple[int, int, int, int], share: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "RUN", at_once)
    queries, keys, rows, columns = sizes
    query_sizes, key_sizes = random_sizes(3, rows, queries), random_sizes(3, columns, keys)
    kept = torch.rand(3, rows, columns) < share
    mask = cluster_mask(
        starts_of(query_sizes), starts_of(key_sizes), kept, queries=queries, keys=keys, query_block=query_block
    )  # fmt: skip
    mask.validate()
    expected = brute_force(query_sizes, key_sizes, kept, query_block)
    assert torch.equal(mask.to_dense(), expected)
    start, end = mask.ranges.unbind(1)
    row = mask.row_of_range()
    assert not ((row[1:] == row[:-1]) & (start[1:] == end[:-1])).any(), "neighbouring clusters are one range"


def test_empty_clusters_part_no_ranges() -> None:
    starts = torch.tensor([[0, 4, 4, 4, 9, 9]], dtype=torch.int32)
    kept = torch.tensor([[[True, False, False, True, False]], [[False, True, True, False, True]]])
    both = [cluster_mask(torch.tensor([[0, 3]]), starts, each[None], queries=3, keys=9) for each in kept]
    assert [mask.ranges.tolist() for mask in both] == [[[0, 9]], []]


def test_an_empty_query_cluster_adds_nothing_to_a_tile() -> None:
    starts = torch.tensor([[0, 2, 2, 4]], dtype=torch.int32)
    kept = torch.tensor([[[True, False], [False, True], [True, False]]])
    mask = cluster_mask(starts, torch.tensor([[0, 5, 6]], dtype=torch.int32), kept, queries=4, keys=6, query_block=4)
    assert mask.ranges.tolist() == [[0, 5]]


def test_slack_of_a_mask_that_was_not_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU gets, where nobody waits for the number of ranges."""
    monkeypatch.setattr(BlockMask, "trimmed", lambda self: self)
    sizes, kept = random_sizes(2, 5, 40), torch.rand(2, 5, 5) < 0.4
    mask = cluster_mask(starts_of(sizes), starts_of(sizes), kept, queries=40, keys=40, query_block=8)
    assert len(mask.ranges) == 2 * 5 * 3 > mask.offsets[-1, -1]
    mask.validate()
    assert torch.equal(mask.to_dense(), brute_force(sizes, sizes, kept, 8))


def plan(labels: Tensor, kept: Tensor, states: Tensor) -> Any:
    order = order_by(labels, 5)
    mask = cluster_mask(order.starts, order.starts, kept, queries=30, keys=30, query_block=8)
    return mask, unpermute(permute(states, order.order), order.order), order.inverse


def test_nothing_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.randint(5, (6, 30)), torch.rand(6, 5, 5) < 0.5, torch.randn(2, 30, 3, 8)
    mask, states, inverse = on_meta(plan, *given)
    assert (mask.offsets.shape, mask.ranges.shape) == ((6, 5), (6 * 4 * 3, 2))
    assert (states.shape, inverse.shape) == ((2, 30, 3, 8), (6, 30))
    monkeypatch.setattr(BlockMask, "trimmed", lambda self: self)
    with NoSync():
        mask, states, _ = plan(*given)
    mask.validate()
    assert torch.equal(states, given[2])


def test_references_are_what_runs_on_a_cpu() -> None:
    states, order = torch.randn(1, 20, 2, 4), torch.randperm(20)[None].int()
    assert torch.equal(permute(states, order), permute_reference(states, order))
    assert torch.equal(unpermute(states, order), unpermute_reference(states, order))


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda: order_by(torch.zeros(2, 5), 3), r"labels are integers \[lanes, tokens\], got torch.float32 \[2, 5\]"),
        (lambda: order_by(torch.zeros(5).int(), 3), r"got torch.int32 \[5\]"),
        (lambda: order_by(torch.zeros(2, 5).int(), 0), "clusters=0"),
        (lambda: permute(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4).int()), r"int32 \[1, 3 or 6, 4\], got .*\[2, 4\]"),
        (lambda: permute(torch.zeros(2, 4, 3, 8), torch.zeros(1, 5).int()), r"\[1, 5\]"),
        (lambda: unpermute(torch.zeros(2, 4, 3, 8), torch.zeros(1, 4)), "got torch.float32"),
        (
            lambda: cluster_mask(torch.zeros(1, 3), torch.zeros(1, 4), torch.zeros(1, 2, 2) > 0, queries=4, keys=4),
            r"bool \[1, 2, 3\] by starts \[1, 3\] and \[1, 4\], got torch.bool \[1, 2, 2\]",
        ),
    ],
)
def test_errors(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()
