"""Predicted steps: by hand where a hand can, against published runs, and what they must do when a machine changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vidaccel.costs import CostModel
from vidaccel.eval.sizes import REAL_SIZES, ModelSize
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import families
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.scale import Assumed, Degrees, Dense, Even, Machine, Planned, choices, predict
from vidaccel.scale.chosen import attention_of, model_size, planned
from vidaccel.scale.machine import LINKS, link_of
from vidaccel.scale.predict import linear_flop

TOY = ModelSize("toy", "wan", TokenLayout(4, 8, 8), heads=4, head_dim=16, layers=3, passes=2, hidden=96, cross_tokens=5)
JOINT = dataclasses.replace(TOY, layout=TokenLayout(4, 8, 8, text_after=10), hidden=None, cross_tokens=0)
FREE = Machine(1.0, link_of("1e15"), link_of("1e15"), 8, Assumed(0.5, 0.25, 1.0, 0.0))
COUNTED = CostModel.counted()


def test_one_gpu_by_hand() -> None:
    found = predict(TOY, Degrees(), FREE, Dense(), COUNTED)
    weights = 256 * (6 * 64**2 + 2 * 64 * 96) + 2 * 5 * 64**2
    assert linear_flop(TOY, Degrees()) == 3 * (2 * weights + 4 * 256 * 5 * 64)
    assert found.linear == pytest.approx(2 * 3 * (2 * weights + 4 * 256 * 5 * 64) / 0.25e12)
    assert found.attention == pytest.approx(2 * 3 * 4 * 256**2 * 64 / 0.5e12)
    assert found.exchange == found.ring == found.gather == 0 and found.seconds == found.linear + found.attention
    half = predict(TOY, Degrees(), FREE, Even(0.5), COUNTED)
    assert half.attention == pytest.approx(found.attention / 2, rel=1e-6) and half.linear == found.linear


@pytest.mark.parametrize("degrees", [Degrees(1, 1, 4), Degrees(2, 1, 2), Degrees(1, 4, 1), Degrees(2, 2, 1)], ids=str)
def test_what_divides_is_divided(degrees: Degrees) -> None:
    """Where exchanges are free, four GPUs take a quarter; text and what there is once stay."""
    one, four = (predict(TOY, each, FREE, Dense(), COUNTED) for each in (Degrees(), degrees))
    assert four.attention == pytest.approx(one.attention / 4)
    whole = 3 * 2 * 2 * 5 * 64**2 * 2 / 0.25e12
    assert four.linear - whole / degrees.guidance == pytest.approx((one.linear - whole) / 4)
    joint = [predict(JOINT, each, FREE, Dense(), COUNTED) for each in (Degrees(), degrees)]
    assert joint[1].linear > joint[0].linear / 4


def test_uneven_heads_and_tokens_wait_for_the_most() -> None:
    one, three = (predict(TOY, Degrees(1, 1, wide), FREE, Dense(), COUNTED) for wide in (1, 3))
    assert three.attention == pytest.approx(one.attention / 2) and three.load.imbalance == pytest.approx(1.5)
    assert linear_flop(TOY, Degrees(1, 1, 3)) > linear_flop(TOY, Degrees()) / 3


def test_exchanges_cost_bytes_and_latency() -> None:
    slow = dataclasses.replace(FREE, link=link_of("0.001"), network=link_of("0.0001"), per_node=2,
                               assumed=Assumed(bandwidth=0.5, latency_us=100.0))  # fmt: skip
    near = predict(TOY, Degrees(1, 1, 2), slow, Dense(), COUNTED)
    moved = 2 * 3 * 4 * 128 * 64 * 2 / 2
    assert near.exchange == pytest.approx(moved / 0.5e6 + 2 * 3 * 2 * 100e-6)
    # Of three others, two are on another node, behind a link of a tenth.
    far = predict(TOY, Degrees(1, 1, 4), slow, Dense(), COUNTED)
    moved = 2 * 3 * 4 * 64 * 64 * 2 * 3 / 4
    assert far.exchange == pytest.approx(moved * 2 / 3 / 0.05e6 + 2 * 3 * 2 * 100e-6)
    # Hops of a ring leave the node only where the ring does.
    inside, across = (predict(TOY, Degrees(2, 2, 1), dataclasses.replace(slow, per_node=each), Dense(), COUNTED)
                      for each in (2, 1))  # fmt: skip
    assert across.ring == pytest.approx(10 * inside.ring, rel=0.05) and across.gather > inside.gather > 0


def test_a_ring_may_hide_behind_attention() -> None:
    machine = dataclasses.replace(FREE, link=link_of("0.001"))
    shown, hidden = (
        predict(TOY, Degrees(1, 2, 1), dataclasses.replace(machine, assumed=Assumed(0.5, 0.25, 1.0, 0.0, overlap)),
                Dense(), COUNTED)
        for overlap in (0.0, 1.0)
    )  # fmt: skip
    assert hidden.ring == pytest.approx(shown.ring - shown.attention / 2) and hidden.exchange == shown.exchange


def masks(keep: list[float]) -> AttentionPlan:
    """One pattern a head, each of which keeps its first columns in all rows; blocks of 16."""
    columns = torch.arange(16)[None, None] < torch.tensor([round(16 * share) for share in keep])[:, None, None]
    return AttentionPlan(BlockMask.from_blocks(columns.expand(-1, 16, -1).contiguous(), 16, 16, 256, 256))


def test_heads_are_dealt_by_their_costs() -> None:
    attention = planned([masks([1.0, 1.0, 0.25, 0.25])] * 3, TOY)
    load = attention.load(TOY, Degrees(1, 1, 2), COUNTED)
    assert attention.density == pytest.approx(0.625) and attention.no_ring is None
    assert load.greatest == load.mean == 3 * 1.25 * 256**2 and load.plain == 3 * 2.0 * 256**2
    assert load.imbalance == 1.0 and load.plain_imbalance == pytest.approx(1.6)
    whole = Planned([AttentionPlan(BlockMask.full(256, 256))] * 3, 1.0)
    for degrees in (Degrees(), Degrees(1, 1, 2), Degrees(1, 4, 1), Degrees(1, 2, 2)):
        assert whole.load(TOY, degrees, COUNTED).greatest == Dense().load(TOY, degrees, COUNTED).greatest


def test_stretches_of_a_ring_cost_what_their_rows_do() -> None:
    rows = torch.zeros(1, 16, 16, dtype=torch.bool)
    rows[:, :4], rows[:, 4:, :4] = True, True
    plan = AttentionPlan(BlockMask.from_blocks(rows, 16, 16, 256, 256))
    load = planned([plan] * 3, TOY).load(TOY, Degrees(1, 4, 1), COUNTED)
    assert load.greatest == 3 * 4 * 64 * 256 and load.mean == pytest.approx(3 * (64 * 256 + 192 * 64))


def test_plans_that_permute_do_not_go_round() -> None:
    order = torch.arange(256, dtype=torch.int32)[None]
    plan = AttentionPlan(masks([1.0]).mask, order, order)
    reason = planned([plan] * 3, TOY).no_ring
    assert reason is not None and "permutes" in reason
    able, refused = choices(TOY, 4, reason)
    assert {each.ring for each in able} == {1} and {each.ring for each, _ in refused} == {2, 4}


def test_methods_at_the_sizes_of_real_models() -> None:
    size = model_size("wan2.1-t2v-14b", "5x16x16")
    static = attention_of("radial", size, {"density": 0.5, "block": 16})
    assert isinstance(static, Planned) and static.density == pytest.approx(0.5, abs=0.05) and static.no_ring is None
    dynamic = attention_of("draft", size, {"density": 0.3})
    assert dynamic == Even(0.3, dynamic.no_ring, 128) and "no process has together" in str(dynamic.no_ring)
    with pytest.raises(ValueError, match="unknown model 'sora'; choose wan2.1-t2v-14b"):
        model_size("sora", None)
    assert model_size("hunyuanvideo", "5x16x16").layout == TokenLayout(5, 16, 16, text_after=256)
    assert model_size("wan2.1-t2v-14b", None).layout.video_tokens == 75_600


def test_ways_to_share() -> None:
    wan = model_size("wan2.1-t2v-14b", None)
    able, refused = choices(wan, 8, None)
    assert {(each.guidance, each.ring, each.ulysses) for each in able} == {
        (1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 8, 1), (2, 1, 4), (2, 2, 2), (2, 4, 1),
    } and not refused  # fmt: skip
    assert all(each.gpus == 8 for each in able)
    reasons = {str(degrees): reason for degrees, reason in choices(wan, 64, None)[1]}
    assert reasons["guidance 1 x ring 1 x ulysses 64"] == "there are 40 heads for 64 processes"
    assert "75600 video tokens do not divide by 64" in reasons["guidance 1 x ring 8 x ulysses 8"]
    cog = dict(choices(model_size("cogvideox-5b", None), 2, None)[1])
    assert cog[Degrees(2, 1, 1)] == "the pipeline computes both passes as one batch"
    hunyuan = dict(choices(model_size("hunyuanvideo", None), 2, None)[1])
    assert hunyuan[Degrees(2, 1, 1)] == "a step has one pass"
    with pytest.raises(ValueError, match="0 GPUs cannot"):
        choices(wan, 0, None)


def test_the_sizes_know_what_the_families_know() -> None:
    known = families()
    assert all(size.batched == known[size.family].batched_guidance for size in REAL_SIZES)
    assert all(known[size.family].separate_guidance for size in REAL_SIZES if size.passes > 1 and not size.batched)


# xDiT's report on HunyuanVideo, 720p, 129 frames, 50 steps, seconds of whole runs with Ulysses
# (github.com/xdit-project/xDiT, docs/performance/hunyuanvideo.md).
PUBLISHED = {
    "h100": ({1: 1904.08, 2: 925.04, 4: 514.08, 8: 337.58}, 0.30),
    "h20": ({1: 6639.17, 2: 3400.55, 4: 1762.86, 8: 940.97}, 0.14),
    "l20": ({1: 6043.88, 2: 3271.44, 4: 2080.05}, 0.25),
}


@pytest.mark.parametrize("gpu", PUBLISHED)
def test_published_runs(gpu: str) -> None:
    """With one speed that fits the run on one GPU. Whole runs decode, too, which only one GPU does there."""
    runs, most = PUBLISHED[gpu]
    seconds = {gpus: each / 50 for gpus, each in runs.items()}
    size = next(each for each in REAL_SIZES if each.family == "hunyuanvideo")
    machine = Machine.of(gpu, None, "infiniband", 8, Assumed())
    factor = seconds[1] / predict(size, Degrees(), machine, Dense()).seconds
    slower = dataclasses.replace(machine, tflops=machine.tflops / factor)
    for gpus in list(seconds)[1:]:
        found = predict(size, Degrees(1, 1, gpus), slower, Dense()).seconds
        assert -most < found / seconds[gpus] - 1 < 0.06


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Assumed(attention=0.0), r"attention=0.0 is not a share in \(0, 1\]"),
        (lambda: Assumed(bandwidth=1.5), "bandwidth=1.5"),
        (lambda: Assumed(overlap=-0.1), r"overlap=-0.1 is not a share in \[0, 1\]"),
        (lambda: Assumed(latency_us=-1.0), "latency_us=-1.0"),
        (lambda: Machine(0.0, LINKS["nvlink4"]), "a GPU of 0.0 TFLOP/s"),
        (lambda: Machine(1.0, LINKS["nvlink4"], per_node=0), "0 GPUs in a node"),
        (lambda: Machine.of("k80", None, "ethernet", 8, Assumed()), "unknown GPU 'k80'; choose b200"),
        (lambda: link_of("wire"), "interconnect 'wire' is neither GB/s .*nvlink4"),
        (lambda: link_of("-3"), "interconnect '-3'"),
        (lambda: link_of("nan"), "interconnect 'nan'"),
    ],
)
def test_machines_that_are_none(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
