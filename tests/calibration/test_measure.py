"""The batched measurement against `output_errors`, which computes each candidate by itself, and against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidaccel.calibration import measure
from vidaccel.calibration.factors import factors_of
from vidaccel.calibration.library import tiles_of
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern, orders, plan_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.compose import Union
from vidaccel.patterns.grid import Grid
from vidaccel.patterns.neighborhood import Neighborhood
from vidaccel.patterns.simple import Skip
from vidaccel.patterns.sink import Sink
from vidaccel.planning.sampled import output_errors

BLOCK = 8
LAYOUTS = [TokenLayout(3, 5, 7), TokenLayout(3, 5, 7, text_before=11), TokenLayout(3, 5, 7, text_after=13)]
PATTERNS: list[Pattern] = [
    Skip(), Band(0.1), Band(0.1, "HWF"), Band(0.05, orders.HILBERT), Union((Band(0.05), Sink(0.1))), Grid(),
    Neighborhood(0.4, 0.5, 0.5, (1, 2, 4)),
]  # fmt: skip


def states(layout: TokenLayout) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, layout.tokens, 16).unbind(0)
    return query, key, value


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda each: f"{each.name}-{each.order}")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("padded", [0, 5])
def test_errors_are_those_of_output_errors(layout: TokenLayout, pattern: Pattern, padded: int) -> None:
    query, key, value = states(layout)
    padded = padded if layout.text_after else 0
    value[len(value) - padded :] = float("nan")  # what stands in padding must not count
    lengths = torch.tensor([layout.tokens - padded])
    rows = measure.sample_rows(layout, 20, torch.Generator().manual_seed(0))
    weights = measure.weights(query[rows], key, 0.25, lengths[0])
    order = orders.sequence(layout, pattern.order)
    sums = measure.block_sums(weights, measure.projected(value, None), order, BLOCK)
    kept = pattern.blocks(layout, BLOCK)[tiles_of(layout, pattern.order, rows, BLOCK)]
    error, norm = measure.errors(sums, kept[None])
    plan = plan_of([pattern], layout, BLOCK)
    lanes = [each[None, :, None] for each in (query, key, value.nan_to_num(0.0))]
    expected = output_errors(*lanes, rows, [plan], scale=0.25, key_lengths=lengths.int())
    torch.testing.assert_close(error.float(), expected.error[0, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.float(), expected.norm[0, 0], rtol=1e-4, atol=1e-5)
    assert error > 0


def test_factors_give_lengths_of_projected_outputs() -> None:
    weight, out = torch.randn(24, 3 * 8), torch.randn(5, 3, 8)
    factors = factors_of(weight, heads=3)
    for head in range(3):
        expected = out[:, head] @ weight[:, head * 8 : (head + 1) * 8].T
        torch.testing.assert_close((out[:, head] @ factors[head].T).norm(dim=1), expected.norm(dim=1))


def test_mass_between_cells() -> None:
    layout, side = TokenLayout(3, 5, 7, text_before=4), 6
    query, key, _ = states(layout)
    rows = measure.sample_rows(layout, 30, torch.Generator().manual_seed(0))
    weights = measure.weights(query[rows], key, 0.25, None)
    mass, count, keys = measure.mass(weights, rows, measure.cells_of(layout, side), layout, side)
    softmax = (query[rows] @ key.T * 0.25).softmax(1)[:, 4:].double()
    torch.testing.assert_close(keys, softmax.sum(0), rtol=1e-5, atol=1e-6)
    for at, name in enumerate(orders.AXES):
        expected, seen = torch.zeros(side, side, dtype=torch.float64), torch.zeros(side, dtype=torch.float64)
        place = {int(token): position for position, token in enumerate(orders.video_order(layout, name))}
        for row, shares in zip(rows.tolist(), softmax, strict=True):
            mine = place[row - 4] * side // 105
            seen[mine] += 1
            for token, share in enumerate(shares):
                expected[mine, place[token] * side // 105] += share
        torch.testing.assert_close(mass[at], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(count[at], seen)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_mass_by_axis_is_that_of_token_pairs(layout: TokenLayout) -> None:
    query, key, _ = states(layout)
    rows = measure.sample_rows(layout, 30, torch.Generator().manual_seed(0))
    weights = measure.weights(query[rows], key, 0.25, None)
    shares = weights / weights.sum(1, keepdim=True)
    expected = [torch.zeros(size, size, dtype=torch.float64) for size in (3, 5, 7)]
    for row, share in zip((rows - layout.video_start).tolist(), shares, strict=True):
        for token in range(105):
            for axis, size, step in ((0, 3, 35), (1, 5, 7), (2, 7, 1)):
                expected[axis][row // step % size, token // step % size] += share[layout.video_start + token]
    found = measure.by_axis(weights, rows, layout)
    torch.testing.assert_close(found, torch.cat([each.flatten() for each in expected]), rtol=1e-5, atol=1e-6)


def test_rows_are_video_spread_over_the_clip() -> None:
    layout = TokenLayout(3, 5, 7, text_before=4, text_after=9)
    rows = measure.sample_rows(layout, 21, torch.Generator().manual_seed(3))
    assert torch.equal((rows - 4) // 5, torch.arange(21))
    every = measure.sample_rows(layout, 1000, torch.Generator())
    assert torch.equal(every, torch.arange(4, 109))
