"""What the tests of methods that choose per head while they run have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.pipelines.cases import CALL, NEVER_DENSE, frames
from tests.planning.no_sync import NoSync
from vidaccel.layout import TokenLayout
from vidaccel.methods import candidates
from vidaccel.methods.base import Method
from vidaccel.plan import AttentionPlan
from vidaccel.planning.sampled import OutputErrors
from vidaccel.site import Site

TEMPLATE: dict[str, Any] = {"prompt_template": {"template": "{}", "crop_start": 0}}
PIPES = {
    "wan": (tiny.tiny_wan, {}), "hunyuanvideo": (tiny.tiny_hunyuanvideo, TEMPLATE),
    "cogvideox": (tiny.tiny_cogvideox, {"guidance_scale": 3.0}),
}  # fmt: skip
SETTING: dict[str, Any] = {"block": 16, "min_tokens": 0, "schedule": NEVER_DENSE}


def site_of(layout: TokenLayout, step: int = 10, layer: int = 0) -> Site:
    return Site(layer, 4, step, 50, "cond", "transformer", layout)


def states(layout: TokenLayout, batch: int = 1, heads: int = 3, head_dim: int = 16, seed: int = 0) -> list[Tensor]:
    """Random query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, layout.tokens, heads, head_dim, generator=generator) for _ in range(3)]


def near_on(layout: TokenLayout, axis: int, sharp: float = 40.0) -> Tensor:
    """States ``[tokens, 16]`` whose products are largest for tokens near on an axis (0 frames, 1 rows, 2 columns);
    text has zeros."""
    sizes = (layout.frames, layout.height, layout.width)
    place = torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij")).flatten(1)[axis]
    angle = place[:, None] / sizes[axis] * torch.pi * torch.arange(8) / 2
    made = torch.zeros(layout.tokens, 16)
    made[layout.video_start : layout.video_end] = torch.cat([angle.sin(), angle.cos()], dim=1)
    return made * (sharp / 2) ** 0.5


def by_hand(plans: Any, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, keys: int) -> Tensor:
    """The plan of least error among masks made in full, for each head of each batch row; keys from `keys` on are left
    out."""
    batch, tokens, heads, width = query.shape
    errors = torch.zeros(len(plans), batch, heads)
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    scores = (q[:, :, rows] @ k.transpose(2, 3) * width**-0.5)[..., :keys]
    dense = scores.softmax(-1) @ v[:, :, :keys]
    for at, plan in enumerate(plans):
        order = torch.arange(tokens) if plan.query_order is None else plan.query_order[0].long()
        kept = torch.zeros(tokens, tokens, dtype=torch.bool)
        kept[order[:, None], order] = plan.mask.to_dense()[0]
        out = scores.masked_fill(~kept[rows][:, :keys], float("-inf")).softmax(-1) @ v[:, :, :keys]
        errors[at] = (out - dense).square().sum((2, 3))
    return errors.argmin(0).flatten()


def check_choice(method: Method, layout: TokenLayout, plans: Any, sample: candidates.Sample) -> AttentionPlan:
    """The choice of a method at batch 2 is that of whole masks; padding at the end changes nothing of it."""
    query, key, value = states(layout, batch=2)
    state: dict[str, Any] = {}
    plan = method.plan(query, key, value, site_of(layout), state)
    rows = sample.draw(site_of(layout), query.device)
    video = torch.arange(layout.video_start, layout.video_end)
    assert torch.isin(rows, video).all() and len(rows) == sample.rows
    keys = layout.video_end if layout.text_after else layout.tokens
    assert torch.equal(state["index"], by_hand(plans, query, key, value, rows, keys))
    assert plan.mask is not None and plan.mask.patterns == 2 * 3
    plan.mask.validate()
    for head, chosen in enumerate(state["index"].tolist()):
        assert torch.equal(plan.mask.to_dense()[head], plans[chosen].mask.to_dense()[0])
    for padded in (key, value):
        padded[:, layout.video_end :] = 1e3
    other: dict[str, Any] = {}
    method.plan(query, key, value, site_of(layout), other)
    assert torch.equal(other["index"], state["index"])
    return plan


def check_nothing_waits(method: Method, layout: TokenLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call plans without the contents of a tensor; only the errors' own kernel, tested for itself, is left out."""

    def errors(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, plans: Any, **_: Any) -> OutputErrors:
        assert {rows.device.type, *(plan.mask.ranges.device.type for plan in plans)} == {"meta"}
        return OutputErrors(torch.empty(len(plans), len(query), query.shape[2], device="meta"), query.sum((1, 3)))

    monkeypatch.setattr(candidates, "output_errors", errors)
    check_unseen(method, layout)


def check_unseen(method: Method, layout: TokenLayout) -> None:
    """A method plans two steps from tensors without contents, which nothing can wait for."""
    tensors = [each.to("meta") for each in states(layout, batch=2)]
    # What is made once per grid may wait.
    method.plan(*tensors, site_of(layout), {})
    with NoSync():
        state: dict[str, Any] = {}
        for step in (10, 11):
            plan = method.plan(*tensors, site_of(layout, step), state)
            plan.densities(layout)
    assert plan.mask is not None and plan.mask.ranges.device.type == "meta" and plan.mask.patterns == 6


def check_pipeline(name: str, family: str, **drops: Any) -> None:
    """Keeping everything is the stock result; keeping less is not; and after `disable` it is stock's again."""
    make, call = PIPES[family]
    pipe = make()
    stock = frames(pipe, **call)
    with vidaccel.enable(pipe, name, density=1.0, **SETTING) as session:
        np.testing.assert_allclose(frames(pipe, **call), stock, atol=1e-5)
        summary = session.summary().to_dict()
        assert summary["calls"]["sparse"] > 0 and summary["calls"]["dense"] == 0
        small = CALL | call | {"height": 48, "width": 64}
        assert frames(pipe, **small).shape != stock.shape
        np.testing.assert_allclose(frames(pipe, **call), stock, atol=1e-5)
    with vidaccel.enable(pipe, name, **{"density": 0.3} | drops, **SETTING):
        first = frames(pipe, **call)
        assert np.abs(first - stock).max() > 1e-4
        assert np.array_equal(frames(pipe, **call), first)
    assert np.array_equal(frames(pipe, **call), stock)
