"""Kernels that choose and group against torch in Triton's interpreter; test_triton_choice.py runs this in a process.

Outputs start poisoned: NaN, or the largest integer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidaccel.planning import dispatch
from vidaccel.planning.groups import group_moments
from vidaccel.planning.kmeans import assign, kmeans, sample, update
from vidaccel.planning.order import order_by, permute, permute_reference, unpermute, unpermute_reference
from vidaccel.planning.select import budgeted, top_k, top_p
from vidaccel.triton_launch import interpreted

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    assert interpreted()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # then, and only then, torch fills what it allocates
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.zeros(1).new_empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def both(run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What the kernel and what torch makes of it; the first is an error if no kernel can run it."""
    with dispatch.forced("triton"):
        fast = run()
    with dispatch.forced("torch"):
        return fast, run()


def same(run: Callable[[], Tensor]) -> None:
    fast, slow = both(run)
    assert fast.dtype == slow.dtype and torch.equal(fast, slow)


def tied_scores(*shape: int) -> Tensor:
    """Scores with many ties, both zeros, both infinities and NaN."""
    values = torch.tensor([-INF, -2.0, -0.0, 0.0, 1e-40, 0.25, 0.5, 3.0, INF, NAN])
    return values[torch.randint(len(values), shape)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (2, 2, 64), (1, 2, 67), (1, 1, 1200)])
@pytest.mark.parametrize("scores_of", [tied_scores, torch.randn], ids=["ties", "normal"])
def test_top_k(shape: tuple[int, int, int], scores_of: Callable[..., Tensor]) -> None:
    scores, keep = scores_of(*shape), torch.rand(shape) < 0.2
    for count in (0, 1, 3, 64, 5000):
        same(lambda count=count: top_k(scores, count))
    counts = torch.randint(0, shape[2] + 2, shape[:2])
    same(lambda: top_k(scores, counts, keep=keep))
    same(lambda: top_k(scores, counts[:, 0], keep=keep[0, 0]))
    same(lambda: top_k(scores.transpose(0, 1), 2))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 33), (1, 1, 1200)])
def test_top_p(shape: tuple[int, int, int]) -> None:
    # Multiples of 1/64: sums are exact, and so are borders.
    scores, keep = torch.randint(0, 40, shape) / 64, torch.rand(shape[2]) < 0.1
    scores[0, 0, ::7] = NAN
    scores[-1, -1] = -1.0
    sizes = torch.randint(0, 9, (shape[0], shape[2]), dtype=torch.int32)
    for mass in (0.01, 0.5, 1.0):
        same(lambda mass=mass: top_p(scores, mass))
        same(lambda mass=mass: top_p(scores, mass, sizes=sizes, minimum=2, keep=keep))
        same(lambda mass=mass: top_p(scores, mass, sizes=sizes.float()[:1], minimum=0))
    same(lambda: top_p(scores, torch.linspace(0.2, 0.9, shape[0])))


def test_top_p_of_a_softmax_agrees_but_for_rounding() -> None:
    scores = torch.randn(2, 4, 300).mul(3).softmax(-1)
    fast, slow = both(lambda: top_p(scores, 0.9))
    assert (fast ^ slow).sum(-1).max() <= 1
    for kept in (fast, slow):
        assert ((scores * kept).sum(-1) > 0.9 - 1e-6).all()
        assert ((scores * kept).sum(-1) - scores.masked_fill(~kept, 1).amin(-1) < 0.9 + 1e-6).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 2, 10), (2, 2, 67)])
@pytest.mark.parametrize("scores_of", [tied_scores, torch.randn], ids=["ties", "normal"])
def test_budgeted(shape: tuple[int, int, int], scores_of: Callable[..., Tensor]) -> None:
    scores, keep = scores_of(*shape), torch.rand(shape) < 0.1
    weights = torch.randint(0, 9, (shape[0], shape[2]), dtype=torch.int32)
    for density in (0.01, 0.29, 1.0):
        same(lambda density=density: budgeted(scores, density))
        same(lambda density=density: budgeted(scores, density, groups=shape[0], minimum=2, weights=weights, keep=keep))
    same(lambda: budgeted(scores, 0.5, minimum=0, weights=weights[0].long() << 33))


def test_all_scores_equal() -> None:
    scores = torch.full((2, 3, 20), 0.5)
    same(lambda: top_k(scores, 7))
    same(lambda: top_p(scores, 0.33))
    same(lambda: budgeted(scores, 0.33, groups=2))
    same(lambda: budgeted(scores.fill_(NAN), 0.33, minimum=0))


def test_every_bit_of_a_score_counts() -> None:
    """Neighbouring floats, of both signs, are told apart."""
    bits = torch.tensor([1, 2, 0x3F800000, 0x3F800001, 0x7F7FFFFF], dtype=torch.int32)
    values = torch.cat([bits.view(torch.float32), -bits.view(torch.float32)])
    scores = values[torch.randperm(10)].view(1, 1, 10)
    for count in range(11):
        same(lambda count=count: top_k(scores, count))
        same(lambda count=count: budgeted(scores, max(count, 0.5) / 10, minimum=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "shape, clusters",
    [((1, 1, 1, 16), 1), ((2, 130, 3, 24), 70), ((1, 200, 1, 128), 65), ((1, 70, 1, 120), 40)],
)
def test_kmeans(shape: tuple[int, ...], clusters: int, dtype: torch.dtype) -> None:
    points = torch.randn(shape).to(dtype)
    start = sample(points, clusters, seed=0)
    same(lambda: assign(points, start))
    labels = assign(points, start)
    fast, slow = both(lambda: update(points, labels, start).centroids)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    again = kmeans(points, clusters, iterations=2), kmeans(points, clusters, iterations=2)
    assert torch.equal(again[0].centroids, again[1].centroids) and torch.equal(again[0].labels, again[1].labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 70, 3, 24), (1, 50, 1, 120)])
@pytest.mark.parametrize("lengths", [False, True])
def test_moments_of_groups(shape: tuple[int, ...], dtype: torch.dtype, lengths: bool) -> None:
    batch, tokens, heads, _ = shape
    points = (torch.randn(shape) + 5).to(dtype)
    # Some are empty.
    groups = order_by(torch.randint(0, 9, (batch * heads, tokens)), 11)
    valid = torch.linspace(tokens, 1, batch).int() if lengths else None
    for order in (groups.order, None):
        for number in (0, 1):
            fast, slow = both(lambda order=order, number=number: group_moments(
                points, groups.starts, order=order, lengths=valid)[number])  # fmt: skip
            torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_kmeans_of_a_view_between_nan() -> None:
    whole = torch.full((2, 100, 5, 40), NAN)
    whole[:, 10:77, 1:4, :32] = torch.randn(2, 67, 3, 32)
    view = whole[:, 10:77, 1:4, :32]
    same(lambda: kmeans(view, 9, iterations=2).labels)
    strided = torch.randn(1, 8, 50, 2).permute(0, 2, 3, 1)
    same(lambda: kmeans(strided, 3, iterations=2).labels)


def test_equal_points_empty_clusters_and_more_clusters_than_tokens() -> None:
    same(lambda: kmeans(torch.full((1, 150, 2, 16), 0.25), 6, iterations=3).labels)
    same(lambda: kmeans(torch.full((1, 150, 2, 16), 0.25), 6, iterations=3).centroids)
    points = torch.randn(1, 3, 2, 16)
    same(lambda: kmeans(points, 80, iterations=2).labels)
    same(lambda: kmeans(points, 80, iterations=2).centroids)


def test_equally_near_goes_to_the_lower_number_in_all_tiles() -> None:
    points, centroids = torch.randn(1, 20, 1, 16), torch.randn(1, 200, 16)
    centroids[0, 77], centroids[0, 130], centroids[0, 191] = (points[0, 3, 0],) * 3
    centroids[0, 150] = centroids[0, 14] = points[0, 4, 0]
    labels = assign(points, centroids)
    assert labels[0, 3:5].tolist() == [77, 14]
    same(lambda: assign(points, centroids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("tokens, head_dim", [(1, 8), (70, 24)])
def test_permute(rows: int, tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    whole = torch.full((2, tokens + 5, 4, head_dim + 8), NAN, dtype=dtype)
    states = whole[:, 2 : tokens + 2, 1:, :head_dim].normal_()
    order = order_by(torch.randint(5, (rows, tokens)), 5).order
    with dispatch.forced("triton"):
        moved, back = permute(states, order), unpermute(states, order)
    assert torch.equal(moved, permute_reference(states, order))
    assert torch.equal(back, unpermute_reference(states, order))


def test_beyond_31_bits(tmp_path: Path) -> None:
    """Rows so far apart that the last one starts past 2^31 elements; the file that holds them is sparse."""
    tokens, apart = 20, 1 << 27
    (tmp_path / "rows").touch()
    with (tmp_path / "rows").open("r+b") as file:
        file.truncate(2 * tokens * apart)
    far = torch.from_file(str(tmp_path / "rows"), shared=True, size=tokens * apart, dtype=torch.float16)
    states = far.view(1, tokens, apart)[:, :, None, :16]
    states.copy_(torch.randn(states.shape))
    assert (tokens - 1) * states.stride(1) > 2**31
    order = torch.randperm(tokens)[None].int()
    same(lambda: permute(states, order))
    same(lambda: unpermute(states, order))
    same(lambda: kmeans(states, 4, iterations=2).labels)
    start = torch.randn(1, 4, 16)
    fast, slow = both(lambda: kmeans(states, 4, iterations=1, start=start).centroids)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
