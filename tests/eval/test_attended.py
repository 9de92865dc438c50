"""What a head attends to, against the whole softmax and the whole mask."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from vidaccel.eval import attended as module
from vidaccel.eval.attended import Attended, Cells, attended, best_mass
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.methods import METHODS
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site

# Text before, after, and none; and the tokens that are no padding.
LAYOUTS = [(TokenLayout(5, 4, 6), 120), (TokenLayout(5, 4, 6, text_after=21), 130), (TokenLayout(5, 4, 6, 21), 141)]


def weights_of(query: Tensor, key: Tensor, length: int) -> np.ndarray:
    """The softmax of all pairs at once, in fp64."""
    logits = query.double() @ key.double().T / query.shape[-1] ** 0.5
    logits[:, length:] = -torch.inf
    return np.asarray(logits.softmax(-1).numpy())


def kept_of(plan: AttentionPlan, lane: int, tokens: int, length: int) -> np.ndarray:
    """Bool ``[tokens, tokens]``: the pairs that a plan keeps of a lane, at the tokens' own places."""
    assert plan.mask is not None
    dense = plan.mask.to_dense()[lane % plan.mask.patterns].numpy()
    natural = np.arange(tokens)
    rows, columns = (natural if order is None else order[lane % len(order)].numpy()
                     for order in (plan.query_order, plan.key_order))  # fmt: skip
    kept = np.zeros((tokens, tokens), bool)
    kept[np.ix_(rows, columns)] = dense
    kept[:, length:] = False
    return kept


def by_cell(values: np.ndarray, edges: tuple[int, ...]) -> np.ndarray:
    """Means over cells, one after the other."""
    pairs = list(itertools.pairwise(edges))
    return np.array([[values[a:b, c:d].mean() for c, d in pairs] for a, b in pairs])


def random_plan(layout: TokenLayout, patterns: int, orders: int, block: tuple[int, int] = (16, 8)) -> AttentionPlan:
    """Blocks by chance, in `orders` orders by chance of queries and of keys."""
    tokens = layout.tokens
    kept = torch.rand(patterns, -(-tokens // block[0]), -(-tokens // block[1])) < 0.4
    kept[:, :, 0] = True
    mask = BlockMask.from_blocks(kept, *block, tokens, tokens)
    if not orders:
        return AttentionPlan(mask)
    made = [torch.stack([torch.randperm(tokens) for _ in range(orders)]).int() for _ in range(2)]
    return AttentionPlan(mask, made[0], made[1])


def states(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    query, key = torch.randn(2, layout.tokens, 16) * 2
    return query, key


@pytest.mark.parametrize(("layout", "length"), LAYOUTS)
@pytest.mark.parametrize(("patterns", "orders"), [(1, 0), (2, 0), (1, 4), (4, 1)])
def test_everything_is_what_brute_force_says(
    layout: TokenLayout, length: int, patterns: int, orders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 48)  # pieces that end within the clip
    torch.manual_seed(0)
    (query, key), plan, lane = states(layout), random_plan(layout, patterns, orders), 3
    found = attended(query, key, plan, lane, layout, length)
    weights, kept = weights_of(query, key, length), kept_of(plan, lane, layout.tokens, length)
    video = slice(layout.video_start, layout.video_end)
    edges = found.cells.edges
    assert edges[-1] == length and {layout.video_start, layout.video_end} <= set(edges)
    np.testing.assert_allclose(found.weights, by_cell(weights, edges), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(found.kept, by_cell(kept.astype(float), edges), atol=1e-12)
    np.testing.assert_allclose(found.mass, np.sort((weights * kept)[video].sum(1)), atol=1e-5)
    assert found.density == pytest.approx(kept[:length, :length].mean())
    assert found.video_density == pytest.approx(kept[video, video].mean())
    assert found.mass_on_text() == pytest.approx(1 - weights[video, video].sum() / layout.video_tokens, abs=1e-6)
    if length == layout.tokens:
        assert found.video_density == pytest.approx(
            float(plan.video_densities(layout)[lane % len(plan.video_densities(layout))])
        )


def test_best_is_the_best_that_blocks_of_the_plan_can_do() -> None:
    """Of a small grid, all choices of as many blocks; the plan's own choice is one of them."""
    torch.manual_seed(1)
    layout = TokenLayout(1, 4, 8)
    query, key = states(layout)
    kept = torch.tensor([[[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]], dtype=torch.bool)
    plan = AttentionPlan(BlockMask.from_blocks(kept, 8, 8, 32, 32), key_order=torch.randperm(32)[None].int())
    found = attended(query, key, plan, 0, layout)
    assert plan.key_order is not None
    ordered = weights_of(query, key, 32)[:, plan.key_order[0].numpy()]
    blocks = sorted(ordered.reshape(4, 8, 4, 8).sum((1, 3)).flatten() / 32)
    assert found.best == pytest.approx(sum(blocks[-int(kept.sum()) :]), abs=1e-6)
    assert float(found.mass.mean()) == pytest.approx(float((ordered * kept_of(
        AttentionPlan(plan.mask), 0, 32, 32)).sum() / 32), abs=1e-6)  # fmt: skip
    assert float(found.mass.mean()) <= found.best


def test_best_mass_takes_the_last_block_in_part() -> None:
    mass, pairs = torch.tensor([6.0, 1.0, 4.0, 0.0]), torch.tensor([10.0, 1.0, 4.0, 0.0])
    assert best_mass(mass, pairs, 5) == pytest.approx(5.0)  # the two of one a pair
    assert best_mass(mass, pairs, 10) == pytest.approx(8.0)
    assert best_mass(mass, pairs, 99) == pytest.approx(11.0)


@pytest.mark.parametrize("mask", [None, "full"])
def test_a_full_mask_keeps_everything(mask: str | None) -> None:
    layout = TokenLayout(5, 4, 6, text_after=10)
    plan = AttentionPlan(BlockMask.full(130, 130, 16, 16) if mask else None)
    found = attended(*states(layout), plan, 0, layout, 127)
    torch.testing.assert_close(found.mass, torch.ones(120))
    assert found.density == found.video_density == 1 and found.best == pytest.approx(1)
    assert bool((found.kept == 1).all())


@pytest.mark.parametrize("text", [(0, 0), (0, 20), (20, 0)])
def test_radials_kept_mass_is_a_sum_over_its_mask(text: tuple[int, int]) -> None:
    layout = TokenLayout(9, 6, 8, *text)
    method = METHODS["radial"].for_family("wan", block=16, density=0.4)
    plan = method.plan(None, None, None, Site(0, 1, 0, 4, "cond", "transformer", layout), {})
    query, key = states(layout)
    found = attended(query, key, plan, 1, layout)
    mass, dense = 0.0, kept_of(plan, 1, layout.tokens, layout.tokens)
    weights = weights_of(query, key, layout.tokens)
    for row in range(layout.video_start, layout.video_end):
        mass += sum(weights[row, column] for column in np.flatnonzero(dense[row]))
    assert float(found.mass.double().mean()) == pytest.approx(mass / layout.video_tokens, abs=1e-6)
    assert 0.3 < found.video_density < 0.5 and found.mass[0] < found.mass[-1] < 1 + 1e-6


def test_cells_are_few_and_never_of_both_text_and_video() -> None:
    for layout in (TokenLayout(21, 45, 80), TokenLayout(13, 30, 45, 226), TokenLayout(33, 45, 80, text_after=256)):
        cells = Cells.of(layout, layout.tokens)
        assert len(cells) <= 128 and len(cells) > 60 and cells.edges[-1] == layout.tokens
        assert cells.edges[cells.first] == layout.video_start and cells.edges[cells.last] == layout.video_end
        sizes = cells.sizes.long()
        assert int(sizes.max()) % 16 == 0 and bool((sizes > 0).all())
        index = cells.index(layout.tokens, torch.device("cpu"))
        assert torch.equal(index.bincount(), sizes)
    padded = Cells.of(TokenLayout(5, 4, 6, text_after=30), 127)
    assert padded.edges[-2:] == (120, 127)
    assert padded.index(150, torch.device("cpu"))[126:].tolist() == [8] + [9] * 23


def test_shares_of_the_best_cells() -> None:
    cells = Cells((0, 2, 4), 0, 2)
    weights, kept = torch.tensor([[0.4, 0.1], [0.25, 0.25]]).double(), torch.ones(2, 2).double()
    found = Attended(cells, weights, kept, torch.ones(4), 1.0)
    assert found.in_best_cells(0.25) == pytest.approx(0.4) and found.in_best_cells(0.5) == pytest.approx(0.65)
