"""Clusters ranked by the error of their compensation: the formula against loops over tokens, and who chooses by it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import vidaccel
from tests.methods.online import PIPES, SETTING, check_nothing_waits, site_of, states
from tests.methods.test_semantic import FEW, TEXTS, estimates, kept_of
from vidaccel.kernels import attention
from vidaccel.layout import TokenLayout
from vidaccel.methods import semantic_errors
from vidaccel.methods.radial import Radial
from vidaccel.methods.semantic import Semantic
from vidaccel.methods.semantic_errors import errors
from vidaccel.methods.semantic_presets import PRESETS
from vidaccel.methods.semantic_tiles import Clusters, shares


def brute_force(clusters: Clusters, key: Tensor, value: Tensor, lane: int) -> Tensor:
    """The formula of one lane, in fp64, with loops over clusters and their tokens."""
    batch, head = divmod(lane, key.shape[2])
    p, query = estimates(clusters.queries, clusters.keys, lane), clusters.queries.centroids[lane].double()
    labels, (keys, values) = clusters.keys.labels[lane], (each[batch, :, head].double() for each in (key, value))
    members = [(labels == j).nonzero().flatten() for j in range(p.shape[1])]
    means = torch.stack([values[each].sum(0) / max(1, len(each)) for each in members])
    result = torch.zeros_like(p)
    for i in range(p.shape[0]):
        for j, tokens in enumerate(members):
            if len(tokens):
                variance = keys[tokens].var(0, correction=0)
                spread = min(4.0, float((query[i] ** 2 * variance).sum()) / key.shape[3])
                deviation = float((values[tokens] - means[j]).square().sum(1).mean()) ** 0.5
                away = float((means[j] - p[i] @ means).norm())
                result[i, j] = p[i, j] * (spread**0.5 * deviation + spread / 2 * away + 1e-9)
    return result


def found(layout: TokenLayout, scale: float = 1.0, **options: Any) -> tuple[Clusters, Tensor, Tensor]:
    """Clusters of random tokens, and the video's keys and values."""
    query, key, value = states(layout, batch=2)
    video = slice(layout.video_start, layout.video_end)
    clusters = Semantic(**{**FEW, **options}).clusters(query * scale, key, site_of(layout), {})
    return clusters, key[:, video], value[:, video]


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_errors_are_the_formula(layout: TokenLayout, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters, key, value = found(layout, scale)
    given = errors(clusters, key, value)
    for lane in range(6):
        torch.testing.assert_close(given[lane], brute_force(clusters, key, value, lane).float(), rtol=1e-3, atol=1e-6)
    monkeypatch.setattr(semantic_errors, "RUN", 1)
    torch.testing.assert_close(errors(clusters, key, value), given, rtol=1e-5, atol=1e-7)


def test_clusters_without_keys_have_no_error() -> None:
    clusters, key, value = found(TEXTS[0], key_clusters=300)
    given, empty = errors(clusters, key, value), clusters.keys.sizes == 0
    assert empty.any() and given.isfinite().all()
    assert ((given == 0) | ~empty[:, None]).all() and (given.sum((1, 2)) > 0).all()


def test_the_error_is_that_of_the_mean_where_scores_spread_little() -> None:
    """Of one cluster with its mean for its keys, against dense attention: about the estimate, not above."""
    generator = torch.Generator().manual_seed(0)
    layout, groups = TokenLayout(1, 8, 8), torch.arange(64) // 16
    centre, query = (torch.randn(4, 16, generator=generator) for _ in range(2))
    key = centre[groups] + 0.2 * torch.randn(64, 16, generator=generator)
    value = torch.randn(64, 16, generator=generator)
    tensors = [each[None, :, None] for each in (query.repeat_interleave(16, 0), key, value)]
    method = Semantic(block=16, query_clusters=4, key_clusters=4, first_iterations=20)
    clusters = method.clusters(tensors[0], tensors[1], site_of(layout), {})
    estimated, labels = errors(clusters, tensors[1], tensors[2])[0], clusters.keys.labels[0]
    queries = clusters.queries.centroids[0]
    weights = (queries @ key.T / 4).exp()
    dense = weights @ value / weights.sum(1, keepdim=True)
    for j in range(4):
        of, others = labels == j, labels != j
        mean = (queries @ key[of].mean(0) / 4).exp() * of.sum()
        total = weights[:, others].sum(1) + mean
        made_up = (weights[:, others] @ value[others] + mean[:, None] * value[of].mean(0)) / total[:, None]
        off = (made_up - dense).norm(dim=1)
        assert (off < 1.2 * estimated[:, j]).all() and (off > 0.02 * estimated[:, j]).all()


def test_equal_keys_go_by_mass() -> None:
    clusters, key, value = found(TEXTS[0])
    same = torch.ones_like(key)
    torch.testing.assert_close(errors(clusters, same, value), shares(clusters) * 1e-9, rtol=1e-5, atol=0)


@pytest.mark.parametrize("by", ["tile", "cluster"])
@pytest.mark.parametrize("budget", [{"top_p": 0.4}, {"density": 0.3}])
@pytest.mark.parametrize("layout", TEXTS[:3], ids=str)
def test_only_the_choice_differs(layout: TokenLayout, budget: dict[str, float], by: str) -> None:
    """Plans by error are those by mass with other scores, and their attention is exact."""
    (query, key, value), site = states(layout, batch=2), site_of(layout)
    by_error = Semantic(rank="error", by=by, **FEW, **budget).plan(query, key, value, site, {})
    unset, by_mass = (
        Semantic(rank=rank, by=by, **FEW, **budget).plan(query, key, value, site, {}) for rank in (None, "mass")
    )
    assert torch.equal(kept_of(unset), kept_of(by_mass)) and not torch.equal(kept_of(by_error), kept_of(by_mass))
    assert torch.equal(by_error.key_order, by_mass.key_order)  # type: ignore[arg-type]
    if "density" in budget:
        assert by_error.density(layout).video_density == pytest.approx(by_mass.density(layout).video_density, abs=0.1)
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    mask = kept_of(by_error).unflatten(0, (2, 3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(attention(query, key, value, by_error)[0], expected, atol=1e-5, rtol=1e-5)


def test_top_p_is_a_share_of_the_error() -> None:
    layout, site = TokenLayout(3, 4, 8), site_of(TokenLayout(3, 4, 8))
    method = Semantic(rank="error", by="cluster", top_p=0.5, minimum=0, **{**FEW, "query_clusters": 1})
    query, key, value = states(layout)
    plan, clusters = method.plan(query, key, value, site, {}), method.clusters(query, key, site, {})
    given, kept = errors(clusters, key, value), kept_of(plan)
    for lane in range(3):
        chosen = kept[lane, 0][clusters.keys.order.order[lane].long()]
        starts = clusters.keys.order.starts[lane, :-1].long()
        share = given[lane, 0] / given[lane, 0].sum()
        marks = chosen[starts]
        assert share[marks].sum() >= 0.5 > share[marks].sum() - share[marks].min()


def test_padding_changes_nothing() -> None:
    layout, method = TEXTS[2], Semantic(density=0.3, rank="error", **FEW)
    tensors = states(layout)
    plan = method.plan(*tensors, site_of(layout), {})
    for each in tensors:
        each[:, layout.video_end :] = float("nan")
    assert torch.equal(kept_of(plan), kept_of(method.plan(*tensors, site_of(layout), {})))


@pytest.mark.parametrize("options", [{}, {"by": "cluster"}, {"top_p": 0.8}])
def test_nothing_waits(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    check_nothing_waits(Semantic(block=16, rank="error", **options), TEXTS[2], monkeypatch)


def test_the_compensation_settles_the_rank() -> None:
    ranks = {None: "mass", "centroid": "error", "residual": "mass"}
    for name, rank in ranks.items():
        settled = Semantic(density=0.2).compensated(name)
        assert settled == Semantic(density=0.2, rank=rank) == settled.compensated("centroid")
        assert Semantic(**dataclasses.asdict(settled)) == settled
    preset = Semantic(preset=next(iter(PRESETS))).compensated("centroid")
    assert preset.rank == "mass" and Semantic(**dataclasses.asdict(preset)) == preset
    static = Radial()
    assert static.compensated("centroid") is static
    with pytest.raises(ValueError, match="unknown rank 'size' of semantic; choose mass, error"):
        Semantic(rank="size")
    with pytest.raises(ValueError, match="has its own rank, not error"):
        Semantic(preset=next(iter(PRESETS)), rank="error")


def test_the_summary_says_which_ran() -> None:
    pipe = PIPES["wan"][0]()
    given: dict[str, Any] = {"density": 0.3, **SETTING}
    for options, rank in (({}, "mass"), ({"compensation": "centroid"}, "error"),
                          ({"compensation": {"name": "centroid"}, "rank": "mass"}, "mass")):  # fmt: skip
        with vidaccel.enable(pipe, "semantic", **given, **options) as session:
            assert session.summary().to_dict()["method"]["options"]["rank"] == rank
    again = Semantic(density=0.3)
    with vidaccel.enable(pipe, again, compensation="centroid") as session:
        assert session.setting.method == Semantic(density=0.3, rank="error") and again.rank is None
