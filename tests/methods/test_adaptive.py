"""AdaSpa: exact block mass, its budget per head, searches at a few steps, a log-sum-exp that is reused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods import brute
from tests.methods.brute import Cut, Map
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import adaptive, method
from vidaccel.methods.adaptive import LSE, Adaptive, counts_of
from vidaccel.site import Site


def _mass(layout: TokenLayout, cut: Cut, query: Tensor, key: Tensor, norm: Tensor | None = None) -> Map:
    """Attention of the true score matrix summed over blocks, mean over the queries of a tile; rows that sum to 1."""
    keys = layout.video_end if layout.text_after else layout.tokens
    scores = (query.double() @ key[:keys].double().T) * query.shape[1] ** -0.5
    weights = scores.softmax(-1) if norm is None else (scores - norm[:, None]).exp()
    rows = []
    for tile in cut.tiles:
        row = [sum(float(weights[q, k]) for q in tile for k in other if k < keys) for other in cut.tiles]
        rows.append([each / sum(row) for each in row])
    return rows


@pytest.mark.parametrize("options", [{"density": 0.3}, {"top_p": 0.6}], ids=str)
@pytest.mark.parametrize("layout", brute.LAYOUTS, ids=str)
def test_plan_is_that_of_the_definition(layout: TokenLayout, options: dict[str, Any]) -> None:
    cut = Cut.of(layout, brute.natural(layout), 16)
    chosen = Adaptive(**options, block=16, searches=())
    brute.check_plan(chosen, layout, cut, lambda query, key: _mass(layout, cut, query, key))


@pytest.mark.parametrize("layout", brute.LAYOUTS, ids=str)
def test_budget_of_the_paper_is_that_of_the_definition(layout: TokenLayout) -> None:
    """Two heads of the first batch row and one of the second look at one place: they give half their blocks away."""
    cut, density = Cut.of(layout, brute.natural(layout), 16), 0.3
    query, key, value = states(layout, batch=2, heads=6)
    for row, head in ((0, 1), (0, 4), (1, 4)):
        query[row, :, head, 0], key[row, 60:70, head, 0] = 20.0, 10.0
    plan = Adaptive(density=density, block=16, head_adaptive=True).plan(query, key, value, site_of(layout), {})
    base = int(density * sum(cut.video) / 16 + 1e-9)
    text, forced = len(cut.text), cut.forced()
    expected, givers = [], []
    for row in range(2):
        maps = [torch.tensor(_mass(layout, cut, query[row, :, head], key[row, :, head])) for head in range(6)]
        recall = [_recall(each, _best(each, base + text, forced), cut) for each in maps]
        order = sorted(range(6), key=lambda head: -recall[head])
        n = min(sum(each > 0.8 for each in recall), 3)
        givers.append(n)
        counts = dict.fromkeys(range(6), base)
        for head in order[:n]:
            counts[head] = int(density / 2 * sum(cut.video) / 16 + 1e-9)
        for head in order[6 - n :]:
            counts[head] = 2 * base - int(density / 2 * sum(cut.video) / 16 + 1e-9)
        expected += [_best(each, counts[head] + text, forced) for head, each in enumerate(maps)]
    assert givers == [2, 1]
    assert torch.equal(brute.blocks_of(plan), torch.stack(expected))
    if not text:
        assert plan.density(layout).video_density <= density


def _best(scores: Tensor, count: int, forced: set[tuple[int, int]]) -> Tensor:
    """The forced blocks of each row and then the best, up to a number."""
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    for i, row in enumerate(scores.tolist()):
        first = sorted(range(len(row)), key=lambda j: ((i, j) not in forced, -row[j]))
        for place, j in enumerate(first):
            kept[i, j] = place < count or (i, j) in forced
    return kept


def _recall(scores: Tensor, kept: Tensor, cut: Cut) -> float:
    """The share of the mass between tiles of video that is kept."""
    video = [at for at in range(len(cut.tiles)) if at not in cut.text]
    part = scores[video][:, video]
    return float((part * kept[video][:, video]).sum() / part.sum())


def test_givers_are_at_most_half() -> None:
    recall = torch.tensor([[0.9, 0.95, 0.85, 0.99, 0.81], [0.5, 0.9, 0.1, 0.2, 0.8]])
    assert counts_of(recall, 10, 4).tolist() == [[10, 4, 16, 4, 16], [10, 4, 16, 10, 10]]
    assert counts_of(recall[:, :1], 10, 4).tolist() == [[10], [10]]


def _searches(chosen: Adaptive, steps: range, total: int | None = 50) -> list[int]:
    """The steps at which the plan is another than before."""
    layout, state = brute.LAYOUTS[0], {}  # type: TokenLayout, dict[str, Any]
    found, last = [], None
    for step in steps:
        site = Site(0, 4, step, total, "cond", "transformer", layout)
        plan = chosen.plan(*states(layout, seed=step), site, state)
        if plan is not last:
            found.append(step)
        last = plan
    return found


def test_searches_at_its_steps_only() -> None:
    assert _searches(Adaptive(block=16), range(10, 50)) == [10, 30]
    assert _searches(Adaptive(block=16, searches=(0.2, 0.6)), range(5, 50)) == [5, 10, 30]
    # A step of a search at which the layer is dense counts at the next one.
    assert _searches(Adaptive(block=16, searches=(0.5,)), range(1, 50, 2)) == [1, 25]
    assert _searches(Adaptive(block=16, searches=(0.5,)), range(0, 50, 3)) == [0, 27]
    assert _searches(Adaptive(block=16, searches=()), range(10, 50), None) == [10]
    assert _searches(Adaptive(block=16, searches=(0.5,), refresh=4), range(18, 30)) == [18, 22, 25, 29]


def test_searches_need_the_number_of_steps() -> None:
    assert Adaptive().needs_steps and not Adaptive(searches=()).needs_steps
    with pytest.raises(ValueError, match="pass num_inference_steps"):
        _searches(Adaptive(block=16), range(10, 12), None)


@pytest.mark.parametrize("reuse", [True, False])
def test_log_sum_exp_of_the_first_search_is_reused(reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, state, passes = brute.LAYOUTS[0], {}, []  # type: TokenLayout, dict[str, Any], list[int]
    real = adaptive.lse
    monkeypatch.setattr(adaptive, "lse", lambda *given: passes.append(1) or real(*given))
    chosen, cut = Adaptive(density=0.3, block=16, reuse_lse=reuse), Cut.of(layout, brute.natural(layout), 16)
    first, second = states(layout, heads=1), states(layout, heads=1, seed=1)
    chosen.plan(*first, site_of(layout, 10), state)
    plan = chosen.plan(*second, site_of(layout, 30), state)
    assert len(passes) == (1 if reuse else 2) and (LSE in state) == reuse
    norm = (first[0][0, :, 0].double() @ first[1][0, :, 0].double().T * 16**-0.5).logsumexp(1)
    scores = _mass(layout, cut, second[0][0, :, 0], second[1][0, :, 0], norm if reuse else None)
    assert torch.equal(brute.blocks_of(plan), brute.within([scores], cut, 0.3, cut.forced()))


@pytest.mark.parametrize("options", [{"density": 0.3}, {"top_p": 0.6}, {"head_adaptive": True}], ids=str)
def test_nothing_waits(options: dict[str, Any]) -> None:
    for layout in brute.LAYOUTS[1:]:
        brute.check_nothing_waits(Adaptive(**options, block=16, searches=(0.22,)), layout)


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("adaptive", family)


def test_preset() -> None:
    chosen = method("adaptive", "wan", preset="paper")
    assert isinstance(chosen, Adaptive) and chosen.head_adaptive and (chosen.density, chosen.block) == (0.2, 64)
    schedule = chosen.schedule()
    assert schedule is not None and schedule.resolve(50, 40).first_step == 10 and Adaptive().schedule() is None
    assert chosen == Adaptive(preset="paper", density=0.2) and Adaptive().density == 0.25


def test_bad_options_are_refused() -> None:
    for bad in ((0.0,), (1.5,), (True,), 0.5, "half"):
        brute.refused(Adaptive, "searches are shares of the run", searches=bad)
    brute.refused(Adaptive, "does not go with top_p", head_adaptive=True, top_p=0.9)
    brute.refused(Adaptive, "has its own density, not 0.3", preset="paper", density=0.3)
    brute.refused(Adaptive, "unknown preset 'wan' of adaptive", preset="wan")
