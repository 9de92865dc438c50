"""The cost model: what it counts, how its coefficients are found, and what it refuses. Nothing here is timed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidaccel import TokenLayout
from vidaccel.costs import CostModel, Counts, default_for, measure
from vidaccel.costs.fit import Sample, fitted, misses, non_negative
from vidaccel.costs.model import COEFFICIENTS
from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys

LAYOUT = TokenLayout(3, 5, 7, text_after=4)
N, BLOCK = LAYOUT.tokens, 16
MODEL = CostModel(1.2, per_range=700.0, per_tile=1800.0, per_token=150.0, per_call=3e4, dense_call=5e4, head_dim=64)
BAD = [
    ({"per_pair": -1.0}, "per_pair=-1.0 of a cost model"),
    ({"per_call": math.nan}, "per_call=nan"),
    ({"per_tile": "1"}, "per_tile='1'"),
    ({"per_range": True}, "per_range=True"),
    ({"head_dim": 0}, "head_dim=0"),
    ({"head_dim": 64.0}, "head_dim=64.0"),
    ({"source": 3}, "source=3"),
    ({"per_head": 1.0}, "has no 'per_head'; it has per_pair, per_range"),
]


def random_mask(patterns: int, seed: int = 0) -> BlockMask:
    """Random blocks with the diagonal, on tokens that end inside a block."""
    count = -(-N // BLOCK)
    blocks = torch.rand(patterns, count, count, generator=torch.Generator().manual_seed(seed)) < 0.4
    return BlockMask.from_blocks(blocks | torch.eye(count, dtype=torch.bool), BLOCK, BLOCK, N, N)


def coefficients(model: CostModel) -> dict[str, float]:
    return {name: getattr(model, name) for name in COEFFICIENTS}


@pytest.mark.parametrize("patterns", [1, 3])
def test_without_overheads_the_cost_is_the_computed_density(patterns: int) -> None:
    plan = AttentionPlan(random_mask(patterns))
    expected = plan.density(LAYOUT).computed_density
    assert CostModel.counted().cost(plan, LAYOUT) == pytest.approx(expected, rel=1e-12)
    assert CostModel.counted().cost(plan, LAYOUT, heads=3) == pytest.approx(expected, rel=1e-12)


def test_extra_keys_count_as_pairs() -> None:
    mask, extra = random_mask(1), torch.randn(1, 5, 2, 64)
    plan = AttentionPlan(mask, extra=ExtraKeys(extra, extra, torch.zeros(1, mask.tiles, 5)))
    assert CostModel.counted().cost(plan) == pytest.approx(plan.density(LAYOUT).computed_density, rel=1e-12)


def test_each_overhead_adds_what_it_says() -> None:
    """Counted by walking the mask, pattern by pattern."""
    mask = random_mask(2)
    order = torch.randperm(N)[None].int()
    pairs = 0
    for start, end in mask.ranges.tolist():
        pairs += BLOCK * -(-(end - start) // BLOCK) * BLOCK
    overhead = MODEL.per_range * len(mask.ranges) + MODEL.per_tile * mask.tiles * 2
    alone = (MODEL.per_pair * pairs + overhead) / (2 * N**2)
    assert MODEL.cost(mask) == pytest.approx(alone)
    ordered = alone + MODEL.per_token / N
    assert MODEL.cost(AttentionPlan(mask, key_order=order)) == pytest.approx(ordered)
    call = (8 * ordered * N**2 + MODEL.per_call) / (8 * N**2 + MODEL.dense_call)
    assert MODEL.cost(AttentionPlan(mask, key_order=order), heads=8) == pytest.approx(call)


def test_slack_of_a_mask_costs_nothing() -> None:
    mask = random_mask(2)
    roomy = dataclasses.replace(mask, ranges=torch.cat([mask.ranges, torch.zeros(9, 2, dtype=torch.int32)]))
    assert MODEL.cost(roomy) == MODEL.cost(mask)


def test_overheads_weigh_more_where_a_pair_is_shorter() -> None:
    mask = random_mask(1)
    pairs = dataclasses.replace(CostModel.counted(), per_pair=MODEL.per_pair).cost(mask)
    assert MODEL.cost(mask, head_dim=32) - pairs == pytest.approx(2 * (MODEL.cost(mask, head_dim=64) - pairs))
    assert MODEL.cost(mask, head_dim=64) == MODEL.cost(mask)


def test_a_dense_plan_is_dense_and_has_nothing_to_count() -> None:
    assert MODEL.cost(AttentionPlan()) == 1.0
    with pytest.raises(ValueError, match="dense plan"):
        Counts.of(AttentionPlan())


def test_a_plan_for_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=f"a plan for {N} tokens does not fit the grid 1x2x3 of 6 tokens"):
        MODEL.cost(random_mask(1), TokenLayout(1, 2, 3))


def test_short_ranges_cost_more_than_long_ones_of_the_same_density() -> None:
    count = N // BLOCK
    index = torch.arange(count)
    comb, band = (index % 2 == 0).expand(1, count, count), (index < -(-count // 2)).expand(1, count, count)
    one, other = (BlockMask.from_blocks(each, BLOCK, BLOCK, count * BLOCK, count * BLOCK) for each in (comb, band))
    assert CostModel.counted().cost(one) == CostModel.counted().cost(other)
    assert MODEL.cost(one) > MODEL.cost(other)


@given(st.integers(1, 200_000), st.floats(0, 1), st.floats(0, 1), st.sampled_from([16, 64, 128]))
def test_what_is_expected_rises_with_density_and_matters_less_the_longer_the_clip(
    tokens: int, density: float, other: float, block: int
) -> None:
    low, high = (
        MODEL.share(Counts.expected(tokens, each, block), heads=4) for each in sorted((density, other))
    )  # fmt: skip
    assert 0 < low <= high
    longer = MODEL.share(Counts.expected(2 * tokens * block, density, block))
    assert longer <= MODEL.share(Counts.expected(tokens * block, density, block)) + 1e-12


def test_what_is_expected_of_a_full_mask_is_what_it_counts() -> None:
    assert Counts.expected(256, 1.0, 64) == Counts.of(BlockMask.full(256, 256, 64, 64))


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_shipped_coefficients_let_long_ranges_be_sparse_and_short_ones_dense(device: str) -> None:
    model = default_for(device)
    assert model.share(Counts.expected(75_600, 0.25), heads=40, head_dim=128) < 0.4
    # A quarter of 1,521 tokens in every other block of 16.
    assert model.share(Counts(1521, 1521**2 / 4, 96 * 48, 96), heads=4, head_dim=64) > 1
    # The whole mask is about what dense attention is.
    assert 0.5 < model.share(Counts.expected(75_600, 1.0), heads=40, head_dim=128) < 2


def test_a_guess_says_so_and_a_device_without_coefficients_is_counted() -> None:
    assert "never measured" in default_for("cuda").source and "never measured" not in default_for("cpu").source
    assert default_for("meta") == CostModel.counted()


def test_json_and_back() -> None:
    assert CostModel.of(json.loads(json.dumps(MODEL.to_dict()))) == MODEL
    assert CostModel.of({}) == CostModel()


@pytest.mark.parametrize(("values", "message"), BAD, ids=[message.split("=")[0] for _, message in BAD])
def test_bad_coefficients_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostModel.of(values)


def test_the_fit_finds_the_coefficients_behind_times() -> None:
    heads, pair = 4, 3e-9
    samples, dense = [], []
    for tokens in (2048, 512, 128):
        dense.append((tokens, pair * (heads * tokens**2 + MODEL.dense_call)))
        for plan in measure.plans(tokens, 16, heads):
            counts = Counts.of(plan)
            share = MODEL.share(counts, heads=heads)
            samples.append(Sample(counts, share * dense[-1][1]))
    found = fitted(samples, dense, heads, 64, "times made up")
    assert coefficients(found) == pytest.approx(coefficients(MODEL), rel=1e-6)
    assert misses(found, samples, dense, heads) == pytest.approx({"median_error": 0, "largest_error": 0}, abs=1e-6)
    assert (found.head_dim, found.source) == (64, "times made up")


def test_times_that_do_not_grow_are_refused() -> None:
    samples = [Sample(Counts.expected(tokens, 0.5, 16), 1.0) for tokens in (64, 128)]
    with pytest.raises(ValueError, match="do not grow"):
        fitted(samples, [(64, 4.0), (128, 1.0)], 1, 64, "")


@given(
    st.lists(
        st.lists(st.integers(0, 40).map(lambda number: number / 4), min_size=3, max_size=3), min_size=4, max_size=6
    )
)
def test_the_least_squares_of_no_negative_number_is_near_none_that_is_better(rows: list[list[float]]) -> None:
    table, values = np.array(rows), np.arange(1.0, len(rows) + 1)
    found = non_negative(table, values)
    assert found.shape == (3,) and (found >= 0).all() and np.isfinite(found).all()

    def error(x: np.ndarray) -> float:
        return float(np.square(table @ x / values - 1).sum())

    step = np.eye(3) * 1e-3
    assert all(error(found) <= error(np.maximum(found + sign * each, 0)) + 1e-6 for each in step for sign in (1, -1))


class FakeClock:
    """Seconds of a machine that follows a model exactly: asked call by call, in the order of `measure.times`."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.asked, self.ran = seconds, 0, 0

    def __call__(self, call: Callable[[], object], device: torch.device) -> float:
        assert device.type == "cpu"
        if self.asked < len(self.seconds):
            call()
            self.ran += 1
        self.asked += 1
        return self.seconds[(self.asked - 1) % len(self.seconds)]


def test_measuring_times_every_call_in_turns_and_fits_the_medians() -> None:
    heads, tokens, block, pair = 2, 512, 16, 1e-9
    seconds = []
    for size in (512, 128, 32):
        dense = pair * (heads * size**2 + MODEL.dense_call)
        shares = [MODEL.share(Counts.of(plan), heads=heads) for plan in measure.plans(size, block, heads)]
        seconds += [dense, *(share * dense for share in shares)]
    clock = FakeClock(seconds)
    found = measure.measured(torch.device("cpu"), torch.float32, heads, 64, block, tokens, clock)
    assert clock.ran == len(seconds) and clock.asked == len(seconds) * measure.REPEATS
    assert coefficients(found) == pytest.approx(coefficients(MODEL), rel=1e-5)
    assert found.source == "measured on a cpu device: 2 heads of 64, 512 tokens, blocks of 16, float32; off by 0%"


def test_measuring_on_this_machine_gives_a_model() -> None:
    found = CostModel.measured("cpu", torch.float32, heads=1, head_dim=64, block=16, tokens=512)
    assert found.per_pair + found.per_tile + found.per_range + found.per_call > 0
    assert math.isfinite(found.cost(BlockMask.full(512, 512), heads=1))


def test_too_few_tokens_to_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens=511 are too few to tell costs by: at least 32 blocks of 16"):
        CostModel.measured("cpu", torch.float32, heads=1, head_dim=64, block=16, tokens=511)


def test_heads_and_tiles_add_up_to_the_call() -> None:
    """Of a plan with an order and extra keys too, whose last tile is not whole."""
    order, extra = torch.arange(N, dtype=torch.int32)[None], torch.randn(1, 5, 3, 64)
    mask = random_mask(3)
    for plan in (
        AttentionPlan(mask),
        AttentionPlan(mask, order, order),
        AttentionPlan(mask, extra=ExtraKeys(extra, extra, torch.zeros(3, mask.tiles, 5))),
    ):
        counts = Counts.of(plan)
        tiles, heads = MODEL.by_tile(plan, 32), MODEL.by_head(plan, 3, 32)
        assert tiles.shape == (3, mask.tiles) and len(heads) == 3
        assert float(tiles.sum()) / 3 / N**2 == pytest.approx(MODEL.share(counts, head_dim=32), rel=1e-9)
        assert sum(heads) / 3 == pytest.approx(MODEL.share(counts, head_dim=32), rel=1e-9)


def test_what_each_head_costs() -> None:
    keep = torch.zeros(2, 4, 4, dtype=torch.bool)
    keep[0], keep[1, :, 0] = True, True
    mask = BlockMask.from_blocks(keep, 16, 16, 64, 64)
    assert CostModel.counted().by_head(mask, 2) == [1.0, 0.25]
    model = CostModel(2.0, per_range=10.0, per_tile=3.0, head_dim=64)
    assert model.by_head(AttentionPlan(mask), 2) == [(2 * 4096 + 4 * 10 + 4 * 3) / 4096, (2 * 1024 + 52) / 4096]
    assert model.by_head(BlockMask.full(64, 64, 16, 16), 3) == pytest.approx([2 + 52 / 4096] * 3)
    assert model.by_head(AttentionPlan(), 2) == [1.0, 1.0]
    with pytest.raises(ValueError, match="a plan of 2 patterns is not one for 3 heads"):
        model.by_head(mask, 3)
    with pytest.raises(ValueError, match="no tiles and no ranges"):
        model.by_tile(AttentionPlan())
