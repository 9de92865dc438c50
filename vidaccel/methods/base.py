"""What every way to choose attention has in common."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.plan import AttentionPlan
from vidaccel.schedule import Schedule
from vidaccel.site import Site

COMMON = "common"
"""Where a state has what all guidance branches of its expert and layer have in common."""


@dataclass(frozen=True)
class ModelFacts:
    """What a method may need to know of a denoiser.

    Args:
        name: of its class.
        config: its configuration, JSON-ready.
        layers, heads, head_dim: of its self-attention.
    """

    name: str
    config: Mapping[str, Any]
    layers: int
    heads: int
    head_dim: int


class Method(ABC):
    """A way to choose which keys each query attends to. Subclasses are frozen dataclasses: the fields are the config.

    A method holds no state of a run: what it must remember lives in the `state` dictionary that the session passes,
    one per expert, branch and layer, emptied for each generation. What guidance branches are to share is in the
    dictionary `COMMON` of that state.
    """

    name: ClassVar[str]
    """Name in `enable(...)`, in the CLI and in records."""
    paper: ClassVar[str] = ""
    """Source paper."""
    static: ClassVar[bool] = False
    """True where the plan depends on the site alone: then it is made once per `static_site` and q, k, v are None."""

    observes: ClassVar[bool] = False
    """True where `observe` is to see the calls that the schedule keeps dense at the start of a run."""
    alternatives: ClassVar[tuple[str, ...]] = ()
    """Options of which only one can be given: one that is given replaces another that a profile has."""

    @abstractmethod
    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        """The plan for one call.

        Args:
            query, key, value: ``[batch, tokens, heads, head_dim]``, after normalisation and RoPE; None if `static`.
            site: where the call happens.
            state: what this method remembers here; free to use. ``state[COMMON]`` is a dictionary that the session
                gives to all branches of the expert and layer alike, emptied with the rest. Branches come in any order,
                and some never or no more; a call without a session may come without it.
        """

    def reused(self, state: dict[str, Any]) -> bool:
        """Whether what the last call of `plan` gave had been chosen in an earlier one, for the summary to count."""
        return False

    def heads_have(self, site: Site, state: dict[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
        """What the plan of a call just made has for each head, to be shown: a ``name`` and parameters, JSON-ready.

        Called after `plan`, with the same site and state; it may wait for a GPU.

        Returns:
            One mapping for each head, or for each head of each batch row (row slowest); None where a method has no
            patterns by head.
        """
        return None

    def head_costs(self, site: Site) -> Sequence[float] | None:
        """About what each head of a site will cost, over what it costs dense, where a run begins and nothing is made.

        By it heads are dealt to processes. Static methods are not asked, whose plans tell.

        Returns:
            One number for each head of the model; None where they are not known, or all the same.
        """
        return None

    def observe(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> None:
        """Learn from a call of the dense steps at the start of a run, of a layer that will be sparse; see `plan`."""
        return

    def static_site(self, site: Site) -> Site:
        """The site whose plan serves `site`, for a static method: by default one for all of a layout.

        A method whose plans differ between layers, steps, branches or experts keeps these fields of `site`; sites with
        one plan should map to one site.
        """
        return Site(0, 1, 0, site.steps, "", "", site.layout)

    def level(self, site: Site) -> Hashable:
        """What of the density, or of the patterns, changes over a run by design: sites that differ in it are of two
        regimes, across which no cache looks. Plans that are chosen anew are no change."""
        return None

    def schedule(self) -> Schedule | None:
        """The schedule that belongs to these options, such as a paper's; None for the family's own."""
        return None

    def compensated(self, name: str | None) -> Method:
        """This method as it runs beside a compensation; `vidaccel.enable` calls it, and records are of what it returns.

        Args:
            name: of the compensation; None where there is none.
        """
        return self

    @property
    def needs_steps(self) -> bool:
        """Whether plans can only be made in a run whose number of steps is known, such as by a density curve."""
        return False

    def check_steps(self, steps: int | None) -> None:
        """Refuse a run of an unknown number of steps (None) if need be: when a bare transformer is enabled, and before
        the first step of a run.

        Raises:
            ValueError: it is unknown.
        """
        if steps is None and self.needs_steps:
            raise ValueError(f"these options of {self.name} need the number of steps of a run, which is unknown here: "
                             "pass num_inference_steps")  # fmt: skip

    def check_site(self, site: Site) -> None:
        """Refuse a token grid that these options cannot serve, for methods that are not static; called at each forward,
        before its first layer.

        Raises:
            ValueError: why not.
        """
        return

    def check_models(self, models: Mapping[str, ModelFacts]) -> None:
        """Refuse models that these options are not for; called by `vidaccel.enable` before anything is changed.

        Args:
            models: the denoisers, by their attribute of the pipeline.

        Raises:
            ValueError: why not.
        """
        return

    @classmethod
    def for_family(cls, family: str, **options: Any) -> Method:
        """This method with the defaults of a model family, overridden by `options`.

        Raises:
            ValueError: an option that the method does not have, or a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"method {cls.name!r} has no option {unknown[0]!r}; it has {', '.join(known)}")
        return cls(**{**cls.family_defaults(family), **options})

    @classmethod
    def merged(cls, profile: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Options of a profile, overridden by those that the user gives."""
        replaced = set(cls.alternatives) if set(cls.alternatives) & set(options) else set()
        return {**{name: value for name, value in profile.items() if name not in replaced}, **options}

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, Any]:
        """Options that differ for `family`; none unless a subclass says so."""
        return {}
