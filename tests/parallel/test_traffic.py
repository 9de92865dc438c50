"""What an exchange really sends, against what `vidaccel.scale` counts."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import vidaccel
import vidaccel.parallel.ring as ring_module
from tests.parallel import cases
from tests.parallel.world import World
from tests.pipelines.models import models
from vidaccel.eval.sizes import ModelSize
from vidaccel.layout import TokenLayout
from vidaccel.parallel.exchange import Exchange
from vidaccel.parallel.split import Group
from vidaccel.scale import Degrees, sent

FP32 = 4
CLASSES = ("WanTransformer3DModel", "HunyuanVideoTransformer3DModel, text", "CogVideoXTransformer3DModel")
"""Video alone; text after the video, padded; text before it, and guidance passes as one batch."""


Calls = list[tuple[TokenLayout, int, int, int]]
"""Grid, heads, head dim and batch of attention calls."""


def exchanged(name: str, ring: int, ulysses: int) -> tuple[int, Calls]:
    """Bytes that this process sends to others for the attention of a pass, and the calls of it."""
    made = models()[name]
    transformer = made.build()
    call = made.inputs(transformer)
    cases.parallelised(transformer, ring=ring, ulysses=ulysses)
    vidaccel.enable(transformer, "random", min_tokens=0, num_inference_steps=4, density=0.5, block=16)
    with contextlib.ExitStack() as stack:
        total, calls = counted(stack)
        cases.forward(transformer, call)
    return total[0], calls


def counted(stack: contextlib.ExitStack) -> tuple[list[int], Calls]:
    """Bytes, and calls of attention, until the stack is left."""
    total, inside, calls = [0], [0], list[tuple[TokenLayout, int, int, int]]()
    exchange, pass_on = torch.distributed.all_to_all_single, Group.pass_on

    def sending(out: Any, packed: Any, received: list[int], going: list[int], **options: Any) -> Any:
        own = torch.distributed.get_rank(options["group"])
        total[0] += inside[0] * (sum(going) - going[own]) * packed.element_size()
        return exchange(out, packed, received, going, **options)

    def passing(self: Group, states: Tensor, shape: Any) -> Any:
        total[0] += states.nbytes
        return pass_on(self, states, shape)

    def within(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any) -> Any:
            if name == "to_heads":
                exchange, states = args
                calls.append((exchange.layout, exchange.heads, states[0].shape[3], len(states[0])))
            inside[0] = 1
            try:
                return real(*args)
            finally:
                inside[0] = 0

        stack.enter_context(mock.patch.object(owner, name, wrapped))

    for owner, name in ((Exchange, "to_heads"), (Exchange, "to_tokens"), (ring_module, "_agreed")):
        within(owner, name)
    stack.enter_context(mock.patch.object(torch.distributed, "all_to_all_single", sending))
    stack.enter_context(mock.patch.object(Group, "pass_on", passing))
    return total, calls


@pytest.mark.parametrize(("ring", "ulysses"), [(1, 2), (2, 1)], ids=["ulysses", "ring"])
@pytest.mark.parametrize("name", CLASSES)
def test_attention_sends_what_is_counted(name: str, ring: int, ulysses: int, world: World) -> None:
    check(world(exchanged, name, ring, ulysses), Degrees(1, ring, ulysses))


@pytest.mark.parametrize("name", CLASSES)
def test_both_at_once(name: str, four: World) -> None:
    check(four(exchanged, name, 2, 2), Degrees(1, 2, 2))


def check(found: list[tuple[int, Calls]], degrees: Degrees) -> None:
    for rank, (total, calls) in enumerate(found):
        assert calls and total > 0
        sizes = [(ModelSize("", "", layout, heads, dim, 1, 1), batch) for layout, heads, dim, batch in calls]
        assert total == sum(batch * sent(size, degrees, rank, FP32).attention for size, batch in sizes)
