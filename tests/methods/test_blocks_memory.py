"""What methods of scored blocks take of memory at a real size, followed on tensors without contents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.live import Live
from tests.methods.online import site_of
from vidaccel.layout import TokenLayout
from vidaccel.methods import METHODS
from vidaccel.planning import antidiagonal, pool, select

WAN_720P = TokenLayout(21, 45, 80)
HEADS = 40


def _last(*tensors: Tensor) -> Tensor:
    """The last of what is there at once."""
    return tensors[-1]


def _picked(scores: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty(scores.shape, dtype=torch.bool, device="meta")


def _cut(scores: Tensor, forced: Tensor, costs: Tensor | None, budget: Tensor) -> Tensor:
    size = (len(budget), len(scores) // len(budget) * scores.shape[1], 17)
    return _last(torch.empty(size, dtype=torch.int64, device="meta"), _picked(scores))


def _summary(states: Tensor, block: int, *_: Any, mean: bool, similarity: bool) -> tuple[Tensor | None, Tensor | None]:
    batch, tokens, heads, head_dim = states.shape
    blocks = -(-tokens // block)
    return (torch.empty(batch, blocks, heads, head_dim, device="meta") if mean else None,
            torch.empty(batch * heads, blocks, device="meta") if similarity else None)  # fmt: skip


def _antidiagonal(query: Tensor, key: Tensor, query_block: int, *_: Any) -> Tensor:
    lanes, tiles = query.shape[0] * query.shape[2], -(-query.shape[1] // query_block)
    cells = torch.empty(antidiagonal.WORKING_BYTES // 4, device="meta")
    return _last(cells, torch.empty(lanes, tiles, tiles, device="meta"))


@pytest.fixture
def _as_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Triton kernels allocate, in place of what the torch references do."""
    monkeypatch.setattr(select, "_uses_triton", lambda *_: True)
    monkeypatch.setattr(select.dispatch, "module", lambda _: SimpleNamespace(pick=_picked, cut=_cut))
    monkeypatch.setattr(pool, "summary_reference", _summary)
    monkeypatch.setattr(antidiagonal, "_torch", _antidiagonal)


@pytest.mark.usefixtures("_as_kernels")
@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("nabla", {"density": 0.2}, 400), ("nabla", {"top_p": 0.9}, 400),
        ("draft", {"density": 0.2}, 170), ("draft", {"top_p": 0.9}, 170), ("draft", {"preset": "wan"}, 170),
        ("meansim", {"density": 0.2}, 200), ("meansim", {"top_p": 0.9}, 200), ("meansim", {"preset": "cdf"}, 200),
        ("antidiagonal", {"density": 0.2}, 350), ("antidiagonal", {"top_p": 0.9}, 350),
    ],
)  # fmt: skip
def test_what_a_plan_takes(name: str, options: dict[str, Any], most: int) -> None:
    """The plan itself included, but not what is made once for a grid."""
    tensors = [torch.empty(1, WAN_720P.tokens, HEADS, 128, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    method = METHODS[name](**options)
    method.plan(*tensors, site_of(WAN_720P, 9), {})
    with Live(*tensors) as live:
        method.plan(*tensors, site_of(WAN_720P), {})
    assert live.most < most * 1e6, f"{live.most / 1e6:.0f} MB"
