"""A tiny model of a real class, as the tests that every family passes want it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines import family_of


def stacked(transformer: nn.Module) -> list[Any]:
    """The family's blocks."""
    return family_of(transformer).blocks(transformer)


@dataclass(frozen=True)
class Model:
    """One class, or one variant of it.

    Args:
        build: a transformer with random weights, seeded, in eval mode on the CPU.
        inputs: keyword arguments of one forward of it.
        layout: the grid of these inputs.
        blocks: what is compiled one by one.
        pipeline, call: a whole pipeline of it, and the arguments of one call of four steps, if quickly built.
        lora: names of modules for a LoRA.
        compiles: whether the stock blocks compile in one graph.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], dict[str, Any]]
    layout: TokenLayout
    blocks: Callable[[nn.Module], list[Any]] = stacked
    pipeline: Callable[[], Any] | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    lora: tuple[str, ...] = ("to_q", "to_k", "to_v")
    compiles: bool = True
