"""What methods that choose keys from queries and keys have in common: budgets, and plans that serve several steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.methods.base import COMMON, Method
from vidaccel.methods.budget import as_tuples, check_budget, density_at, is_curve
from vidaccel.methods.checks import check_block, check_count
from vidaccel.methods.drift import check_drift, drifted
from vidaccel.methods.presets import Preset, fill
from vidaccel.plan import AttentionPlan
from vidaccel.schedule import Schedule
from vidaccel.site import Site

PLAN, AGE, SEEN, WHAT = "plan", "plan_age", "plan_seen", "plan_what"
"""What `Dynamic` keeps in a state: the last plan, the steps that it served, the last of them, and what it is for."""


@dataclass(frozen=True)
class Dynamic(Method):
    """A method whose plan is chosen from queries and keys, and kept for some steps.

    Subclasses write `choose`. Batch rows and heads have patterns of their own; a plan for guidance branches, experts
    and layers apart is the session's affair, which has a state for each.

    Args:
        density: video density over all heads of a batch row together, in (0, 1]: heads that need less give to those
            that need more. Or a curve over the run: ``((0.3, 0.4), (1.0, 0.1))`` has 0.4 up to 30 % of the steps, from
            there falls evenly, and ends at 0.1.
        top_p: instead, the share of its estimated attention that each row of blocks keeps, in (0, 1].
        block: tile size in tokens of queries and keys.
        refresh: steps that a plan is kept for, at least 1; only steps in which the layer is computed sparse count.
        drift: a plan is made anew before that, at the step after the one in which the video's keys were found to have
            changed by more than this relative to those it was made from (see `vidaccel.methods.drift`); None never
            looks.

    Raises:
        ValueError: a value out of range, both budgets, or a `drift` where `refresh` is 1.
    """

    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p")
    budget: ClassVar[Mapping[str, float]] = {"density": 0.25}
    """Where neither is given."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Published settings, of methods with a field `preset`."""

    density: float | Sequence[Sequence[float]] | None = None
    top_p: float | None = None
    block: int = 128
    refresh: int = 1
    drift: float | None = None

    def __post_init__(self) -> None:
        if self.presets:
            fill(self, self.presets)
        check_budget(self.density, self.top_p)
        check_block(self.block)
        check_count("refresh", self.refresh)
        check_drift(self.drift, self.refresh)
        object.__setattr__(self, "density", as_tuples(self.density))
        if self.density is None and self.top_p is None:
            for name, value in self.budget.items():
                object.__setattr__(self, name, value)

    def schedule(self) -> Schedule | None:
        name = getattr(self, "preset", None)
        return None if name is None else self.presets[name].schedule

    def level(self, site: Site) -> float | None:
        # A curve changes in every step, by little.
        return round(float(self.density_at(site) or 0), 1) if is_curve(self.density) else None

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        assert query is not None and key is not None and value is not None
        self.same(query, site, state)
        if state.get(SEEN) != site.step:
            state[SEEN], state[AGE] = site.step, state.get(AGE, 0) + 1
        due = PLAN not in state or self.due(site, state)
        # Looked at in any case: a signal is read a step after it was taken.
        video = key[:, site.layout.video_start : site.layout.video_end]
        if drifted(self.drift, video, state, renew=due, heads=site.heads) or due:
            state[PLAN], state[AGE] = self.choose(query, key, value, site, state), 1
        plan: AttentionPlan = state[PLAN]
        return plan

    def reused(self, state: dict[str, Any]) -> bool:
        return bool(state.get(AGE, 1) > 1)

    def due(self, site: Site, state: dict[str, Any]) -> bool:
        """Whether the last plan, of which there is one, has served its time."""
        return bool(state[AGE] > self.refresh)

    @abstractmethod
    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        """A new plan; see `Method.plan`. Nothing may wait for the device."""

    def same(self, query: Tensor, site: Site, state: dict[str, Any]) -> None:
        """Empty a state that belongs to calls of another shape, type or device, and so what branches have in common.

        What `observe` has put there stays where those calls were like this one.
        """
        what = (site.layout, query.shape, query.dtype, query.device)
        common = state.setdefault(COMMON, {})
        for each in (common, state):
            if each.setdefault(WHAT, what) != what:
                each.clear()
                each[WHAT] = what
        state[COMMON] = common

    @property
    def needs_steps(self) -> bool:
        return is_curve(self.density)

    def density_at(self, site: Site) -> float | None:
        """The density of a step; None where `top_p` is the budget.

        Raises:
            ValueError: a curve in a run whose number of steps is unknown.
        """
        return density_at(self.density, site)

    def with_notes(self, plan: AttentionPlan, *notes: str) -> AttentionPlan:
        """A plan with notes of this method, named."""
        return replace(plan, notes=(*plan.notes, *(f"{self.name}: {each}" for each in notes)))
