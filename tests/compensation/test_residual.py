"""The residual of dense attention, carried between refresh steps: its formula, its timing, its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.compensation.cases import BATCH, GRIDS, HEAD_DIM, HEADS, LENGTHS, Recorder, dense, plans
from tests.methods.online import PIPES, SETTING, site_of, states
from tests.pipelines.cases import frames
from tests.planning.no_sync import NoSync
from vidaccel.compensation import compensation
from vidaccel.compensation.residual import Residual, state_bytes
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call
from vidaccel.pipelines.wan import Wan
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site

LAYOUT = GRIDS[2]


def call(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [each.to(dtype) for each in states(LAYOUT, batch=BATCH, heads=HEADS, head_dim=HEAD_DIM, seed=seed)]


def attend(
    chosen: Residual, plan: AttentionPlan, tensors: list[Tensor], state: dict[str, Any], step: int,
    lengths: Tensor | None = LENGTHS,
) -> tuple[Tensor, AttentionPlan]:  # fmt: skip
    return chosen.attend(plan, *tensors, lengths, site_of(LAYOUT, step), state, Recorder(*tensors, lengths))


@pytest.mark.parametrize("kind", ["radial", "svg", "clusters of heads"])
def test_refresh_is_dense_and_others_are_the_formula(kind: str) -> None:
    plan, first, second = plans(LAYOUT)[kind], call(0), call(1)
    chosen, state = Residual(refresh=3, growth=0.1), {}  # type: tuple[Residual, dict[str, Any]]
    out, ran = attend(chosen, plan, first, state, 7)
    torch.testing.assert_close(out, dense(*first, LENGTHS), atol=1e-6, rtol=0)
    assert ran.densities(LAYOUT).tolist() == pytest.approx([1, 1, 1], abs=0.1) and ran.density(LAYOUT).density == 1
    sparse = Recorder(*first, LENGTHS)(plan, return_lse=True)
    assert sparse[1] is not None
    every = Recorder(*first, LENGTHS)(ran, return_lse=True)[1]
    ratio = (sparse[1] - every).exp()
    residual = dense(*first, LENGTHS) - ratio.transpose(1, 2)[..., None] * sparse[0]
    for step, steps in ((8, 1), (9, 2)):
        out, ran = attend(chosen, plan, second, state, step)
        grown = (ratio + 0.1 * steps).clamp(max=1).transpose(1, 2)[..., None]
        expected = grown * Recorder(*second, LENGTHS)(plan)[0] + residual
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        assert ran is plan
    out, ran = attend(chosen, plan, second, state, 10)
    assert ran is not plan and torch.equal(out, dense(*second, LENGTHS)) and state["step"] == 10


def test_ratio_is_the_kept_share_of_the_denominator() -> None:
    plan, (query, key, value), state = plans(LAYOUT)["radial"], call(), {}
    attend(Residual(), plan, [query, key, value], state, 0, None)
    assert plan.mask is not None
    weights = (query.transpose(1, 2) @ key.transpose(1, 2).transpose(2, 3) * HEAD_DIM**-0.5).softmax(-1)
    torch.testing.assert_close(state["ratio"], (weights * plan.mask.to_dense()[0]).sum(-1), atol=1e-5, rtol=0)


def test_unchanged_states_stay_dense_without_growth() -> None:
    plan, tensors, state = plans(LAYOUT)["radial"], call(), {}
    for step in range(5):
        out, ran = attend(Residual(growth=0), plan, tensors, state, step)
        torch.testing.assert_close(out, dense(*tensors, LENGTHS), atol=1e-5, rtol=0)
        assert (ran is plan) == (step > 0)


def test_residual_has_the_querys_type_and_is_counted() -> None:
    plan, tensors, state = plans(LAYOUT)["radial"], call(dtype=torch.bfloat16), {}
    out, _ = attend(Residual(), plan, tensors, state, 0)
    kept = sum(each.nbytes for each in state.values() if isinstance(each, Tensor))
    assert out.dtype == state["residual"].dtype == torch.bfloat16 and kept == state_bytes(tensors[0])
    assert attend(Residual(), plan, tensors, state, 1)[0].dtype == torch.bfloat16
    wan = torch.empty(1, 75_600, 40, 128, dtype=torch.bfloat16, device="meta")
    assert state_bytes(wan) == 774_144_000 + 12_096_000


def test_another_shape_is_a_refresh_of_its_own() -> None:
    plan, tensors, state = plans(LAYOUT)["radial"], call(), {}
    attend(Residual(), plan, tensors, state, 0)
    half = [each[:1] for each in tensors]
    out, ran = attend(Residual(), plan, half, state, 1, LENGTHS[:1])
    assert ran is not plan and torch.equal(out, dense(*half, LENGTHS[:1]))


def test_nothing_waits() -> None:
    plan, tensors = plans(LAYOUT)["radial"].to("meta"), [each.to("meta") for each in call()]

    def run(plan: AttentionPlan, return_lse: bool = False) -> tuple[Tensor, Tensor]:
        return torch.empty_like(tensors[0]), tensors[0].new_empty(BATCH, HEADS, LAYOUT.tokens)

    # What is made once per grid may wait.
    Residual().attend(plan, *tensors, None, site_of(LAYOUT, 0), {}, run)
    with NoSync():
        state: dict[str, Any] = {}
        for step in range(3):
            Residual().attend(plan, *tensors, None, site_of(LAYOUT, step), state, run)


def test_refuses_bad_options_and_too_much_memory() -> None:
    for bad, message in (
        ({"refresh": 0}, "refresh 0 is not"), ({"refresh": 2.0}, "refresh 2.0 is not"),
        ({"growth": 1.5}, "growth 1.5 is not a number from 0 to 1"), ({"max_state_mb": "all"}, "max_state_mb 'all'"),
        ({"refresh_every": 3}, "has no option 'refresh_every'; it has refresh, growth, max_state_mb"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            compensation({"name": "residual", **bad})
    plan, tensors, state = plans(LAYOUT)["radial"], call(), {}
    needed = state_bytes(tensors[0]) * 4 / 1e6
    attend(Residual(max_state_mb=needed), plan, tensors, {}, 0)
    with pytest.raises(ValueError, match=r"would keep 0 MB in 4 layers of transformer for each guidance branch, more"):
        attend(Residual(max_state_mb=needed * 0.99), plan, tensors, state, 0)


def attends(pipe: Any) -> list[int]:
    """Grows with each call of the first attention layer of a pipeline's transformer."""
    calls, layer = list[int](), family_of(pipe.transformer).sites(pipe.transformer)[0]
    layer.to_q.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator,union-attr]
    return calls


@pytest.mark.parametrize("family", PIPES)
def test_too_much_memory_is_refused_before_any_work(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, call = PIPES[family]
    pipe, checked, check = make(), list[Tensor](), Residual.check

    def spy(self: Residual, query: Tensor, site: Site) -> None:
        checked.append(query)
        assert site.step >= 2 and site.layer == 1
        check(self, query, site)

    monkeypatch.setattr(Residual, "check", spy)
    late = SETTING | {"schedule": {"dense_first_steps": 2, "dense_first_layers": 1}}
    with vidaccel.enable(pipe, "radial", compensation="residual", **late):
        frames(pipe, **call)
    before, real = ([each for each in checked if each.is_meta == meta] for meta in (True, False))
    assert before and {(each.shape, each.dtype) for each in before} == {(each.shape, each.dtype) for each in real}
    needed, calls = state_bytes(real[0]) * 2 / 1e6, attends(pipe)
    for share in (0.99, 1):
        limited = {"name": "residual", "max_state_mb": needed * share}
        with vidaccel.enable(pipe, "radial", compensation=limited, **late):
            if share == 1:
                frames(pipe, **call)
                continue
            for _ in range(2):
                with pytest.raises(ValueError, match="in 2 layers of transformer for each guidance branch, more than"):
                    frames(pipe, **call)
        assert not calls
    assert calls


@pytest.mark.parametrize(
    "dense", [{"min_tokens": 10_000}, {"schedule": {"dense_first_steps": 1.0}}, {"schedule": {"dense_first_layers": 2}},
              {"schedule": {"dense_first_steps": 2, "dense_last_steps": 2}}, {"min_tokens": None}],
)  # fmt: skip
def test_memory_is_not_asked_for_where_all_stays_dense(dense: dict[str, Any]) -> None:
    make, call = PIPES["wan"]
    pipe = make()
    nothing = {"name": "residual", "max_state_mb": 0}
    with vidaccel.enable(pipe, "radial", compensation=nothing, **SETTING | dense) as session:
        frames(pipe, **call)
    assert session.summary().to_dict()["calls"]["sparse"] == 0


def test_each_expert_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, seen = tiny.tiny_wan(two_experts=True), list[tuple[str, int]]()
    monkeypatch.setattr(Residual, "check", lambda self, query, site: seen.append((site.expert, site.step)))
    with vidaccel.enable(pipe, "radial", compensation="residual", **SETTING):
        tiny.generate(pipe)
    assert {expert for expert, _ in seen} == {"transformer", "transformer_2"} and seen[0] == ("transformer", 0)


def test_queries_have_the_type_that_autocast_gives() -> None:
    transformer = tiny.tiny_wan_transformer()
    call = Call((torch.zeros(2, 16, 5, 8, 12),), {})
    query = Wan().queries(transformer, call, LAYOUT)
    assert query.shape == (2, LAYOUT.tokens, 2, 64) and query.is_meta and query.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert Wan().queries(transformer, call, LAYOUT).dtype == torch.bfloat16


@pytest.mark.parametrize("family", PIPES)
def test_in_a_pipeline(family: str) -> None:
    make, call = PIPES[family]
    pipe = make()
    stock = frames(pipe, **call)
    every_step = {"name": "residual", "refresh": 1}
    with vidaccel.enable(pipe, "radial", compensation=every_step, **SETTING) as session:
        np.testing.assert_allclose(frames(pipe, **call), stock, atol=1e-5)
        density = session.summary().to_dict()["density"]
        assert density["video_density"] == density["density"] == density["all_calls"] == 1
    with vidaccel.enable(pipe, "radial", compensation={"name": "residual", "refresh": 2}, **SETTING) as session:
        made = frames(pipe, **call)
        assert np.abs(made - stock).max() > 1e-5
        assert np.array_equal(frames(pipe, **call), made)
        assert session.summary().to_dict()["density"]["video_density"] < 1
    assert np.array_equal(frames(pipe, **call), stock)
