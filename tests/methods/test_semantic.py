"""Sparse VideoGen 2: plans against the definition, permuted attention, density, what stays between steps, pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vidaccel
from tests.methods.online import PIPES, SETTING, check_nothing_waits, check_pipeline, site_of, states
from tests.pipelines.cases import frames
from vidaccel.kernels import attention
from vidaccel.layout import TokenLayout
from vidaccel.methods import semantic, semantic_tiles
from vidaccel.methods.base import COMMON
from vidaccel.methods.semantic import CENTROIDS, CHOICE, Semantic
from vidaccel.methods.semantic_presets import PRESETS
from vidaccel.plan import AttentionPlan
from vidaccel.planning import order as order_module
from vidaccel.planning.kmeans import KMeans

TEXTS = [TokenLayout(3, 5, 7), TokenLayout(3, 5, 7, text_before=9), TokenLayout(3, 5, 7, text_after=11),
         TokenLayout(3, 4, 8, text_after=16), TokenLayout(1, 1, 3, 2, 2)]  # fmt: skip
FEW: dict[str, Any] = {"block": 16, "query_clusters": 6, "key_clusters": 9}


def planned(method: Semantic, layout: TokenLayout, batch: int = 2, **given: Any) -> tuple[AttentionPlan, list[Tensor]]:
    tensors = states(layout, batch=batch, **given)
    return method.plan(*tensors, site_of(layout), {}), tensors


def kept_of(plan: AttentionPlan) -> Tensor:
    """The plan over tokens rather than positions: bool ``[lanes, tokens, tokens]``."""
    assert plan.mask is not None and plan.query_order is not None and plan.key_order is not None
    plan.mask.validate()
    positions, kept = plan.mask.to_dense(), torch.zeros(plan.mask.to_dense().shape, dtype=torch.bool)
    for lane, (rows, columns) in enumerate(zip(plan.query_order.long(), plan.key_order.long(), strict=True)):
        kept[lane, rows[:, None], columns] = positions[lane]
    return kept


def estimates(queries: KMeans, keys: KMeans, lane: int) -> Tensor:
    """The paper's P of one lane, in fp64."""
    weight = torch.bincount(keys.labels[lane].long(), minlength=keys.centroids.shape[1]).double()
    logits = queries.centroids[lane].double() @ keys.centroids[lane].double().T / queries.centroids.shape[2] ** 0.5
    each = weight * logits.exp()
    return each / each.sum(1, keepdim=True)


def best(row: Tensor, method: Semantic) -> set[int]:
    """The clusters that a row keeps with `top_p`."""
    assert method.top_p is not None and method.minimum is not None
    order, total, kept = sorted(range(len(row)), key=lambda j: -float(row[j])), 0.0, set()
    for place, j in enumerate(order):
        if place == 0 or total < method.top_p or place < int(method.minimum * len(row)):
            kept.add(j)
        total += float(row[j])
    return kept


def within(scores: dict[tuple[int, ...], float], costs: dict[tuple[int, ...], int], budget: float) -> set[Any]:
    """The best scores until one would cross the budget; first the best of each row, at any price."""
    rows: dict[Any, Any] = {}
    for cell, score in scores.items():
        if cell[:2] not in rows or score > scores[rows[cell[:2]]]:
            rows[cell[:2]] = cell
    kept, spent = set(rows.values()), sum(costs[cell] for cell in rows.values())
    for cell in sorted(scores, key=lambda cell: -scores[cell]):
        if cell in kept:
            continue
        spent += costs[cell]
        if spent > budget:
            break
        kept.add(cell)
    return kept


def brute_force(method: Semantic, layout: TokenLayout, tensors: list[Tensor]) -> Tensor:
    """The definition with loops over tokens, tiles and clusters: bool ``[lanes, tokens, tokens]``."""
    clusters = method.clusters(tensors[0], tensors[1], site_of(layout), {})
    batch, tokens, heads, _ = tensors[0].shape
    video, start = layout.video_tokens, layout.video_start
    kept = torch.zeros(batch * heads, tokens, tokens, dtype=torch.bool)
    for row in range(batch):
        scores: dict[tuple[int, ...], float] = {}
        costs: dict[tuple[int, ...], int] = {}
        members: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
        chosen: set[Any] = set()
        for lane in range(row * heads, (row + 1) * heads):
            labels = clusters.queries.labels[lane].tolist()
            p = estimates(clusters.queries, clusters.keys, lane)
            in_order = sorted(range(video), key=lambda token, labels=labels: (labels[token], token))
            for tile in range(0, video, method.block):
                rows = in_order[tile : tile + method.block]
                mean = torch.stack([p[labels[token]] for token in rows]).mean(0)
                most = torch.stack([p[labels[token]] for token in rows]).amax(0)
                if method.top_p is not None:
                    each = [best(p[labels[token]], method) for token in rows] if method.by == "cluster" else []
                    chosen |= {(lane, tile, j) for j in (set.union(*each) if each else best(mean, method))}
                for j in range(p.shape[1]):
                    columns = (clusters.keys.labels[lane] == j).nonzero().flatten().tolist()
                    members[lane, tile, j] = (rows, columns)
                    if columns:
                        value = (most if method.by == "cluster" else mean)[j]
                        scores[lane, tile, j] = float(value) / len(columns)
                        costs[lane, tile, j] = len(rows) * len(columns)
        if isinstance(method.density, float):
            chosen = within(scores, costs, method.density * heads * video**2 + 1e-6)
        for cell in chosen:
            rows, columns = members[cell]
            for token in rows:
                kept[cell[0], token + start, torch.tensor(columns, dtype=torch.int64) + start] = True
    text = torch.arange(tokens)
    text = (text < start) | (text >= layout.video_end)
    return kept | text[:, None] | text


@pytest.mark.parametrize("by", ["tile", "cluster"])
@pytest.mark.parametrize("budget", [{"top_p": 0.5}, {"top_p": 0.2, "minimum": 0.4}, {"density": 0.3}, {"density": 0.6}])
@pytest.mark.parametrize("layout", [each for each in TEXTS if not (each.video_tokens % 16 and each.tokens != 105)])
def test_plan_is_the_definition(layout: TokenLayout, budget: dict[str, float], by: str) -> None:
    """Where no tile holds both video and text; see the next test for those."""
    method = Semantic(by=by, **FEW, **budget)
    plan, tensors = planned(method, layout, seed=3)
    assert torch.equal(kept_of(plan), brute_force(method, layout, tensors))


@pytest.mark.parametrize("by", ["tile", "cluster"])
@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_plan_beside_text(layout: TokenLayout, by: str) -> None:
    """Video rows of tiles with text attend to all; the others as the definition says."""
    method = Semantic(by=by, top_p=0.4, **FEW)
    plan, tensors = planned(method, layout)
    expected, kept = brute_force(method, layout, tensors), kept_of(plan)
    assert plan.query_order is not None and plan.key_order is not None
    whole = layout.video_tokens // 16 * 16 if layout.tokens > layout.video_tokens else layout.tokens
    for lane, rows in enumerate(plan.query_order.long()):
        assert torch.equal(kept[lane, rows[:whole]], expected[lane, rows[:whole]])
        assert kept[lane, rows[whole:]].all()
    text = [*range(layout.video_start), *range(layout.video_end, layout.tokens)]
    for order in (plan.query_order, plan.key_order):
        assert order[:, layout.video_tokens :].tolist() == [text] * 6
        assert torch.equal(order.sort(dim=1).values, torch.arange(layout.tokens).int().expand(6, -1))


@pytest.mark.parametrize("by", ["tile", "cluster"])
@pytest.mark.parametrize("layout", TEXTS, ids=str)
@pytest.mark.parametrize("density", [0.15, 0.5, 1.0])
def test_permuted_attention_is_that_of_the_tokens(layout: TokenLayout, by: str, density: float) -> None:
    plan, (query, key, value) = planned(Semantic(by=by, density=density, **FEW), layout)
    kept = kept_of(plan).unflatten(0, (2, 3))
    assert density < 1 or kept.all()
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept).transpose(1, 2)
    torch.testing.assert_close(attention(query, key, value, plan)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by", ["tile", "cluster"])
@pytest.mark.parametrize("text", [{}, {"text_before": 32}, {"text_after": 20}])
@pytest.mark.parametrize("density", [0.5, 0.3, 0.1])
def test_density_is_met(density: float, text: dict[str, int], by: str) -> None:
    layout = TokenLayout(5, 9, 13, **text)
    plan, _ = planned(Semantic(by=by, density=density, block=16), layout, batch=1)
    assert plan.key_groups is not None
    # What is left is less than the next piece costs: a tile times a cluster of one of three heads.
    largest = 16 * int(plan.key_groups.diff(dim=1)[:, :-1].max()) / (3 * layout.video_tokens**2)
    assert density - largest - 1e-6 <= plan.density(layout).video_density <= density + 1e-9


def test_each_batch_row_has_a_budget_and_clusters_of_its_own() -> None:
    layout = TEXTS[1]
    method = Semantic(density=0.3, **FEW)
    _, tensors = planned(method, layout)
    tensors[0][1] *= 3
    both = method.plan(*tensors, site_of(layout), {})
    assert both.mask is not None
    for row in range(2):
        rows = kept_of(both)[3 * row : 3 * row + 3, layout.video_start :, layout.video_start :]
        whole = layout.video_tokens % 16 / layout.video_tokens
        assert 0.2 < rows.double().mean() <= 0.3 + whole


def test_key_groups_are_the_clusters_and_text() -> None:
    for layout in TEXTS[:3]:
        method = Semantic(density=0.3, **FEW)
        plan, tensors = planned(method, layout)
        keys = method.clusters(tensors[0], tensors[1], site_of(layout), {}).keys
        assert plan.key_groups is not None and plan.key_order is not None
        text = layout.tokens - layout.video_tokens
        assert plan.key_groups.shape == (6, 9 + 1 + bool(text)) and (plan.key_groups[:, -1] == layout.tokens).all()
        for lane in range(6):
            for group in range(9):
                start, end = plan.key_groups[lane, group : group + 2].tolist()
                tokens = plan.key_order[lane, start:end].long() - layout.video_start
                assert (keys.labels[lane, tokens] == group).all() and end - start == keys.sizes[lane, group]


def test_padding_changes_nothing() -> None:
    layout = TEXTS[2]
    method = Semantic(density=0.3, **FEW)
    plan, tensors = planned(method, layout)
    for each in tensors:
        each[:, layout.video_end :] = float("nan")
    again = method.plan(*tensors, site_of(layout), {})
    assert torch.equal(kept_of(plan), kept_of(again))


@pytest.mark.parametrize("at_once", [1, 500])
def test_largest_rows_are_gathered_some_lanes_at_a_time(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(6, 7, 9, generator=generator)
    labels = torch.randint(0, 7, (6, 50), generator=generator, dtype=torch.int32)
    starts = order_module.order_by(labels, 7).starts
    whole = semantic_tiles.most_rows(values, starts, 50, 16)
    monkeypatch.setattr(semantic_tiles, "RUN", at_once)
    assert torch.equal(semantic_tiles.most_rows(values, starts, 50, 16), whole)
    rows = labels.sort(dim=1).values.long()
    for lane, tile in ((0, 0), (3, 1), (5, 3)):
        tokens = rows[lane, 16 * tile : 16 * tile + 16]
        assert torch.equal(whole[lane, tile], values[lane, tokens].amax(0))


def test_more_clusters_than_tokens() -> None:
    plan, _ = planned(Semantic(top_p=0.1, minimum=0, block=16, query_clusters=40, key_clusters=300), TEXTS[0])
    assert (kept_of(plan).sum(2) > 0).all()


def test_equal_tokens_are_one_cluster() -> None:
    layout = TEXTS[0]
    tensors = [torch.ones_like(each) for each in states(layout)]
    for options in ({"density": 0.2}, {"top_p": 0.9}):
        assert kept_of(Semantic(**FEW, **options).plan(*tensors, site_of(layout), {})).all()


def test_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means starts from random tokens once, then from the last centroids: observed, planned or both."""
    rounds: list[int] = []
    real, real_sample = semantic.kmeans, semantic.sample

    def spy(*given: Any, **options: Any) -> KMeans:
        rounds.append(options["iterations"])
        return real(*given, **options)

    monkeypatch.setattr(semantic, "kmeans", spy)
    monkeypatch.setattr(semantic, "sample", lambda *given: rounds.append(0) or real_sample(*given))
    layout, first, later = TEXTS[0], [0, 6, 1] * 2, [3] * 2
    tensors = states(layout)
    for options, expected in (
        ({}, first + later * 3), ({"warmup": False}, first + later), ({"keep": "nothing"}, first * 2),
        ({"refresh": 2}, first + later * 2),
    ):  # fmt: skip
        rounds.clear()
        state: dict[str, Any] = {}
        method = Semantic(density=0.3, first_iterations=7, iterations=3, **FEW, **options)
        for step in (0, 1):
            method.observe(*tensors, site_of(layout, step), state)
        for step in (2, 3):
            method.plan(*tensors, site_of(layout, step), state)
        assert rounds == expected


def test_like_clusters_are_neighbours() -> None:
    """Clusters along a line are numbered along it, whatever tokens they started from."""
    layout = TokenLayout(1, 16, 16)
    tokens = torch.arange(256.0)[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    states = torch.stack([tokens, torch.zeros(256)], 1)[None, :, None].expand(2, -1, 3, -1)
    state: dict[str, Any] = {}
    method = Semantic(density=0.3, block=16, query_clusters=8, key_clusters=8)
    for _ in range(2):
        numbers = method.clusters(states, states, site_of(layout), state).keys.centroids[..., 0]
        turns = numbers.diff(dim=1).sign().diff(dim=1).count_nonzero(dim=1)
        assert (turns <= 1).all(), "to one end, and from the start to the other"


def test_batched_guidance_branches_share_centroids() -> None:
    """The first and second half of the batch; each has labels and a budget of its own."""
    layout, method = TEXTS[1], Semantic(density=0.3, **FEW)
    query, key, value = states(layout, batch=4)
    site = replace(site_of(layout), branch="cond_uncond")
    for given in (query, key):
        given[2:] = given[:2] + 0.1 * given[2:]
    found = method.clusters(query, key, site, {})
    for each in (found.queries, found.keys):
        centroids = each.centroids.unflatten(0, (4, 3))
        assert torch.equal(centroids[:2], centroids[2:]) and not torch.equal(centroids[0], centroids[1])
        assert not torch.equal(each.labels[:6], each.labels[6:])
    assert method.plan(query, key, value, site, {}).density(layout).video_density <= 0.31
    odd = method.clusters(query[:3], key[:3], site, {}).keys.centroids.unflatten(0, (3, 3))
    alone = method.clusters(query[:3], key[:3], site_of(layout), {}).keys.centroids.unflatten(0, (3, 3))
    assert torch.equal(odd, alone), "three rows are no two branches"


def test_equal_centroids_are_kept_once() -> None:
    layout, method, state = TEXTS[1], Semantic(density=0.3, **FEW), dict[str, Any]()
    query, key, _ = states(layout, batch=4)
    for step in (2, 3):
        found = method.clusters(query, key, replace(site_of(layout, step), branch="cond_uncond"), state)
        for each, kept in zip((found.queries, found.keys), state[COMMON][CENTROIDS], strict=True):
            assert torch.equal(each.centroids, kept.repeat(2, 1, 1)) and len(kept) == 6
            assert kept.untyped_storage().nbytes() == kept.nbytes
    counted = method.memory(layout, 12, 16, itemsize=4, together=2).state["centroids"]
    assert counted == sum(kept.nbytes for kept in state[COMMON][CENTROIDS])


@pytest.mark.parametrize(
    "order", [["cond"] * 4, ["uncond", "cond", "uncond", "cond"], ["cond", "uncond", "cond", "cond"]]
)
def test_a_branch_starts_from_the_last_centroids_of_any(order: list[str]) -> None:
    layout, method, common = TEXTS[1], Semantic(density=0.3, iterations=3, **FEW), dict[str, Any]()
    states_of: dict[str, dict[str, Any]] = {branch: {COMMON: common} for branch in ("cond", "uncond")}
    last: tuple[Tensor, ...] = ()
    for number, branch in enumerate(order):
        tensors, site = states(layout, seed=number), replace(site_of(layout, number // 2), branch=branch)
        plan = method.plan(*tensors, site, states_of[branch])
        video, rounds = slice(layout.video_start, layout.video_end), 1 if number % 2 else 3
        expected = [
            semantic.kmeans(each[:, video], len(start[0]), iterations=rounds, start=start)
            for each, start in zip(tensors, last, strict=False)
        ]
        last = common[CENTROIDS]
        assert all(torch.equal(each.centroids, kept) for each, kept in zip(expected, last, strict=False))
        assert len(expected) == (2 if number else 0) and plan.density(layout).video_density <= 0.31


def test_centroids_in_the_type_of_the_tokens_start_as_well() -> None:
    layout, method = TEXTS[0], Semantic(density=0.3, **FEW)
    query, key, _ = (each.bfloat16() for each in states(layout))
    state: dict[str, Any] = {}
    first = method.clusters(query, key, site_of(layout), state)
    assert state[COMMON][CENTROIDS][0].dtype == torch.bfloat16
    second = method.clusters(query, key, site_of(layout, 11), state)
    kept = {CENTROIDS: (first.queries.centroids, first.keys.centroids)}
    exact = method.clusters(query, key, site_of(layout), {COMMON: kept})
    assert torch.equal(second.keys.labels, exact.keys.labels)


@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_a_kept_plan_is_the_same(layout: TokenLayout) -> None:
    method, state = Semantic(density=0.3, refresh=3, **FEW), dict[str, Any]()
    tensors, others = states(layout), states(layout, seed=5)
    plan = method.plan(*tensors, site_of(layout, 4), state)
    again = method.plan(*others, site_of(layout, 5), state)
    assert torch.equal(kept_of(plan), kept_of(again)) and torch.equal(plan.key_groups, again.key_groups)  # type: ignore[arg-type]
    assert plan.mask is not None and again.mask is not None and plan.mask.key_block == again.mask.key_block
    method.plan(*others, site_of(layout, 6), state)
    once_more = method.plan(*others, site_of(layout, 6), state)
    assert torch.equal(kept_of(plan), kept_of(once_more)), "a step may have several calls"
    anew = method.plan(*others, site_of(layout, 7), state)
    assert layout.video_tokens < 16 or not torch.equal(kept_of(plan), kept_of(anew))


def test_without_refresh_every_call_has_a_plan_of_its_own() -> None:
    layout, method, state = TEXTS[0], Semantic(density=0.3, **FEW), dict[str, Any]()
    first, second = (method.plan(*states(layout, seed=seed), site_of(layout), state) for seed in (0, 1))
    assert not torch.equal(kept_of(first), kept_of(second))


def bytes_of(state: dict[str, Any]) -> dict[str, int]:
    """Bytes of the tensors of a state, as `Memory.state` names them."""
    found = {"centroids": sum(each.nbytes for each in state[COMMON].get(CENTROIDS, ()))}
    if CHOICE in state:
        found["plans"] = sum(each.nbytes for each in vars(state[CHOICE]).values())
    others = [name for name, each in state.items() if isinstance(each, Tensor)]
    assert not others
    return {name: size for name, size in found.items() if size}


@pytest.mark.parametrize("options", [{}, {"refresh": 2}, {"keep": "centroids"}, {"keep": "nothing"}])
def test_what_stays_is_as_counted(options: dict[str, Any]) -> None:
    layout, state = TEXTS[0], dict[str, Any]()
    method = Semantic(density=0.3, block=16, **options)
    plan = method.plan(*states(layout), site_of(layout), state)
    counted = method.memory(layout, 3, 16, itemsize=4)
    sizes = bytes_of(state)
    assert sizes.keys() == counted.state.keys()
    for name, size in sizes.items():
        assert size == pytest.approx(counted.state[name], rel=0.1)
    words = {"centroids": "MB of centroids for all guidance passes", "plans": "MB of plans for each"}
    assert all(any(words[each] in note for note in plan.notes) for each in counted.state)
    assert counted.state or any("keeps nothing" in note for note in plan.notes)


def test_ranges_of_some_lanes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = planned(Semantic(density=0.3, **FEW), TEXTS[1])
    for size in (1, 200):
        monkeypatch.setattr(order_module, "RUN", size)
        other, _ = planned(Semantic(density=0.3, **FEW), TEXTS[1])
        assert plan.mask is not None and other.mask is not None
        assert torch.equal(plan.mask.ranges, other.mask.ranges) and torch.equal(plan.mask.offsets, other.mask.offsets)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = planned(Semantic(density=0.3, **FEW), TEXTS[0])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    second, _ = planned(Semantic(density=0.3, **FEW), TEXTS[0])
    assert torch.equal(kept_of(first), kept_of(second))


@pytest.mark.parametrize("options", [{}, {"by": "cluster"}, {"top_p": 0.8}, {"top_p": 0.8, "by": "cluster"},
                                     {"refresh": 2}, {"keep": "nothing"}])  # fmt: skip
def test_nothing_waits(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    check_nothing_waits(Semantic(block=16, **options), TEXTS[2], monkeypatch)


def test_counts_by_tokens() -> None:
    assert Semantic().counts(TokenLayout(21, 45, 80)) == (605, 990)
    assert Semantic().counts(TokenLayout(13, 9, 13)) == (86, 140)
    assert Semantic(key_clusters=7).counts(TokenLayout(13, 9, 13)) == (86, 7)
    assert min(Semantic().counts(TokenLayout(1, 1, 1))) >= 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    method = Semantic(preset=name)
    assert (method.top_p, method.minimum, method.density, method.by) == (0.9, 0.1, None, "cluster")
    assert (method.first_iterations, method.iterations, method.key_clusters) == (50, 2, 1000)
    assert method.query_clusters == PRESETS[name].options["query_clusters"]
    schedule = method.schedule()
    assert schedule is not None and schedule.dense_first_steps == PRESETS[name].dense_steps
    assert schedule.dense_first_layers == PRESETS[name].dense_layers == (0 if "480p" in name and "hun" in name else 2)
    assert Semantic(preset=name, top_p=0.9) == method and Semantic.for_family("wan", preset=name) == method
    assert Semantic().schedule() is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"preset": "wan"}, "unknown preset 'wan' of semantic; choose wan2.1-14b-t2v-720p,"),
        ({"preset": "hunyuanvideo-720p", "density": 0.2}, "has its own density, not 0.2"),
        ({"preset": "hunyuanvideo-720p", "top_p": 0.2}, "has its own top_p, not 0.2"),
        ({"preset": "hunyuanvideo-720p", "key_clusters": 5}, "has its own key_clusters, not 5"),
        ({"by": "token"}, "unknown by 'token' of semantic; choose tile, cluster"),
        ({"keep": "all"}, "unknown keep 'all' of semantic; choose plans, centroids, nothing"),
        ({"keep": "centroids", "refresh": 3}, "refresh 3 keeps plans for some steps, keep='centroids' does not"),
        ({"minimum": 1.5}, "minimum 1.5 is not a share"),
        ({"query_clusters": 0}, "query_clusters 0 is not"),
        ({"iterations": 0}, "iterations 0 is not"),
        ({"density": 0.2, "top_p": 0.5}, "not both"),
    ],
)
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Semantic(**options)


@pytest.mark.parametrize("family", PIPES)
def test_in_pipelines(family: str) -> None:
    check_pipeline("semantic", family)


def test_branches_share_centroids_and_keep_plans_apart() -> None:
    make, call = PIPES["wan"]
    pipe = make()
    with vidaccel.enable(pipe, "semantic", density=0.3, refresh=2, **SETTING) as session:
        frames(pipe, **call)
        states_of = {(branch, layer): state for (_, _, branch, layer), state in session.calls.state.items()}
    for layer in (0, 1):
        common, cond, uncond = (states_of[branch, layer] for branch in (COMMON, "cond", "uncond"))
        assert cond[COMMON] is uncond[COMMON] is common and CENTROIDS in common
        assert CENTROIDS not in cond and CENTROIDS not in uncond
        assert cond[CHOICE].kept is not uncond[CHOICE].kept and CHOICE not in common
    assert not torch.equal(states_of[COMMON, 0][CENTROIDS][1], states_of[COMMON, 1][CENTROIDS][1])
