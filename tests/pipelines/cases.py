"""What the tests of every family with text in its self-attention share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import vidaccel
from vidaccel.layout import TokenLayout
from vidaccel.plan import AttentionPlan, BlockMask

CALL = {"prompt": "a red circle moves left", "num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 4,
        "max_sequence_length": 16, "output_type": "np"}  # fmt: skip
"""Of a pipeline: 5x4x6 video tokens and 16 text tokens, 4 steps."""
NEVER_DENSE = {"dense_first_steps": 0, "dense_first_layers": 0}
SPARSE = {"block": 16, "min_tokens": 0, "schedule": NEVER_DENSE}
DENSE = {"method": "radial", "block": 16, "min_tokens": 0, "schedule": {"dense_first_steps": 1.0}}
METHODS = {"radial": {"decay": 0.0, "split": 16, "sink": False}, "random": {"density": 0.5}}
"""Settings that drop pairs on the tiny grids."""


@dataclass(frozen=True)
class Everything(vidaccel.Method):
    """A dynamic method that keeps every pair and writes down where it was asked, and what its state held."""

    name: ClassVar[str] = "everything"
    log: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)

    def plan(self, query: Any, key: Any, value: Any, site: Any, state: dict[str, Any]) -> AttentionPlan:
        self.log.append((site.branch, site.layer, site.step, site.steps, state.get("calls", 0)))
        state["calls"] = state.get("calls", 0) + 1
        assert query.shape == key.shape == value.shape and query.shape[1] == site.layout.tokens
        return AttentionPlan(BlockMask.full(site.layout.tokens, site.layout.tokens, 16, 16))


def frames(pipe: Any, seed: int = 0, **overrides: Any) -> np.ndarray:
    """The frames of one call of a pipeline; its noise is drawn from `seed`."""
    made = pipe(**CALL | overrides, generator=torch.Generator().manual_seed(seed)).frames
    return made.numpy() if isinstance(made, Tensor) else np.asarray(made)


@torch.no_grad()
def forward(transformer: nn.Module, call: dict[str, Any]) -> Tensor:
    """One pass of a transformer."""
    out: Tensor = transformer(**call, return_dict=False)[0]
    return out


def through(transformer: nn.Module, call: dict[str, Any], method: Any, **options: Any) -> Tensor:
    """One pass with a method in every layer, all of it sparse."""
    setting = {"min_tokens": 0, "schedule": NEVER_DENSE} | options
    with vidaccel.enable(transformer, method, **setting) as session:
        out = forward(transformer, call)
    assert session.summary().to_dict()["dense_calls"] == {}
    return out


def gradient(transformer: Any, call: dict[str, Any]) -> Tensor:
    """Of the sum of a pass's output with respect to the latents."""
    states = call["hidden_states"].clone().requires_grad_()
    transformer(**call | {"hidden_states": states}, return_dict=False)[0].sum().backward()
    assert states.grad is not None
    return states.grad


def graphs(transformer: Any, blocks: list[Any], call: dict[str, Any]) -> tuple[int, list[Tensor]]:
    """The number of graphs of two passes with the blocks compiled one by one, and what the passes give."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    for block in blocks:
        block.compile(fullgraph=True, backend=counter)
    found = [forward(transformer, call) for _ in range(2)]
    for block in blocks:
        block._compiled_call_impl = None
    return counter.frame_count, found


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the norm."""
    return float((found - expected).norm() / expected.norm())


def assert_text_is_kept(layout: TokenLayout) -> None:
    """Every text token is seen by all tokens and sees them all, in the plan of each static method."""
    video = torch.zeros(layout.tokens, dtype=torch.bool)
    video[layout.video_start : layout.video_end] = True
    for name, options in METHODS.items():
        site = vidaccel.Site(0, 1, 0, 4, "cond", "transformer", layout)
        plan = vidaccel.methods.method(name, "hunyuanvideo", block=16, **options).plan(None, None, None, site, {})
        assert plan.mask is not None
        kept = plan.mask.to_dense()
        assert kept[:, ~video].all() and kept[:, :, ~video].all(), name
        assert not kept[:, video][:, :, video].all(), name
