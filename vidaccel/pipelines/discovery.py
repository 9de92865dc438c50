"""Where the self-attention of a transformer without a family is, and how its heads are."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from vidaccel.pipelines.arrivals import folded
from vidaccel.pipelines.processor import Processor
from vidaccel.pipelines.rebound import attends

QUERIES = ("to_q", "to_query", "q_proj")
HEADS = ("heads", "num_heads", "num_attention_heads")


def stock_of(processor: Any) -> Any:
    """A processor, or the one behind it if it is ours."""
    return processor.inner if isinstance(processor, Processor) else processor


def sites_of(transformer: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The self-attention modules by name, in the order in which they are registered, or in that of the patterns.

    Args:
        patterns: as `fnmatch` has them. Without any: every module with a processor inside the model's own lists of
            blocks that is not cross attention by its flag or its name.

    Raises:
        ValueError: there is none, a pattern that fits none, or a processor whose attention cannot be replaced.
    """
    every = {name: module for name, module in transformer.named_modules() if hasattr(module, "processor")}
    kind, listed = type(transformer).__name__, folded(every) or "none"
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        fit = {name: each for name, each in every.items() if fnmatch.fnmatchcase(name, pattern)}
        if not fit:
            raise ValueError(f"sites={pattern!r} fits no attention module of {kind}, which has {listed}")
        found |= fit
    if not patterns:
        found = {name: each for name, each in every.items() if _own(transformer, name, each)}
    if not found:
        raise ValueError(f"{kind} has no self-attention modules with a processor in lists of blocks, as models of "
                         f"diffusers have; attention modules: {listed}. Name them by Generic(sites=...)")  # fmt: skip
    for name, module in found.items():
        processor = stock_of(module.processor)
        if not attends(processor):
            raise ValueError(f"{type(processor).__name__} of {name} calls neither dispatch_attention_fn nor "
                             "scaled_dot_product_attention itself, so that its attention cannot be replaced; attention "
                             f"modules of {kind}: {listed}. Name others by Generic(sites=...)")  # fmt: skip
    return found


def _own(transformer: nn.Module, name: str, module: Any) -> bool:
    """Whether an attention module is inside a list of blocks, and not cross attention."""
    cross = getattr(module, "is_cross_attention", False) or "cross" in name.rsplit(".", 1)[-1]
    return isinstance(getattr(transformer, name.split(".")[0]), nn.ModuleList) and not cross


def heads_of(transformer: Any, site: Any) -> tuple[int, int]:
    """Heads and head dim, by the configuration or by an attention module.

    Raises:
        ValueError: neither says them.
    """
    config = transformer.config
    heads, head_dim = (getattr(config, name, None) for name in ("num_attention_heads", "attention_head_dim"))
    if isinstance(heads, int) and isinstance(head_dim, int):
        return heads, head_dim
    heads = next((each for name in HEADS if isinstance(each := getattr(site, name, None), int)), None)
    wide = next((each for name in QUERIES if (each := getattr(getattr(site, name, None), "out_features", None))), None)
    if heads and wide and wide % heads == 0:
        return heads, wide // heads
    raise ValueError(f"neither the configuration of {type(transformer).__name__} nor its attention modules say their "
                     "heads in a way that is known: give Generic(heads=(HEADS, HEAD_DIM))")  # fmt: skip
