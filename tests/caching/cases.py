"""What the tests of caches have in common: pipelines, policies that do as they are told, and a slow, obvious cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from tests import tiny
from tests.methods.online import PIPES
from vidaccel.caching import CachePolicy, Place, Signals, Turn, Verdict
from vidaccel.pipelines import experts, family_of

STEPS = 6
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    **PIPES, "wan2.2": (lambda: tiny.tiny_wan(two_experts=True), {}),
}  # fmt: skip


@dataclass(frozen=True)
class Told(CachePolicy):
    """Reuses the steps that it is told to."""

    name: ClassVar[str] = "told"

    steps: tuple[int, ...] = ()

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        return Verdict(turn.step in self.steps, float(turn.step))


@dataclass(frozen=True)
class ToldOutput(Told):
    """The same with the model's output."""

    name: ClassVar[str] = "told_output"
    place: ClassVar[Place] = Place.OUTPUT


def run(family: str, pipe: Any, **call: Any) -> np.ndarray:
    """Latents of a generation of a tiny pipeline."""
    _, own = FAMILIES[family]
    return tiny.generate(pipe, **{"num_inference_steps": STEPS, "output_type": "latent", **own, **call})


@contextmanager
def by_hooks(pipe: Any, steps: tuple[int, ...], place: Place) -> Iterator[None]:
    """Steps reused the slow way: every block runs, then a hook gives the last one's output the last computed residual.

    With one expert; a step is a change of the timestep.
    """
    (transformer,) = experts(pipe).values()
    family = family_of(transformer)
    blocks: list[Any] = family.blocks(transformer)
    at: dict[str, Any] = {"step": -1, "last": None, "call": 0}
    kept: dict[int, list[Tensor]] = {}
    entered: list[Tensor] = []

    def begin(module: Any, args: Any, kwargs: Any) -> None:
        now = float(kwargs["timestep"].max())
        at["call"] = at["call"] + 1 if now == at["last"] else 0
        at["step"] += now != at["last"]
        at["last"] = now

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        entered[:] = [kwargs[name] if name in kwargs else args[place] for name, place in family.streams]

    def replaced(inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        if at["step"] not in steps:
            kept[at["call"]] = [out - given for out, given in zip(outputs, inputs, strict=True)]
        else:
            outputs = [given + residual for given, residual in zip(inputs, kept[at["call"]], strict=True)]
        return outputs

    def leave(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        if isinstance(out, Tensor):
            return replaced(entered, [out])[0]
        return tuple(replaced(entered, list(out)))

    def end(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        given = kwargs["hidden_states"] * (place is Place.OUTPUT)
        return (replaced([given], [out[0]])[0], *out[1:])

    hooks = [transformer.register_forward_pre_hook(begin, with_kwargs=True)]
    if place is Place.STACK:
        hooks += [blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
                  blocks[-1].register_forward_hook(leave, with_kwargs=True)]  # fmt: skip
    else:
        hooks += [transformer.register_forward_hook(end, with_kwargs=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def block_calls(pipe: Any) -> tuple[list[tuple[str, int]], Any]:
    """A list that fills with (expert, block) at every call of a block, and what ends that."""
    calls: list[tuple[str, int]] = []
    hooks = []
    for expert, transformer in experts(pipe).items():
        blocks = family_of(transformer).blocks(transformer)
        for index, block in enumerate(blocks):
            note = lambda *_, spot=(expert, index): calls.append(spot)  # noqa: E731
            hooks.append(block.register_forward_pre_hook(note))
    return calls, lambda: [hook.remove() for hook in hooks]
