"""What `semantic` takes of memory at real sizes: counted, and followed on tensors without contents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.live import Live
from tests.methods.online import site_of
from vidaccel.layout import TokenLayout
from vidaccel.methods import semantic_errors
from vidaccel.methods.semantic import Semantic
from vidaccel.methods.semantic_memory import Sizes, key_block
from vidaccel.planning import kmeans, select

WAN_720P = TokenLayout(21, 45, 80)
HUNYUAN_720P = TokenLayout(33, 45, 80, text_after=256)


@pytest.fixture
def _as_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Triton kernels allocate, in place of what the torch references do."""
    numbers = {"dtype": torch.int32, "device": "meta"}
    monkeypatch.setattr(kmeans, "assign", lambda points, start: torch.empty(len(start), points.shape[1], **numbers))
    monkeypatch.setattr(kmeans, "_sums", lambda points, order: torch.empty(*order.sizes.shape, 128, device="meta"))
    monkeypatch.setattr(semantic_errors, "group_moments", _moments)
    # Two marks per block: what is kept in any case, and the result.
    marks = {"dtype": torch.bool, "device": "meta"}
    for name in ("budgeted", "top_p"):
        monkeypatch.setattr(select, name, lambda scores, *_, **__: torch.empty(2, *scores.shape, **marks)[0])


def _moments(states: Tensor, starts: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """As `groups.group_moments` on a GPU: a copy of the order, what empty groups have, means and variances."""
    batch, _, heads, head_dim = states.shape
    order, empty = order.repeat(1, 1), starts.new_zeros(batch, heads, starts.shape[1] - 1, head_dim).float()
    means, variances = torch.empty_like(empty), torch.empty_like(empty)
    return means.transpose(1, 2), variances.transpose(1, 2)


@pytest.mark.usefixtures("_as_kernels")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [WAN_720P, HUNYUAN_720P], ids=str)
@pytest.mark.parametrize("options", [{}, {"by": "cluster"}, {"top_p": 0.9}, {"top_p": 0.9, "by": "cluster"},
                                     {"refresh": 2}, {"key_clusters": 2000}, {"rank": "error"},
                                     {"rank": "error", "by": "cluster", "top_p": 0.9}])  # fmt: skip
def test_scratch_of_a_call_is_under_what_is_counted(layout: TokenLayout, options: dict[str, Any], batch: int) -> None:
    heads = 40 if layout == WAN_720P else 24
    method = Semantic(first_iterations=2, **options)
    query, key = (torch.empty(batch, layout.tokens, heads, 128, dtype=torch.bfloat16, device="meta") for _ in range(2))
    branch = "cond_uncond" if batch == 2 else "cond"
    counted, state = method.memory(layout, batch * heads, 128, together=batch), dict[str, Any]()
    live = Live(query, key)
    with live:
        for step in (10, 11):
            plan = method.plan(query, key, key, replace(site_of(layout, step), branch=branch), state)
            # As in a model, where other layers come between.
            del plan
    assert 0.7 * counted.scratch < live.most <= counted.scratch
    assert sum(counted.state.values()) == pytest.approx(live.size, rel=0.02)
    assert counted.scratch < 1e9 or options.get("key_clusters") == 2000


@pytest.mark.usefixtures("_as_kernels")
@pytest.mark.parametrize("clusters", [(20, 4000), (600, 1000)])
def test_scratch_of_the_errors_alone(clusters: tuple[int, int]) -> None:
    layout = WAN_720P
    query, key = (torch.empty(1, layout.tokens, 40, 128, dtype=torch.bfloat16, device="meta") for _ in range(2))
    method = Semantic(rank="error", query_clusters=clusters[0], key_clusters=clusters[1], first_iterations=1)
    found = method.clusters(query, key, site_of(layout), {})
    live = Live(query, key)
    with live:
        semantic_errors.errors(found, key, key)
    counted = Sizes(layout, 40, 128, 2, *clusters, 128)._errors()
    assert 0.7 * counted < live.most <= counted


def test_what_a_whole_model_keeps() -> None:
    """Wan 14B at 720p: 40 layers of 40 heads."""
    states = [
        Semantic(**options).memory(WAN_720P, 40, 128).state for options in ({}, {"refresh": 4}, {"keep": "nothing"})
    ]
    total = [sum(each.values()) * 40 / 1e9 for each in states]
    assert total == pytest.approx([0.65, 1.74, 0.0], rel=0.02)


def test_key_blocks() -> None:
    assert [key_block(tokens, 128) for tokens in (0, 1, 16, 31, 32, 76, 128, 500)] == [16, 16, 16, 16, 32, 64, 128, 128]
    assert key_block(76, 16) == 16
