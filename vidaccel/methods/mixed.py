"""A profile whose resisting heads choose their keys while the model runs: static patterns beside a dynamic method."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vidaccel.heads import has_choice
from vidaccel.methods.base import COMMON, ModelFacts
from vidaccel.methods.budget import as_tuples
from vidaccel.methods.checks import check_density
from vidaccel.methods.choosing import Choosing
from vidaccel.methods.dynamic import Dynamic
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.methods.joined import joined, static_plan
from vidaccel.plan import AttentionPlan
from vidaccel.profile import Profile
from vidaccel.site import Site

CHOOSES = "_chooses"
HEADS, INNER, CHOSE, WHOLE, NOTES = "heads", "inner", "chose", "whole", "notes"
"""What is kept in a state: the heads that choose, their method's state, whether any did in the last call, its plans as
parts of a whole, and notes.

A whole goes with the part that the method gave: one that it does not keep is not kept here.
"""


@dataclass(frozen=True)
class Mixed(HeadProfile):
    """A profile's patterns for the heads that fit one, a dynamic method for those that resist.

    A head resists where the pattern that the profile's budget gives it keeps at least `resists` of the video's pairs:
    by default where nothing but dense attention was good enough. Layers in which the profile gives no head a choice
    stay dense. The dynamic method sees the queries, keys and values of its heads alone, and its density is over those.

    Args:
        profile, density, max_error, digest, block: see `HeadProfile`; `density` and `max_error` choose the patterns.
            All sizes have one block, by default that of the profile's first.
        dynamic: name of the method for heads that resist.
        dynamic_density, refresh, drift: of that method, see `vidaccel.methods.dynamic.Dynamic`; None is its default.
        resists: in (0, 1].
        model_family: whose defaults that method takes; `enable` fills it in.

    Raises:
        ValueError: as for `HeadProfile` and for the dynamic method; a method that is not dynamic.
    """

    name: ClassVar[str] = "mixed"
    paper: ClassVar[str] = ""
    static: ClassVar[bool] = False

    dynamic: str = "semantic"
    dynamic_density: float | Sequence[Sequence[float]] | None = None
    refresh: int | None = None
    drift: float | None = None
    resists: float = 1.0
    model_family: str | None = None

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, Any]:
        return {"model_family": family}

    @property
    def chooses(self) -> Dynamic:
        """The method of the heads that resist."""
        method: Dynamic = self.__dict__[CHOOSES]
        return method

    @property
    def needs_steps(self) -> bool:
        return super().needs_steps or self.chooses.needs_steps

    def check_models(self, models: Mapping[str, ModelFacts]) -> None:
        super().check_models(models)
        self.chooses.check_models(models)

    def check_site(self, site: Site) -> None:
        # Where the budget cannot be met on this grid, no layer has patterns.
        self.chosen(site.layout)

    def compensated(self, name: str | None) -> Mixed:
        made = copy.copy(self)
        object.__setattr__(made, CHOOSES, self.chooses.compensated(name))
        return made

    def level(self, site: Site) -> Hashable:
        return super().level(site), self.chooses.level(site)

    def reused(self, state: dict[str, Any]) -> bool:
        return not state[CHOSE] or self.chooses.reused(state[INNER])

    def resisting(self, site: Site) -> tuple[int, ...]:
        """The heads of a site that choose.

        Raises:
            ValueError: an expert or a layer that the profile does not know.
        """
        chosen, _ = self.chosen(site.layout), self.patterns(site)
        table = chosen.table
        band = table.band_of(site.step, site.steps)
        if not has_choice(table.experts[site.expert][band][site.layer]):
            return ()
        picked = chosen.picks[site.expert][band][site.layer]
        return tuple(head for head, option in enumerate(picked) if option.density >= self.resists)

    def heads_have(self, site: Site, state: dict[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
        patterns, heads = super().heads_have(site, state) or (), self.resisting(site)
        return tuple({"name": self.dynamic} if head in heads else each for head, each in enumerate(patterns))

    def head_costs(self, site: Site) -> tuple[float, ...]:
        picked, heads = self.picked(site), self.resisting(site)
        # Without a density, what a method keeps of heads that nothing fits is much, if anything is known of it.
        density = self.chooses.density_at(site) or 1.0
        return tuple(density if head in heads else option.cost for head, option in enumerate(picked))

    def observe(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> None:
        # In bands of dense steps no head may have a choice: what counts is who chooses later.
        later = (dataclasses.replace(site, step=step) for step in range(site.step, site.steps or site.step + 1))
        heads = next((found for each in later if (found := self.resisting(each))), ())
        if heads:
            choosing = Choosing(heads, site)
            self.chooses.observe(*choosing.states(query, key, value), choosing.site, self._inner(heads, state))

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        assert query is not None and key is not None and value is not None
        choosing = Choosing(self.resisting(site), site)
        state[CHOSE] = bool(choosing.heads)
        if not choosing.heads:
            return self._static(choosing, site, query.device, state)
        inner = self._inner(choosing.heads, state)
        own = self.chooses.plan(*choosing.states(query, key, value), choosing.site, inner)
        if not choosing.here:
            return self._static(choosing, site, query.device, state)
        known: WeakKeyDictionary[AttentionPlan, AttentionPlan] = state.setdefault(WHOLE, WeakKeyDictionary())
        if own not in known:
            patterns, cut = choosing.of(self.patterns(site)), choosing.cut(own, len(query))
            plan = joined(patterns, choosing.here, cut, site.layout, self._block(site.layout), len(query), query.device)
            known[own] = dataclasses.replace(plan, notes=(*self._remarks(site, state), *own.notes))
        return known[own]

    def _static(self, choosing: Choosing, site: Site, device: torch.device, state: dict[str, Any]) -> AttentionPlan:
        """The plan where no head here chooses."""
        plan = static_plan(choosing.of(self.patterns(site)), site.layout, self._block(site.layout), device)
        return dataclasses.replace(plan, notes=self._remarks(site, state))

    def _settle(self, profile: Profile) -> None:
        check_density(self.resists)
        super()._settle(profile)
        object.__setattr__(self, "block", self.block or self.sizes.tables[0].block)
        method = self._method()
        # Beside the fields, as what the profile chose: records hold only those.
        for name, value in {CHOOSES: method, "observes": method.observes,
                            "dynamic_density": as_tuples(self.dynamic_density)}.items():  # fmt: skip
            object.__setattr__(self, name, value)

    def _method(self) -> Dynamic:
        # Not before: the package finds its methods by importing this file.
        from vidaccel.methods import method, named

        if not issubclass(named(self.dynamic), Dynamic):
            raise ValueError(f"method {self.dynamic!r} is not one for heads that resist: it does not choose by density")
        given = {"density": self.dynamic_density, "refresh": self.refresh, "drift": self.drift, "block": self.block}
        options = {name: value for name, value in given.items() if value is not None}
        made = method(self.dynamic, self.model_family or "", **options)
        assert isinstance(made, Dynamic)
        return made

    def _inner(self, heads: tuple[int, ...], state: dict[str, Any]) -> dict[str, Any]:
        """The state of the dynamic method, empty where other heads choose than before; branches share as they do."""
        common = state.setdefault(COMMON, {})
        for each in (common, state):
            if each.get(HEADS) != heads:
                each[HEADS], each[INNER] = heads, {}
        inner: dict[str, Any] = state[INNER]
        # Not only at first: a branch that did not run meanwhile has one of the same heads, but an older.
        inner[COMMON] = common[INNER]
        return inner

    def _remarks(self, site: Site, state: dict[str, Any]) -> tuple[str, ...]:
        """The profile's notes, put together once for a run."""
        if NOTES not in state:
            state[NOTES] = tuple(self._notes(site))
        notes: tuple[str, ...] = state[NOTES]
        return notes
