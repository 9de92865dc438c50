"""What is known before a call: the plans of a static method, made once, with what they cost; of others, the least."""

from __future__ import annotations

import torch

from vidaccel.costs import DEFAULT_BLOCK, CostModel, Counts
from vidaccel.costs.shipped import GPU
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.methods.dynamic import Dynamic
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site


class StaticPlans:
    """All plans of one method on one layout and number of steps.

    There are as many as `Method.static_site` tells apart, and copies of them on the devices that asked.
    """

    def __init__(self, method: Method, layout: TokenLayout) -> None:
        self._method = method
        self._layout = layout
        self._made: dict[Site, AttentionPlan] = {}
        self._moved: dict[tuple[Site, torch.device, tuple[int, ...]], AttentionPlan] = {}
        self._densities: dict[Site, float] = {}
        self._shares: dict[tuple[Site, CostModel], float] = {}
        self._loads: dict[Site, list[float]] = {}

    def made(self, site: Site) -> AttentionPlan:
        """The plan that serves a site, on the CPU: there its densities are counted."""
        place = self._method.static_site(site)
        if place not in self._made:
            self._made[place] = self._method.plan(None, None, None, place, {})
        return self._made[place]

    def on(self, site: Site, device: torch.device) -> AttentionPlan:
        """The plan that serves a site, on a device; of the heads that are here, where others are elsewhere."""
        place, plan = self._method.static_site(site), self.made(site)
        own = () if site.heads is None or _shared(plan) else site.heads.own
        if (place, device, own) not in self._moved:
            total = 0 if site.heads is None else site.heads.total
            self._moved[place, device, own] = (plan.of_heads(own, total) if own else plan).to(device)
        return self._moved[place, device, own]

    def loads(self, site: Site, heads: int) -> list[float]:
        """What each head costs in the plan that serves a site, over what it costs dense.

        By the shipped cost model of GPUs, wherever this runs: one that a process measured by itself would be another on
        each, and they have to agree.
        """
        place = self._method.static_site(site)
        if place not in self._loads:
            self._loads[place] = GPU.by_head(self.made(site), heads)
        return self._loads[place]

    def density(self, site: Site) -> float:
        """Video density of the plan that serves a site."""
        place = self._method.static_site(site)
        if place not in self._densities:
            self._densities[place] = float(self.made(site).video_densities(self._layout).mean())
        return self._densities[place]

    def share(self, site: Site, costs: CostModel, heads: int, head_dim: int) -> float:
        """Modelled time of the plan that serves a site over that of dense attention, for calls of so many heads."""
        place = self._method.static_site(site)
        if (place, costs) not in self._shares:
            self._shares[place, costs] = costs.cost(self.made(site), self._layout, heads=heads, head_dim=head_dim)
        return self._shares[place, costs]


def _shared(plan: AttentionPlan) -> bool:
    """Whether all heads have the same."""
    mask, orders = plan.mask, (plan.query_order, plan.key_order, plan.key_groups)
    return mask is None or (mask.patterns == 1 and all(each is None or len(each) == 1 for each in orders))


def expected_density(method: Method, site: Site) -> float:
    """The least video density of a method which is not static, as far as its options tell."""
    density = method.density_at(site) if isinstance(method, Dynamic) else getattr(method, "density", None)
    return float(density) if isinstance(density, int | float) else 0.0


def expected(method: Method, site: Site) -> Counts:
    """The least that a plan of a method which is not static can ask for, as far as its options tell."""
    block = getattr(method, "block", None)
    least = block if isinstance(block, int) else DEFAULT_BLOCK
    return Counts.expected(site.layout.tokens, expected_density(method, site), least)
