"""Selection against its definition, row by row in Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.planning.no_sync import NoSync, on_meta
from vidaccel.mask import BlockMask
from vidaccel.planning import dispatch, select
from vidaccel.planning.select import budgeted, budgeted_reference, top_k, top_k_reference, top_p, top_p_reference

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def ranking(scores: list[float], forced: list[bool]) -> list[int]:
    """Blocks from best to worst: forced ones, then by score, then by number."""
    return sorted(range(len(scores)), key=lambda b: (not forced[b], INF if scores[b] != scores[b] else -scores[b], b))


def tied_scores(*shape: int) -> Tensor:
    """Scores with many ties, both zeros, both infinities and NaN."""
    values = torch.tensor([-INF, -2.0, -0.0, 0.0, 0.25, 0.5, 3.0, INF, NAN])
    return values[torch.randint(len(values), shape)]


def masses(*shape: int) -> Tensor:
    """Multiples of 1/64, whose sums are exact, so that every border is."""
    return torch.randint(0, 40, shape) / 64


def row_map(kept: set[int], blocks: int) -> Tensor:
    return torch.tensor([block in kept for block in range(blocks)], dtype=torch.bool)


def by_row(scores: Tensor, choose: Callable[[int, int], set[int]]) -> Tensor:
    rows = [[row_map(choose(p, t), scores.shape[2]) for t in range(scores.shape[1])] for p in range(len(scores))]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (3, 2, 67), (1, 4, 128)])
@pytest.mark.parametrize("count", [0, 1, 3, 64, 500])
@pytest.mark.parametrize("with_keep", [False, True])
def test_top_k(shape: tuple[int, int, int], count: int, with_keep: bool) -> None:
    scores, keep = tied_scores(*shape), torch.rand(shape) < 0.2

    def choose(p: int, t: int) -> set[int]:
        forced = keep[p, t].tolist() if with_keep else [False] * shape[2]
        return {*ranking(scores[p, t].tolist(), forced)[:count], *(b for b, each in enumerate(forced) if each)}

    assert torch.equal(top_k(scores, count, keep=keep if with_keep else None), by_row(scores, choose))


def test_top_k_count_of_pattern_and_of_row() -> None:
    scores = torch.randn(3, 4, 9)
    counts = torch.randint(0, 12, (3, 4))
    assert torch.equal(top_k(scores, counts).sum(2), counts.clamp(max=9))
    assert torch.equal(top_k(scores, counts[:, 0]), top_k(scores, counts[:, :1].expand(3, 4)))


def test_equal_scores_go_to_the_lower_number_and_nan_last() -> None:
    assert top_k(torch.tensor([[[0.0, -0.0, 0.0, 0.0]]]), 2).tolist() == [[[True, True, False, False]]]
    assert top_k(torch.tensor([[[NAN, -INF, -9.0, NAN]]]), 2).tolist() == [[[True, False, True, False]]]


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("minimum", [0, 1, 5])
@pytest.mark.parametrize("with_sizes, with_keep", [(False, False), (True, False), (True, True)])
def test_top_p(mass: float, minimum: int, with_sizes: bool, with_keep: bool) -> None:
    scores, sizes, keep = masses(2, 3, 33), torch.randint(0, 8, (2, 33)), torch.rand(3, 33) < 0.1
    scores[0, 0] = 0.0
    scores[0, 1, 4:7] = torch.tensor([NAN, -1.0, -INF])

    def choose(p: int, t: int) -> set[int]:
        score, forced = scores[p, t].tolist(), keep[t].tolist() if with_keep else [False] * 33
        each = [max(s, 0.0) * (sizes[p, b].item() if with_sizes else 1) if s == s else 0.0 for b, s in enumerate(score)]
        kept: list[int] = []
        for block in ranking(score, forced):
            if sum(each[b] for b in kept) >= mass * sum(each) and len(kept) >= minimum:
                break
            kept.append(block)
        return {*kept, *(b for b in range(33) if forced[b])}

    options = {"sizes": sizes if with_sizes else None, "minimum": minimum, "keep": keep if with_keep else None}
    assert torch.equal(top_p(scores, mass, **options), by_row(scores, choose))


def test_top_p_of_clusters_as_svg2_ranks_them() -> None:
    """Shares of whole clusters, ranked by share: scores are multiplied by sizes beforehand."""
    scores, sizes = torch.tensor([[[0.5, 0.25, 0.25]]]), torch.tensor([[1, 8, 1]])
    assert top_p(scores * sizes[:, None], 0.7).tolist() == [[[False, True, False]]]
    assert top_p(scores, 0.7, sizes=sizes).tolist() == [[[True, True, False]]]


def test_top_p_share_of_each_pattern() -> None:
    scores = torch.rand(3, 4, 20)
    shares = torch.tensor([0.1, 0.5, 0.9])
    parts = [top_p(scores[p : p + 1], shares[p].item()) for p in range(3)]
    assert torch.equal(top_p(scores, shares), torch.cat(parts))


@pytest.mark.parametrize("density", [0.01, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("minimum", [0, 1, 4])
@pytest.mark.parametrize("weighted, with_keep", [(False, False), (True, False), (True, True)])
def test_budgeted(density: float, groups: int, minimum: int, weighted: bool, with_keep: bool) -> None:
    patterns, tiles, blocks = 4, 5, 10
    scores, weights = tied_scores(patterns, tiles, blocks), torch.randint(0, 7, (patterns, 1, blocks))
    keep = torch.rand(patterns, tiles, blocks) < (0.1 if with_keep else 0.0)
    cost = (weights if weighted else torch.ones_like(weights)).expand(scores.shape)
    expected = []
    for group in range(groups):
        part = slice(group * patterns // groups, (group + 1) * patterns // groups)
        forced = top_k_reference(scores[part], minimum, keep=keep[part]).flatten().tolist()
        costs, kept, spent = cost[part].flatten().tolist(), list(forced), 0
        for block in ranking(scores[part].flatten().tolist(), forced):
            spent += costs[block]
            if spent * 100 > round(density * 100) * sum(costs):
                break
            kept[block] = True
        expected.append(torch.tensor(kept).view(scores[part].shape))
    got = budgeted(
        scores, density, weights=weights if weighted else None, minimum=minimum, groups=groups, keep=keep
    )  # fmt: skip
    assert torch.equal(got, torch.cat(expected))


def test_budget_is_met_from_below_and_moves_between_heads() -> None:
    scores = torch.rand(6, 10, 50)
    scores[0] *= 1e-3
    kept = budgeted(scores, 0.29)
    assert kept.sum() == 870
    assert kept[0].sum() == 10 and (kept[0].sum(1) == 1).all()
    weights = torch.randint(1, 9, scores.shape)
    spent = (budgeted(scores, 0.3, weights=weights) * weights).sum() / weights.sum()
    assert 0.3 - 9 / weights.sum() < spent <= 0.3


@pytest.mark.parametrize("shape", [(7,), (6, 7), (1, 5, 7), (6, 5, 7), (6, 1, 7)])
def test_costs_are_summed_some_patterns_at_a_time(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    scores, weights = tied_scores(6, 5, 7), torch.randint(0, 2**30, shape, dtype=torch.int32)
    each = weights[:, None] if len(shape) == 2 else weights
    expected = each.long().expand(6, 5, 7).sum((1, 2))
    for chunk in (1, 2 * 5 * 7, select.CHUNK):
        monkeypatch.setattr(select, "CHUNK", chunk)
        for groups in (1, 2, 6):
            _, budget = select._budget(scores, 1.0, weights, groups)
            assert torch.equal(budget, expected.view(groups, -1).sum(1))


def test_map_becomes_a_mask() -> None:
    kept = top_k(torch.randn(2, 4, 7), 3)
    mask = BlockMask.from_blocks(kept, 16, 16, 60, 100)
    mask.validate()
    dense = kept.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :60, :100]
    assert torch.equal(mask.to_dense(), dense)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "top_k": lambda scores, sizes, keep: top_k(scores, 3, keep=keep),
    "top_k of rows": lambda scores, sizes, keep: top_k(scores, sizes[:, 0]),
    "top_p": lambda scores, sizes, keep: top_p(scores, 0.7, sizes=sizes, minimum=2, keep=keep),
    "budgeted": lambda scores, sizes, keep: budgeted(scores, 0.3, weights=sizes, groups=2, keep=keep),
    "budgeted plain": lambda scores, sizes, keep: budgeted(scores, 0.3),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_waits_for_a_gpu(name: str) -> None:
    given = torch.rand(4, 3, 11), torch.randint(1, 5, (4, 11)), torch.rand(11) < 0.2
    assert on_meta(OPERATIONS[name], *given).shape == (4, 3, 11)
    with NoSync():
        assert OPERATIONS[name](*given).dtype == torch.bool


@pytest.mark.parametrize("waits", [lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: float(x[0]), torch.unique])
def test_the_proof_sees_what_waits(waits: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="waits for a GPU"), NoSync():
        waits(torch.arange(5))


def test_references_are_what_runs_in_torch() -> None:
    scores, sizes = torch.rand(4, 3, 50), torch.randint(1, 9, (50,))
    with dispatch.forced("torch"):
        assert torch.equal(top_k(scores, 7), top_k_reference(scores, 7))
        assert torch.equal(top_p(scores, 0.8, sizes=sizes), top_p_reference(scores, 0.8, sizes=sizes))
        assert torch.equal(budgeted(scores, 0.2, weights=sizes), budgeted_reference(scores, 0.2, weights=sizes))


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda s: top_k(s.double(), 1), r"float32 \[patterns, tiles, blocks\], got torch.float64"),
        (lambda s: top_k(s[0], 1), r"got torch.float32 \[3, 5\]"),
        (lambda s: top_k(s, -1), "count=-1"),
        (lambda s: top_k(s, torch.ones(5)), r"count is a number, \[2\] or \[2, 3\], got \[5\]"),
        (lambda s: top_k(s, 1, keep=torch.ones(4, dtype=torch.bool)), r"keep of shape \[4\]"),
        (lambda s: top_k(s, 1, keep=torch.ones(5)), "keep is bool"),
        (lambda s: top_p(s, 0.0), r"mass=0.0 is not a share in \(0, 1\]"),
        (lambda s: top_p(s, 0.5, sizes=torch.ones(3, 5)), r"sizes of shape \[3, 5\]"),
        (lambda s: top_p(s, 0.5, minimum=-2), "minimum=-2"),
        (lambda s: budgeted(s, 1.5), r"density=1.5 is not in \(0, 1\]"),
        (lambda s: budgeted(s, 0.5, groups=3), "2 patterns are not 3 equal groups"),
        (lambda s: budgeted(s, 0.5, weights=torch.ones(5)), "weights are integers"),
    ],
)
def test_errors(call: Callable[[Tensor], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call(torch.rand(2, 3, 5))
