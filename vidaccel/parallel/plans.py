"""Plans of diffusers' context parallelism on a model: made known to it, compared with its hooks, taken away again.

diffusers knows a plan for some classes, which it keeps in the class. Ours for others, and for those whose own plan
splits what our attention needs whole, is kept on the instance while the model is enabled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from vidaccel.pipelines.base import Family
from vidaccel.pipelines.processor import Processor

PLAN, CONFIG, HOOKS, GUARD = "_cp_plan", "_parallel_config", "_diffusers_hook", "_vidaccel_guard"
"""Attributes of a transformer or its parts."""


class Offered(dict[str, Any]):
    """A plan that `offer` has put on an instance."""


def configured(transformer: nn.Module) -> Any:
    """What the model was split by; None where it is whole."""
    return getattr(transformer, CONFIG, None)


def offer(transformer: nn.Module, family: Family) -> None:
    """Let ``enable_parallelism(config=...)`` find the family's plan, where it is not diffusers' own."""
    if PLAN in transformer.__dict__ or family.stock_splits and getattr(type(transformer), PLAN, None) is not None:
        return
    # Why there is none is said when someone asks for a split.
    with contextlib.suppress(ValueError):
        transformer.__dict__[PLAN] = Offered(family.parallel_plan(transformer))


def withdraw(transformer: nn.Module) -> None:
    """Undo `offer`."""
    if isinstance(transformer.__dict__.get(PLAN), Offered):
        del transformer.__dict__[PLAN]


def check(transformer: nn.Module, family: Family) -> None:
    """Look whether the model was split by the plan that our attention goes by.

    Raises:
        ValueError: by another, or it cannot be split.
    """
    expected = {
        name: part if isinstance(part, dict) else part if isinstance(part, list) else [part]
        for name, part in family.parallel_plan(transformer).items()
    }
    found = {name.split("---", 1)[1]: hook.metadata for _, name, hook in _hooks(transformer)}
    if found != expected:
        raise ValueError(
            f"this {type(transformer).__name__} was split over processes by another plan than vidaccel's attention "
            "needs: load it anew, and give enable_parallelism(config=..., "
            "cp_plan=vidaccel.parallel_plan(transformer))"
        )


def quiet(transformer: nn.Module) -> None:
    """Keep stock processors, such as those of cross attention, from splitting what a plan of ours leaves whole."""
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, Processor):
            processor = processor.inner
        if CONFIG in getattr(processor, "__dict__", {}):
            delattr(processor, CONFIG)


def undo(transformer: nn.Module) -> None:
    """Make a split model whole again on every process; harmless where it is."""
    if configured(transformer) is None:
        return
    for module, name, _ in list(_hooks(transformer)):
        registry: Any = module.__dict__[HOOKS]
        registry.remove_hook(name, recurse=False)
        if not registry.hooks:
            del module.__dict__[HOOKS]
            forward = module.__dict__.get("forward")
            if getattr(forward, "__func__", None) is type(module).forward:
                del module.__dict__["forward"]
    quiet(transformer)
    transformer.__dict__.pop(CONFIG, None)


def _hooks(transformer: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The hooks that split and gather: their module, name and themselves."""
    from diffusers.hooks import context_parallel

    kinds = context_parallel.ContextParallelSplitHook, context_parallel.ContextParallelGatherHook
    for module in transformer.modules():
        registry: Any = module.__dict__.get(HOOKS)
        for name, hook in () if registry is None else list(registry.hooks.items()):
            if isinstance(hook, kinds):
                yield module, name, hook


class Guard:
    """Before each forward of a model that only our attention can compute split: an error where it is stock."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __call__(self, transformer: nn.Module, *_: Any) -> None:
        if configured(transformer) is None:
            return
        site: Any = self._family.sites(transformer)[0]
        if not isinstance(site.processor, Processor):
            raise RuntimeError(
                f"this {type(transformer).__name__} is split over processes by vidaccel's plan, which its own "
                "attention does not know: call enable_sparse_attention() before a run, or disable_sparse_attention() "
                "to make it whole again"
            )


def guard(transformer: nn.Module, family: Family) -> None:
    """Refuse forwards of a split model by attention that does not know of it, until `unguard`."""
    if not family.stock_splits and GUARD not in transformer.__dict__:
        transformer.__dict__[GUARD] = transformer.register_forward_pre_hook(Guard(family))


def guarded(transformer: nn.Module) -> bool:
    """Whether `guard` is on."""
    return GUARD in transformer.__dict__


def unguard(transformer: nn.Module) -> None:
    """Undo `guard`; harmless where there is nothing to undo."""
    handle = transformer.__dict__.pop(GUARD, None)
    if handle is not None:
        handle.remove()
