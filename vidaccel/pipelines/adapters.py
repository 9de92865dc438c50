"""How strongly which LoRA adapters work in a transformer call: what a cache must not look back across."""

from __future__ import annotations

from typing import Any

from torch import nn

from vidaccel.pipelines.base import Call


def adapters(transformer: nn.Module, call: Call) -> tuple[Any, ...]:
    """Equal for two calls where no adapter was added, removed, switched or scaled between them; weights that were
    fused in between are not seen."""
    scale = (call.kwargs.get("attention_kwargs") or {}).get("scale")
    if not getattr(transformer, "peft_config", None):
        return (scale,)
    # Those that adapters were put into; the model itself has active adapters, too, but no strength of them.
    tuned: list[Any] = [module for module in transformer.modules() if hasattr(module, "scaling")]
    return (scale, *(_strength(module) for module in tuned))


def _strength(module: Any) -> tuple[Any, ...]:
    active = tuple(module.active_adapters)
    return (bool(module.disable_adapters), tuple((name, module.scaling.get(name)) for name in active))
