"""XAttention: its scores and its budgets by hand, what it sees that means do not, presets, and runs in pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.brute import LAYOUTS, Cut, Map, blocks_of, check_nothing_waits, check_plan, natural, refused
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods.antidiagonal import Antidiagonal
from vidaccel.methods.meansim import MeanSim


def antidiagonal_map(query: Tensor, key: Tensor, layout: TokenLayout, stride: int) -> Map:
    """Cells of `stride` tokens: the mean of their antidiagonal, softmax over a row of cells, mean over a block's rows.

    Keys from the end of the video on are absent; a cell that ends early repeats its last token and counts for less.
    """
    end, tokens = layout.video_end, layout.tokens
    scores = (query @ key.T).double() * query.shape[1] ** -0.5
    rows, columns = -(-tokens // stride), -(-end // stride)
    share = torch.tensor([min(stride, end - cell * stride) / stride for cell in range(columns)], dtype=torch.float64)
    weights = []
    for row in range(rows):
        sums = []
        for cell in range(columns):
            pairs = [(min(row * stride + stride - 1 - r, tokens - 1), min(cell * stride + r, end - 1))
                     for r in range(stride)]  # fmt: skip
            sums.append(sum(float(scores[i, j]) for i, j in pairs) / stride)
        each = torch.tensor(sums, dtype=torch.float64).exp() * share
        weights.append(each / each.sum())
    per, blocks = 16 // stride, -(-tokens // 16)
    found = torch.zeros(blocks, blocks, dtype=torch.float64)
    for i in range(blocks):
        inside = [(row, min(stride, tokens - row * stride)) for row in range(i * per, min(rows, (i + 1) * per))]
        mean = torch.stack([weights[row] * count for row, count in inside]).sum(0) / sum(count for _, count in inside)
        for cell in range(columns):
            found[i, cell // per] += mean[cell]
    result: Map = found.tolist()
    return result


@pytest.mark.parametrize("options", [{"density": 0.4, "stride": 8}, {"top_p": 0.5, "stride": 4}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_plan_is_the_definition(layout: TokenLayout, options: dict[str, Any]) -> None:
    chosen = Antidiagonal(block=16, **options)
    cut = Cut.of(layout, natural(layout), 16)
    check_plan(chosen, layout, cut, lambda query, key: antidiagonal_map(query, key, layout, chosen.stride))


def test_keys_that_cancel_in_the_mean_of_a_block_are_seen() -> None:
    """Two keys of opposite signs in one block but not in one cell."""
    layout = TokenLayout(4, 8, 8)
    query, key, value = (each * 0.01 for each in states(layout, heads=1))
    query[..., 0] = 1.0
    key[:, 100, :, 0], key[:, 105, :, 0] = 60.0, -60.0
    sees, misses = (
        blocks_of(each.plan(query, key, value, site_of(layout), {}))[0, :, 100 // 16]
        for each in (Antidiagonal(density=0.15, block=16), MeanSim(density=0.15, block=16))
    )
    assert sees.all() and not misses.all()


def test_presets_and_defaults() -> None:
    assert Antidiagonal() == Antidiagonal(density=0.25, stride=8) and Antidiagonal().schedule() is None
    for share in (0.9, 0.95):
        chosen = Antidiagonal(preset=f"hunyuanvideo-{share}")
        assert (chosen.top_p, chosen.stride, chosen.block, chosen.density) == (share, 8, 128, None)
        schedule = chosen.schedule()
        assert schedule is not None
        assert (schedule.resolve(50, 60).first_step, schedule.resolve(50, 60).first_layer) == (5, 0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"stride": 3}, "stride 3 is not one of 2, 4, 8, 16"), ({"stride": True}, "stride True"),
     ({"preset": "wan"}, "unknown preset 'wan' of antidiagonal"), ({"top_p": 1.5}, "outside"),
     ({"preset": "hunyuanvideo-0.9", "stride": 16}, "own stride, not 16")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    refused(Antidiagonal, complaint, **options)


@pytest.mark.parametrize("options", [{"density": 0.4}, {"top_p": 0.5, "stride": 16}], ids=str)
def test_nothing_waits(options: dict[str, Any]) -> None:
    check_nothing_waits(Antidiagonal(block=16, **options))
    check_nothing_waits(Antidiagonal(block=16, **options), LAYOUTS[1])


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("antidiagonal", family)
