"""The oracle: true weights of blocks by hand, in any order, and that no choice of blocks holds more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.brute import LAYOUTS, Cut, Map, blocks_of, check_nothing_waits, check_plan, natural, patches, refused
from tests.methods.online import PIPES, check_pipeline, site_of, states
from vidaccel.layout import TokenLayout
from vidaccel.methods import oracle
from vidaccel.methods.draft import Draft
from vidaccel.methods.oracle import Oracle, log_sum_exp


def mass(query: Tensor, key: Tensor, cut: Cut, layout: TokenLayout) -> Map:
    """Attention weights in full, text after the video left out; the mean over a tile's queries of a tile's sum."""
    weights = (query @ key.T * query.shape[1] ** -0.5)[:, : layout.tokens - layout.text_after].double().softmax(1)
    weights = torch.nn.functional.pad(weights, (0, layout.text_after))
    return [[float(weights[rows][:, columns].sum()) / len(rows) for columns in cut.tiles] for rows in cut.tiles]


@pytest.mark.parametrize("options", [{"density": 0.4}, {"top_p": 0.6}], ids=str)
@pytest.mark.parametrize("order", ["FHW", "tile:1x4x4"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_plan_is_the_definition(layout: TokenLayout, order: str, options: dict[str, Any]) -> None:
    sequence = natural(layout) if order == "FHW" else patches(layout, 4, 4)
    cut = Cut.of(layout, sequence, 16)
    chosen = Oracle(block=16, order=order, **options)
    check_plan(chosen, layout, cut, lambda query, key: mass(query, key, cut, layout))


def test_holds_more_than_any_other_choice_of_the_same_blocks() -> None:
    layout = TokenLayout(6, 8, 8)
    query, key, value = states(layout)
    cut = Cut.of(layout, patches(layout, 4, 4), 16)
    held = []
    for chosen in (Oracle(density=0.2, block=16, order="tile:1x4x4"), Draft(density=0.2, block=16)):
        kept = blocks_of(chosen.plan(query * 3, key, value, site_of(layout), {}))
        true = torch.stack([torch.tensor(mass(query[0, :, h] * 3, key[0, :, h], cut, layout)) for h in range(3)])
        held.append(float(true[kept].sum()))
    assert held[0] > held[1]


def test_lse_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, _ = states(TokenLayout(2, 5, 7), batch=2)
    expected = torch.einsum("bqhd,bkhd->bhqk", query, key[:, :50]).mul(0.3).logsumexp(-1)
    for size in (8 * 50 * 16, 1):
        monkeypatch.setattr(oracle, "WORKING_BYTES", size)
        assert torch.allclose(log_sum_exp(query, key[:, :50], 0.3), expected, atol=1e-5)


def test_bad_order() -> None:
    refused(Oracle, "unknown token order 'best'", order="best")


@pytest.mark.parametrize("options", [{"density": 0.4}, {"top_p": 0.5, "order": "HWF"}], ids=str)
def test_nothing_waits(options: dict[str, Any]) -> None:
    check_nothing_waits(Oracle(block=16, **options))
    check_nothing_waits(Oracle(block=16, **options), LAYOUTS[1])


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("oracle", family)
