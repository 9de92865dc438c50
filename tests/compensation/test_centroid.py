"""Skipped keys through means of groups: against attention by hand, and equal to dense attention where groups are."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests.compensation.cases import BATCH, GRIDS, HEAD_DIM, HEADS, LENGTHS, Recorder, by_hand, clusters, dense, plans
from tests.methods.online import PIPES, SETTING, site_of, states
from tests.pipelines.cases import frames
from tests.planning.no_sync import NoSync
from vidaccel.compensation import compensation
from vidaccel.compensation.centroid import Centroid
from vidaccel.layout import TokenLayout
from vidaccel.plan import AttentionPlan, ExtraKeys

KINDS = list(plans(GRIDS[0]))
CASES = [(layout, None) for layout in GRIDS] + [(GRIDS[2], LENGTHS)]


def attend(
    plan: AttentionPlan, tensors: list[Tensor], lengths: Tensor | None = None, state: dict[str, Any] | None = None,
    chosen: Centroid | None = None,
) -> tuple[Tensor, AttentionPlan]:  # fmt: skip
    recorder = Recorder(*tensors, lengths)
    out, ran = (chosen or Centroid()).attend(plan, *tensors, lengths, site_of(GRIDS[0]), {} if state is None else state,
                                             recorder)  # fmt: skip
    assert recorder.ran == [ran]
    return out, ran


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layout", "lengths"), CASES, ids=lambda item: "padded" if item is LENGTHS else str(item))
def test_skipped_keys_are_their_groups_means(layout: TokenLayout, lengths: Tensor | None, kind: str) -> None:
    plan, tensors = plans(layout)[kind], states(layout, batch=BATCH, heads=HEADS, head_dim=HEAD_DIM)
    out, ran = attend(plan, tensors, lengths)
    torch.testing.assert_close(out, by_hand(plan, *tensors, lengths), atol=1e-5, rtol=0)
    assert ran.mask is plan.mask and ran.extra is not None and ran.densities(layout)[0] == plan.densities(layout)[0]
    # Padding is worth nothing, whatever lies there.
    if lengths is not None:
        for each in tensors[1:]:
            each[0, int(lengths[0]) :] = 1e4
        torch.testing.assert_close(attend(plan, tensors, lengths)[0], out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layout", "lengths"), CASES, ids=lambda item: "padded" if item is LENGTHS else str(item))
def test_equal_keys_in_each_group_make_it_dense_attention(
    layout: TokenLayout, lengths: Tensor | None, kind: str
) -> None:
    plan = plans(layout)[kind]
    query, key, value = states(layout, batch=BATCH, heads=HEADS, head_dim=HEAD_DIM)
    for each in (key, value):
        _level(plan, each)
    expected = dense(query, key, value, lengths)
    out, _ = attend(plan, [query, key, value], lengths)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    sparse = Recorder(query, key, value, lengths)(plan)[0]
    assert (sparse - expected).abs().max() > 0.01


def _level(plan: AttentionPlan, each: Tensor) -> None:
    """Give all tokens of a group the first one's state."""
    assert plan.mask is not None
    tokens = plan.mask.keys
    for lane in range(BATCH * HEADS):
        order = torch.arange(tokens) if plan.key_order is None else plan.key_order[lane % len(plan.key_order)].long()
        borders = list(range(0, tokens, plan.mask.key_block)) + [tokens]
        if plan.key_groups is not None:
            borders = plan.key_groups[lane % len(plan.key_groups)].tolist()
        b, h = divmod(lane, HEADS)
        for first, last in itertools.pairwise(borders):
            each[b, order[first:last], h] = each[b, order[first : first + 1], h]


def test_a_tile_does_not_see_the_mean_of_what_it_attends_to() -> None:
    layout = GRIDS[0]
    plan = plans(layout)["radial"]
    ran = attend(plan, states(layout, batch=BATCH, heads=HEADS, head_dim=HEAD_DIM))[1]
    assert plan.mask is not None and ran.extra is not None
    kept = torch.nn.functional.pad(plan.mask.to_dense()[0, ::16], (0, -layout.tokens % 16), value=True)
    skipped = ~kept.unflatten(1, (-1, 16))
    assert torch.equal(ran.extra.bias[0], skipped.sum(2).float().log())
    assert ran.extra.bias.isinf().any() and ran.extra.key.dtype == torch.float32


def test_bias_is_kept_while_a_plan_is_and_means_are_not() -> None:
    layout, state = GRIDS[0], {}  # type: tuple[TokenLayout, dict[str, Any]]
    one, other = plans(layout)["radial"], clusters(layout, 1)
    seen = []
    for plan in (one, one, one, other, one):
        tensors = states(layout, batch=BATCH, heads=HEADS, head_dim=HEAD_DIM, seed=len(seen))
        out, ran = attend(plan, tensors, state=state)
        torch.testing.assert_close(out, by_hand(plan, *tensors, None), atol=1e-5, rtol=0)
        assert ran.extra is not None
        seen.append(ran.extra.bias)
    assert seen[1] is seen[2] and seen[0] is not seen[1] and seen[4] is not seen[2]


@pytest.mark.parametrize(("kept_mb", "lengths"), [(0.0, None), (16.0, torch.tensor([200, 210]))])
def test_bias_is_made_anew_where_it_is_too_large_or_padding_may_change(kept_mb: float, lengths: Tensor | None) -> None:
    layout, state = GRIDS[0], {}  # type: tuple[TokenLayout, dict[str, Any]]
    plan, chosen = plans(layout)["radial"], Centroid(kept_mb)
    for _ in range(3):
        attend(plan, states(layout, batch=BATCH, heads=HEADS, head_dim=HEAD_DIM), lengths, state, chosen)
    assert list(state) == ["plan"]


def test_nothing_waits() -> None:
    layout, on_meta = GRIDS[2], LENGTHS.to("meta")
    tensors = [each.to("meta") for each in states(layout, batch=BATCH, heads=HEADS, head_dim=HEAD_DIM)]

    def run(plan: AttentionPlan, return_lse: bool = False) -> tuple[Tensor, None]:
        return tensors[0], None

    for plan in plans(layout).values():
        moved = plan.to("meta")
        with NoSync():
            for lengths in (None, on_meta):
                Centroid().attend(moved, *tensors, lengths, site_of(layout), {}, run)


def test_refuses_extra_keys_and_bad_options() -> None:
    layout = GRIDS[0]
    tensors, plan = states(layout, heads=HEADS), plans(layout)["radial"]
    assert plan.mask is not None
    extra = ExtraKeys(tensors[1][:, :4], tensors[2][:, :4], torch.zeros(1, plan.mask.tiles, 4))
    with pytest.raises(ValueError, match="is for plans without extra keys"):
        attend(replace(plan, extra=extra), tensors)
    for bad in (-1.0, float("nan"), "16", True):
        with pytest.raises(ValueError, match="kept_mb .* is not a number of at least 0"):
            compensation({"name": "centroid", "kept_mb": bad})
    assert compensation({"name": "centroid", "kept_mb": 2}) == Centroid(2)


@pytest.mark.parametrize("family", PIPES)
@pytest.mark.parametrize(("name", "density"), [("radial", 0.7), ("svg", 0.3)])
def test_in_a_pipeline(name: str, density: float, family: str) -> None:
    make, call = PIPES[family]
    pipe = make()
    stock = frames(pipe, **call)
    with vidaccel.enable(pipe, name, density=1.0, compensation="centroid", **SETTING):
        np.testing.assert_allclose(frames(pipe, **call), stock, atol=1e-5)
    with vidaccel.enable(pipe, name, density=density, **SETTING):
        plain = frames(pipe, **call)
    with vidaccel.enable(pipe, name, density=density, compensation="centroid", **SETTING) as session:
        made = frames(pipe, **call)
        assert not np.array_equal(made, plain)
        assert np.array_equal(frames(pipe, **call), made)
        assert session.summary().to_dict()["compensation"] == {"name": "centroid", "options": {"kept_mb": 16.0}}
        assert str(session.summary()).startswith(f"{name}(") and ")+centroid(kept_mb=16.0) on" in str(session.summary())
    assert np.array_equal(frames(pipe, **call), stock)
