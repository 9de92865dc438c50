"""How much of a step is self-attention, timed, and what speed-up follows from it at most."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import vidaccel
from vidaccel.bench.measure import Spans
from vidaccel.pipelines import experts, family_of
from vidaccel.schedule import Schedule

ALL_DENSE = Schedule(0, 0, 1 << 30)
"""Every layer dense: patched, but computing what the stock model computes."""


def limit(share: float, density: float, computed: float = 1.0, steps: float = 1.0) -> float:
    """Amdahl's law: the speed-up of a run if each attention call took its density's share of the dense time, and a call
    of a block that a cache passes by none.

    Args:
        share: of the dense run's time that is self-attention.
        density: mean over all its calls, dense ones included.
        computed: share of the blocks' calls that run.
        steps: share of the dense run's time that its steps take.
    """
    return 1 / (1 - steps + computed * (steps - share * (1 - density)))


@contextlib.contextmanager
def attention_timed(target: Any, spans: Spans) -> Iterator[None]:
    """A pipeline or transformer whose self-attention runs dense and is timed; nothing may be enabled on it.

    Timed is the attention itself, without projections and rotary embedding: what a plan changes.
    """
    with vidaccel.enable(target, schedule=ALL_DENSE, min_tokens=0):
        for transformer in experts(target).values():
            for module in family_of(transformer).sites(transformer):
                processor: Any = module.processor
                # On our processor alone, which disable throws away.
                processor.dense = spans.around(processor.dense)
        yield


@contextlib.contextmanager
def blocks_timed(transformer: Any, spans: Spans) -> Iterator[None]:
    """A transformer whose blocks, those around a self-attention, are timed."""
    sites = {id(module) for module in family_of(transformer).sites(transformer)}
    owners = [name.rpartition(".")[0] for name, module in transformer.named_modules() if id(module) in sites]
    hooks = []
    for name in dict.fromkeys(owners):
        block = transformer.get_submodule(name)
        hooks += [block.register_forward_pre_hook(lambda *_: spans.begin()),
                  block.register_forward_hook(lambda *_: spans.end())]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
