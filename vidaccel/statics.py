"""Plans of a static method: one for each site that it tells apart, made once, with what they cost on each device."""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.costs import CostModel
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site


class StaticPlans:
    """All plans of one method on one layout and number of steps.

    There are as many as `Method.static_site` tells apart, and copies of them on the devices that asked.
    """

    def __init__(self, method: Method, layout: TokenLayout) -> None:
        self._method = method
        self._layout = layout
        self._made: dict[Site, tuple[AttentionPlan, Tensor]] = {}
        self._moved: dict[tuple[Site, torch.device], AttentionPlan] = {}
        self._shares: dict[tuple[Site, CostModel], float] = {}

    def made(self, site: Site) -> tuple[AttentionPlan, Tensor]:
        """The plan that serves a site, where it was made, and its densities."""
        place = self._method.static_site(site)
        if place not in self._made:
            plan = self._method.plan(None, None, None, place, {})
            self._made[place] = plan, plan.densities(self._layout)
        return self._made[place]

    def on(self, site: Site, device: torch.device) -> tuple[AttentionPlan, Tensor]:
        """The plan that serves a site, on a device, and its densities."""
        place, (plan, densities) = self._method.static_site(site), self.made(site)
        if (place, device) not in self._moved:
            self._moved[place, device] = plan.to(device)
        return self._moved[place, device], densities

    def share(self, site: Site, costs: CostModel, heads: int, head_dim: int) -> float:
        """Modelled time of the plan that serves a site over that of dense attention, for calls of so many heads."""
        place = self._method.static_site(site)
        if (place, costs) not in self._shares:
            plan, _ = self.made(site)
            self._shares[place, costs] = costs.cost(plan, self._layout, heads=heads, head_dim=head_dim)
        return self._shares[place, costs]
