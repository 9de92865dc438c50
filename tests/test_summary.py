"""What a summary says of a run: densities by step, layer and head, counted apart, and how often plans were reused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.methods.online import site_of
from tests.planning.no_sync import NoSync
from tests.test_session import SPARSE, Sites
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.methods.dynamic import Dynamic
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site
from vidaccel.summary import Tally

LAYOUTS = [TokenLayout(3, 4, 5), TokenLayout(3, 4, 5, text_before=7), TokenLayout(3, 4, 5, text_after=9)]


def random_plan(layout: TokenLayout, patterns: int, orders: int, keys: int) -> AttentionPlan:
    """A plan of random blocks in random orders, as many of each as given; 0 is none."""
    generator = torch.Generator().manual_seed(patterns + 10 * orders + 100 * keys)
    tiles = -(-layout.tokens // 16)
    blocks = torch.rand(patterns, tiles, tiles, generator=generator) < 0.5

    def order(rows: int) -> Tensor | None:
        drawn = [torch.randperm(layout.tokens, generator=generator) for _ in range(rows)]
        return torch.stack(drawn).int() if rows else None

    mask = BlockMask.from_blocks(blocks, 16, 16, layout.tokens, layout.tokens)
    return AttentionPlan(mask, order(orders), order(keys))


def pairs_by_hand(plan: AttentionPlan, layout: TokenLayout, lanes: int) -> Tensor:
    """Share of video-video pairs of each lane, from the whole mask in the tokens' own order."""
    assert plan.mask is not None
    masks, natural = plan.mask.to_dense(), torch.arange(layout.tokens)[None]
    queries, keys = (natural if order is None else order.long() for order in (plan.query_order, plan.key_order))
    found = []
    for lane in range(lanes):
        kept = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
        rows, columns = queries[lane % len(queries)], keys[lane % len(keys)]
        kept[rows[:, None], columns] = masks[lane % len(masks)]
        video = slice(layout.video_start, layout.video_end)
        found.append(kept[video, video].double().mean())
    return torch.stack(found)


@pytest.mark.parametrize(("patterns", "orders", "keys"), [(1, 0, 0), (6, 0, 0), (6, 6, 6), (1, 6, 6), (6, 1, 0),
                                                         (2, 0, 2), (1, 4, 0)])  # fmt: skip
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_densities_of_lanes(layout: TokenLayout, patterns: int, orders: int, keys: int) -> None:
    plan, lanes = random_plan(layout, patterns, orders, keys), max(patterns, orders, keys)
    found = plan.video_densities(layout)
    torch.testing.assert_close(found, pairs_by_hand(plan, layout, lanes))
    assert plan.density(layout).video_density == pytest.approx(float(found.mean()))


def test_densities_are_counted_once_for_each_plan_and_grid_and_wait_for_nothing() -> None:
    layout, other = LAYOUTS[1], TokenLayout(3, 4, 5, text_after=7)
    plan = random_plan(layout, 2, 0, 2)
    assert plan.densities(layout) is plan.densities(layout) and plan.video_densities(layout) is not None
    assert not torch.equal(plan.video_densities(layout), plan.video_densities(other))
    halved = dataclasses.replace(plan, mask=BlockMask.full(layout.tokens, layout.tokens, 16, 16))
    assert halved.video_densities(layout).tolist() == [1.0, 1.0]
    meta = plan.to("meta")
    with NoSync():
        meta.densities(layout)
    assert meta.video_densities(layout).device.type == "meta"
    assert AttentionPlan().video_densities(layout).tolist() == [1.0]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


def test_densities_of_a_static_method(pipe: Any) -> None:
    with vidaccel.enable(pipe, Sites(dense_layer=1), **SPARSE) as session:
        tiny.generate(pipe, output_type="latent")
        summary = session.summary()
    tokens = session._tally.layout.tokens if session._tally.layout else 0
    achieved = summary.densities()
    assert achieved is not None
    layer = [16 * (1 + step % 2) / tokens for step in range(4)]
    assert achieved.by_layer == {"transformer": pytest.approx((sum(layer) / 4, 1.0))}
    assert achieved.by_step == pytest.approx([(each + 1) / 2 for each in layer])
    assert achieved.by_head["transformer"][0] == pytest.approx((sum(layer) / 4,) * 2)
    # Mean of the mean is the mean that the summary has always told.
    assert sum(achieved.by_step) / 4 == pytest.approx(summary.to_dict()["density"]["video_density"])
    assert summary.to_dict()["plans"] == {"made": 0, "reused": 0} and "plans made" not in str(summary)
    assert "video density by step 0.57 -> 0.63, by layer 0.20 (layer 0) to 1.00 (layer 1)" in str(summary)


@dataclass(frozen=True)
class Uneven(Dynamic):
    """Head h of layer l of a batch row keeps 16 * (1 + h + 2 l) keys, one block more in the other branch."""

    name: ClassVar[str] = "uneven"
    block: int = 16

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        batch, tokens, heads, _ = query.shape
        full = BlockMask.full(tokens, tokens, 16, 16)
        each = [16 * (1 + lane % heads + 2 * site.layer + (site.branch == "uncond")) for lane in range(batch * heads)]
        ends = torch.tensor(each).repeat_interleave(full.tiles)
        offsets = full.offsets + torch.arange(batch * heads, dtype=torch.int32)[:, None] * full.tiles
        ranges = torch.stack([torch.zeros_like(ends), ends], 1).int()
        return AttentionPlan(dataclasses.replace(full, offsets=offsets, ranges=ranges, _copies={}))


def test_densities_of_heads_and_how_often_plans_are_reused(pipe: Any) -> None:
    schedule = {"dense_first_steps": 1, "dense_first_layers": 0}
    with vidaccel.enable(pipe, Uneven(refresh=2), min_tokens=0, schedule=schedule) as session:
        tiny.generate(pipe, output_type="latent", prompt=["a", "red"], negative_prompt=["blurry"] * 2)
        summary, values = session.summary(), session.summary().to_dict()
    achieved = summary.densities()
    assert achieved is not None
    # The mean over two branches adds half a block.
    expected = [[16 * (1.5 + head + 2 * layer) / 120 for head in range(2)] for layer in range(2)]
    assert [list(layer or ()) for layer in achieved.by_head["transformer"]] == [pytest.approx(row) for row in expected]
    assert achieved.by_layer["transformer"] == pytest.approx([sum(row) / 2 for row in expected])
    whole = sum(map(sum, expected)) / 4
    assert achieved.by_step == (None, *([pytest.approx(whole)] * 3))
    assert values["density"]["video_density"] == pytest.approx(whole)
    # Steps 1 and 2 share a plan, 3 has its own: of 2 layers in 2 branches.
    assert values["plans"] == {"made": 8, "reused": 4} and "plans made 8, reused 4" in str(summary)
    assert values["densities"] == json.loads(json.dumps(values["densities"])) == {
        "by_step": [None, *[round(whole, 4)] * 3],
        "by_layer": {"transformer": [round(sum(row) / 2, 4) for row in expected]},
        "by_head": {"transformer": [[round(each, 4) for each in row] for row in expected]},
    }  # fmt: skip


def test_experts_are_told_apart() -> None:
    pipe = tiny.tiny_wan(two_experts=True)
    with vidaccel.enable(pipe, Uneven(), **SPARSE) as session:
        tiny.generate(pipe, output_type="latent")
        achieved, text = session.summary().densities(), str(session.summary())
    assert achieved is not None and set(achieved.by_layer) == {"transformer", "transformer_2"}
    assert None not in achieved.by_step and len(achieved.by_step) == 4
    assert "(layer 0 of transformer) to" in text


def test_records_leave_out_heads_of_large_models_and_experts_may_differ_in_heads() -> None:
    tally, layout = Tally(), LAYOUTS[0]
    lanes = torch.linspace(0.1, 0.5, 40, dtype=torch.float64)
    for layer in range(40):
        tally.record(dataclasses.replace(site_of(layout, 0, layer), layers=40), lanes, 40)
    tally.record(dataclasses.replace(site_of(layout, 1), expert="other", layers=1), torch.ones(24).double(), 12)
    achieved = tally.achieved()
    assert achieved is not None and achieved.by_step == (pytest.approx(0.3), 1.0)
    values = achieved.to_dict()
    assert values["by_head"] is None and values["by_layer"] == {"transformer": [0.3] * 40, "other": [1.0]}
    assert achieved.by_head["transformer"][7] == pytest.approx(tuple(lanes.tolist()))


def test_before_a_run_there_is_nothing_to_tell(pipe: Any) -> None:
    with vidaccel.enable(pipe, Uneven(), **SPARSE) as session:
        assert session.summary().densities() is None and session.summary().to_dict()["densities"] is None
        assert "density" not in str(session.summary()).split("\n", 1)[1]
