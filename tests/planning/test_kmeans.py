"""k-means against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.planning.no_sync import NoSync, on_meta
from vidaccel.planning import kmeans as module
from vidaccel.planning.kmeans import KMeans, assign, assign_reference, kmeans, sample, update, update_reference

SHAPES = [(1, 1, 1, 3), (2, 37, 3, 8), (1, 130, 2, 64)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lanes_of(points: Tensor) -> Tensor:
    """fp64 ``[lanes, tokens, head_dim]``."""
    return points.transpose(1, 2).flatten(0, 1).double()


def distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared, from the differences themselves: ``[lanes, tokens, clusters]``."""
    return (lanes_of(points)[:, :, None] - centroids.double()[:, None]).square().sum(-1)


def inertia(points: Tensor, result: KMeans) -> float:
    near = distances(points, result.centroids).gather(2, result.labels.long()[..., None])
    return float(near.sum())


def separated(batch: int, tokens: int, heads: int, head_dim: int, centres: int) -> tuple[Tensor, Tensor]:
    """Points close to one of few far centres, and which: tokens of a lane cycle through them."""
    middle = 10 * torch.randn(batch * heads, centres, head_dim)
    which = (torch.arange(tokens) % centres).expand(batch * heads, -1)
    points = middle.gather(1, which[..., None].expand(-1, -1, head_dim))
    return (points + 0.001 * torch.randn_like(points)).view(batch, heads, tokens, head_dim).transpose(1, 2), which


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clusters", [1, 5, 70])
def test_assign(shape: tuple[int, ...], clusters: int) -> None:
    points, centroids = torch.randn(shape), torch.randn(shape[0] * shape[2], clusters, shape[3])
    labels = assign(points, centroids)
    assert labels.dtype == torch.int32
    assert torch.equal(labels.long(), distances(points, centroids).argmin(-1))


def test_assign_in_bf16_is_nearest_of_the_rounded_centroids() -> None:
    points, centroids = torch.randn(1, 200, 2, 16).bfloat16(), torch.randn(2, 40, 16)
    labels = assign(points, centroids).long()
    assert torch.equal(labels, distances(points, centroids.bfloat16()).argmin(-1))
    near = distances(points, centroids)
    lost = near.gather(2, labels[..., None])[..., 0].sqrt() - near.amin(-1).sqrt()
    assert lost.max() <= 2 * centroids.norm(dim=-1).max() / 256


def test_equally_near_goes_to_the_lower_number() -> None:
    points = torch.tensor([0.0, 1.0, -1.0]).view(1, 3, 1, 1)
    centroids = torch.tensor([3.0, 1.0, -1.0, 1.0]).view(1, 4, 1)
    assert assign(points, centroids).tolist() == [[1, 1, 2]]


@pytest.mark.parametrize("shape", SHAPES)
def test_update(shape: tuple[int, ...]) -> None:
    lanes, clusters = shape[0] * shape[2], 9
    points, old = torch.randn(shape), torch.randn(lanes, clusters, shape[3])
    labels = torch.randint(1, clusters, (lanes, shape[1]), dtype=torch.int32)
    result = update(points, labels, old)
    assert torch.equal(result.labels, labels) and result.sizes.dtype == torch.int32
    for lane in range(lanes):
        assert result.sizes[lane].tolist() == torch.bincount(labels[lane], minlength=clusters).tolist()
        for cluster in range(clusters):
            members = lanes_of(points)[lane][labels[lane] == cluster]
            if not len(members):
                assert torch.equal(result.centroids[lane, cluster], old[lane, cluster])
            else:
                torch.testing.assert_close(result.centroids[lane, cluster], members.mean(0).float())
    assert torch.equal(result.centroids[:, 0], old[:, 0]), "cluster 0 is empty and stays"


def test_rows_together_are_one_lane_of_all_their_tokens() -> None:
    points = torch.randn(6, 40, 2, 8)
    both = torch.cat([points[:3], points[3:]], dim=1)
    start = sample(both[:, :40], 7, seed=0)
    assert torch.equal(sample(points, 7, 0, together=2), start.repeat(2, 1, 1))
    result, expected = kmeans(points, 7, iterations=4, together=2), kmeans(both, 7, iterations=4, start=start)
    torch.testing.assert_close(result.centroids, expected.centroids.repeat(2, 1, 1))
    assert torch.equal(result.labels, torch.cat([expected.labels[:, :40], expected.labels[:, 40:]]))
    far = torch.cat([start, torch.full((6, 1, 8), 1e3)], dim=1).repeat(2, 1, 1)
    assert torch.equal(kmeans(points, 8, iterations=2, start=far, together=2).centroids[:, 7], far[:, 7])


def test_few_tokens_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = torch.randn(2, 101, 3, 8), torch.randn(6, 11, 8)
    whole = update(points, assign(points, centroids), centroids)
    made: list[int] = []
    zero_one = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *given: made.append(0) or keep_size(made, zero_one(*given)))
    monkeypatch.setattr(module, "CHUNK", 6 * 11 * 7)
    parts = update(points, assign(points, centroids), centroids)
    assert torch.equal(whole.labels, parts.labels)
    torch.testing.assert_close(whole.centroids, parts.centroids)
    assert len(made) == -(-101 // 7) and max(made) <= 6 * 11 * 7


def keep_size(made: list[int], tensor: Tensor) -> Tensor:
    made[-1] = tensor.numel()
    return tensor


def test_separated_clusters_are_found() -> None:
    points, which = separated(2, 120, 2, 16, 4)
    start = lanes_of(points)[:, :4].float() + 0.5
    result = kmeans(points, 4, iterations=2, start=start)
    assert torch.equal(result.labels.long(), which) and (result.sizes == 30).all()
    assert inertia(points, result) < 1e-6 * float(lanes_of(points).square().sum())


def test_every_round_and_a_warm_start_lower_the_inertia() -> None:
    points = torch.randn(2, 300, 2, 8)
    result = kmeans(points, 12, iterations=1)
    after = [inertia(points, result)]
    for _ in range(4):
        result = kmeans(points, 12, iterations=1, start=result.centroids)
        after.append(inertia(points, result))
    assert after == sorted(after, reverse=True) and after[-1] < 0.95 * after[0]
    assert torch.equal(kmeans(points, 12, iterations=5).labels, result.labels), "rounds are what warm starts do"
    moved = points + 0.05 * torch.randn_like(points)
    warm, cold = (kmeans(moved, 12, iterations=1, start=start) for start in (result.centroids, None))
    assert inertia(moved, warm) < inertia(moved, cold)


def test_labels_are_the_last_and_centroids_their_means() -> None:
    points = torch.randn(1, 90, 2, 8)
    result = kmeans(points, 7, iterations=3)
    torch.testing.assert_close(update_reference(points, result.labels, result.centroids).centroids, result.centroids)
    assert torch.equal(result.order.sizes, result.sizes) and (result.sizes.sum(1) == 90).all()
    in_order = result.labels.gather(1, result.order.order.long())
    assert torch.equal(in_order, in_order.sort(dim=1).values)


@pytest.mark.parametrize("clusters", [1, 17, 40, 41, 90])
def test_random_start_has_no_token_twice(clusters: int) -> None:
    points = torch.arange(2 * 40 * 3.0).view(2, 40, 3, 1)
    start = sample(points, clusters, seed=3)
    assert start.shape == (6, clusters, 1)
    for lane, each in enumerate(start[..., 0].tolist()):
        assert set(each) <= set(lanes_of(points)[lane, :, 0].tolist())
        assert len(set(each)) == min(clusters, 40)
    assert torch.equal(start, sample(points, clusters, seed=3))
    assert not torch.equal(start, sample(points, clusters, seed=4))
    assert clusters == 1 or not torch.equal(start[0], start[1]), "each lane has tokens of its own"


def test_more_clusters_than_tokens() -> None:
    points = torch.randn(1, 3, 2, 4)
    result = kmeans(points, 8, iterations=2)
    assert (result.sizes.sum(1) == 3).all() and result.sizes.max() == 1
    assert inertia(points, result) < 1e-9 and torch.isfinite(result.centroids).all()


def test_one_token_and_equal_points() -> None:
    assert kmeans(torch.ones(1, 1, 1, 4), 1, iterations=2).centroids.tolist() == [[[1.0] * 4]]
    result = kmeans(torch.full((1, 50, 2, 4), 0.3), 6, iterations=3)
    assert (result.labels == 0).all() and result.sizes.tolist() == [[50, 0, 0, 0, 0, 0]] * 2
    torch.testing.assert_close(result.centroids, torch.full((2, 6, 4), 0.3))


def test_the_same_again() -> None:
    points = torch.randn(2, 200, 2, 16).bfloat16()
    first, second = (kmeans(points, 20, iterations=4, seed=5) for _ in range(2))
    assert torch.equal(first.centroids, second.centroids) and torch.equal(first.labels, second.labels)


def test_a_slice_between_nan_is_read_in_place() -> None:
    """Text and padding around the video tokens, and other heads beside, are not touched."""
    whole = torch.full((2, 100, 5, 16), float("nan"))
    whole[:, 10:77, 1:4, :8] = torch.randn(2, 67, 3, 8)
    view = whole[:, 10:77, 1:4, :8]
    result, expected = (kmeans(each, 9, iterations=2) for each in (view, view.clone()))
    assert torch.equal(result.labels, expected.labels) and torch.equal(result.centroids, expected.centroids)


def test_nothing_waits_for_a_gpu() -> None:
    points, start = torch.randn(2, 50, 3, 8), torch.randn(6, 7, 8)
    result = on_meta(lambda *given: kmeans(given[0], 7, iterations=2, start=given[1]), points, start)
    assert (result.centroids.shape, result.labels.shape, result.sizes.shape) == ((6, 7, 8), (6, 50), (6, 7))
    with NoSync():
        assert kmeans(points, 7, iterations=2).sizes.shape == (6, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_and_what_runs_on_a_cpu_are_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = torch.randn(2, 60, 4, 8, dtype=dtype)[:, :, 1:3], torch.randn(4, 25, 8)
    labels = assign_reference(points, centroids)
    assert torch.equal(assign(points, centroids), labels)
    result = update(points, labels, centroids)
    for chunk in (module.CHUNK, 4 * 25 * 7):
        monkeypatch.setattr(module, "CHUNK", chunk)
        expected = update_reference(points, labels, centroids)
        assert torch.equal(result.order.order, expected.order.order) and (result.sizes == 0).any()
        torch.testing.assert_close(result.centroids, expected.centroids)


POINTS, START = torch.zeros(1, 4, 2, 8), torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda: kmeans(POINTS, 3, iterations=0), "iterations=0"),
        (lambda: kmeans(POINTS, 0, iterations=1), "clusters=0"),
        (lambda: kmeans(POINTS, 4, iterations=1, start=START), r"start is \[lanes, 4, head_dim\], got \[2, 3, 8\]"),
        (lambda: kmeans(POINTS, 3, iterations=1, together=2), "together=2; 1 batch rows are not that many equal runs"),
        (lambda: kmeans(POINTS[0], 3, iterations=1), r"\[batch, tokens, heads, head_dim\], got .*\[4, 2, 8\]"),
        (lambda: kmeans(POINTS[:, :0], 3, iterations=1), r"\[1, 0, 2, 8\]"),
        (lambda: assign(POINTS, START.half()), r"centroids are float32 \[2, clusters, 8\] on cpu, got torch.float16"),
        (lambda: assign(POINTS, START[:1]), r"got torch.float32 \[1, 3, 8\]"),
        (lambda: update(POINTS, torch.zeros(2, 4), START), r"labels are int32 \[2, 4\], got torch.float32"),
        (lambda: update(POINTS, torch.zeros(2, 5).int(), START), r"got torch.int32 \[2, 5\]"),
    ],
)
def test_errors(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()
