"""From the name of a method to what its attention costs over several processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vidaccel import methods
from vidaccel.eval.sizes import REAL_SIZES, ModelSize, plan_site
from vidaccel.layout import TokenLayout
from vidaccel.parallel.ring import why_not
from vidaccel.plan import AttentionPlan
from vidaccel.scale.attention import Even, Planned
from vidaccel.statics import StaticPlans, expected_density


def models() -> dict[str, ModelSize]:
    """Models whose sizes are known, by their names in lower case; of several sizes, the largest."""
    return {size.model.split()[0].lower(): size for size in REAL_SIZES}


def model_size(name: str, grid: str | None) -> ModelSize:
    """A known model, on another grid where one is given.

    Raises:
        ValueError: an unknown name, or a grid that is none.
    """
    known = models()
    if name not in known:
        raise ValueError(f"unknown model {name!r}; choose {', '.join(known)}")
    size = known[name]
    if grid is None:
        return size
    layout = TokenLayout.parse(grid, size.layout.text_before, size.layout.text_after)
    return dataclasses.replace(size, model=f"{size.model.split()[0]} {grid}", layout=layout)


def planned(plans: Sequence[AttentionPlan], size: ModelSize) -> Planned:
    """Attention by the plans of each layer."""
    reasons = [reason for reason in map(why_not, plans) if reason is not None]
    densities = [float(plan.video_densities(size.layout).mean()) for plan in plans]
    return Planned(tuple(plans), sum(densities) / len(densities), f"in a ring: {reasons[0]}" if reasons else None)


def attention_of(name: str, size: ModelSize, given: dict[str, Any]) -> Planned | Even:
    """What a method computes at a model's size, in the first step of a run.

    Args:
        name: of the method.
        size: the model.
        given: its options; others are the family's.

    Raises:
        ValueError: bad options, or a method whose density only a run tells.
    """
    chosen = methods.method(name, size.family, **given)
    sites = [dataclasses.replace(plan_site(size.layout, size.layers, layer), branch="") for layer in range(size.layers)]
    if chosen.static:
        plans = StaticPlans(chosen, size.layout)
        return planned([plans.made(site) for site in sites], size)
    density = expected_density(chosen, sites[0])
    if not density:
        raise ValueError(f"method {name!r} does not tell its density before a run: give --density, if it has one")
    reason = f"in a ring: method {name!r} plans from queries and keys that no process has together"
    block = getattr(chosen, "block", None)
    return Even(density, reason, block) if isinstance(block, int) else Even(density, reason)
