"""Profiled heads: each has the cheapest pattern that a calibration found to keep its output, in each band of steps.

After Sparse-vDiT (arXiv 2506.03065), PAROAttention (arXiv 2506.16054) and Sliding Tile Attention (arXiv 2502.04507).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.heads import HeadTable, Picks, band_of, check_block
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method, ModelFacts
from vidaccel.patterns import Pattern, density_of, plan_of
from vidaccel.patterns.cells import Cells
from vidaccel.plan import AttentionPlan
from vidaccel.profile import Profile
from vidaccel.site import Site

COARSE = 0.02
"""Difference of the density from the calibration's from which the notes say so."""
KEPT = 1024
KEY = "_chosen"
SHOWN = 12
"""Letters of a digest in a message."""

Place = tuple[str, int, int]
"""Expert, band, layer."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """What stands behind a `HeadProfile`'s fields.

    Args:
        profile: with heads.
        table: the profile's.
        picks: an option for each head.
        same: for every place all that have its patterns, itself among them.
    """

    profile: Profile
    table: HeadTable
    picks: Picks
    same: dict[Place, list[Place]]


@dataclass(frozen=True)
class HeadProfile(Method):
    """A static plan for each layer in each band of steps, from a profile that `vidaccel.calibrate` made.

    Args:
        profile: a path that ends in ".json", a folder or hub repository (``owner/name``, after which "@" and a
            revision may follow) with a ``vidaccel.json``, or ``miniature:NAME``.
        density: mean cost of the heads over a run, in (0, 1], for which those of the least error are chosen.
        max_error: relative error of a layer's output, in [0, 1], within which the cheapest heads are chosen. Without
            this and `density`, the budget of the calibration.
        digest: of the profile's heads; filled in. Given, a profile with others is an error.
        block: tile size in tokens of queries and keys; the profile's by default, which is what its numbers are for.

    Raises:
        ValueError: a profile that cannot be read or has no heads, or whose heads are not those of the digest; a budget
            that is out of range or cannot be met.
    """

    name: ClassVar[str] = "head_profile"
    paper: ClassVar[str] = "Sparse-vDiT, arXiv 2506.03065; PAROAttention, arXiv 2506.16054"
    static: ClassVar[bool] = True
    alternatives: ClassVar[tuple[str, ...]] = ("density", "max_error")

    profile: str = ""
    density: float | None = None
    max_error: float | None = None
    digest: str | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if not self.profile and self.digest:
            raise ValueError("these heads came from a profile in memory: save it and give its path as 'profile'")
        if not self.profile:
            raise ValueError("head_profile needs a profile: a .json file, a folder or hub repository with a "
                             "vidaccel.json, or miniature:NAME; vidaccel.calibrate makes one")  # fmt: skip
        self._settle(Profile.read(self.profile))

    @classmethod
    def of(cls, profile: Profile, **options: Any) -> HeadProfile:
        """The method with the heads of a profile at hand, which need not be saved.

        Args:
            profile: with heads.
            options: all fields but `profile` and `digest`.

        Raises:
            ValueError: as for the class.
        """
        values = {item.name: item.default for item in dataclasses.fields(cls)} | options
        free = [name for name in values if name not in ("profile", "digest")]
        if unknown := sorted(set(options) - set(free)):
            raise ValueError(f"a profile at hand takes no option {unknown[0]!r}, only {', '.join(free)}")
        made = object.__new__(cls)
        for name, value in (values | {"profile": profile.reference}).items():
            object.__setattr__(made, name, value)
        # As its file has or would have them, rounded: saved and read again, they are chosen the same.
        table = profile.heads and HeadTable.of(profile.heads.to_dict(), profile.reference or "the profile")
        made._settle(dataclasses.replace(profile, heads=table))
        return made

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        plan = plan_of(self.patterns(site), site.layout, self._block)
        return dataclasses.replace(plan, notes=tuple(self._notes(site)))

    @property
    def chosen(self) -> Chosen:
        """The heads, as read and chosen when this was made."""
        kept: Chosen = self.__dict__[KEY]
        return kept

    @property
    def _block(self) -> int:
        assert self.block is not None
        return self.block

    def patterns(self, site: Site) -> tuple[Pattern, ...]:
        """What each head of a site has.

        Raises:
            ValueError: an expert or a layer that the profile does not know.
        """
        table = self.chosen.table
        shapes = table.shapes()
        if site.expert not in shapes or site.layer >= shapes[site.expert][0]:
            known = ", ".join(f"{name} of {layers} layers" for name, (layers, _) in shapes.items())
            raise ValueError(f"the profile knows {known}, not layer {site.layer} of {site.expert}")
        heads = self.chosen.picks[site.expert][table.band_of(site.step, site.steps)][site.layer]
        return tuple(table.patterns[option.pattern] for option in heads)

    def static_site(self, site: Site) -> Site:
        """The first site of a run with the same patterns: layers, bands and experts of equal choice share a plan."""
        table = self.chosen.table
        own = (site.expert, table.band_of(site.step, site.steps), site.layer)
        for expert, band, layer in self.chosen.same.get(own, ()):
            step = first_step(table.bands, band, site.steps)
            if step is not None:
                return Site(layer, site.layers, step, site.steps, "", expert, site.layout)
        return dataclasses.replace(site, branch="")

    def check_models(self, models: Mapping[str, ModelFacts]) -> None:
        self.chosen.profile.check(models)
        shapes = self.chosen.table.shapes()
        for expert, facts in models.items():
            if expert not in shapes:
                raise ValueError(f"the profile has heads for {', '.join(shapes)}, but the model has {expert}, too")
            if shapes[expert] != (facts.layers, facts.heads):
                layers, heads = shapes[expert]
                raise ValueError(f"the profile has {layers} layers of {heads} heads for {expert}, the model has "
                                 f"{facts.layers} of {facts.heads}")  # fmt: skip

    def _settle(self, profile: Profile) -> None:
        """Fill in what the fields leave open and keep the heads, beside the fields: records hold only those.

        Raises:
            ValueError: as for the class.
        """
        where = f"the profile {self.profile}".rstrip()
        table = profile.heads
        if table is None:
            raise ValueError(f"{where} has no heads: it is one for method {profile.method!r}")
        digest = table.digest()
        if self.digest not in (None, digest):
            raise ValueError(f"{where} has changed: its heads have the digest {digest[:SHOWN]}, not "
                             f"{str(self.digest)[:SHOWN]}")  # fmt: skip
        budget = {name: getattr(self, name) for name in self.alternatives}
        if set(budget.values()) == {None}:
            budget = {name: profile.options.get(name) for name in self.alternatives}
        if set(budget.values()) == {None}:
            raise ValueError(f"{where} names no budget of its own: give a density or a max_error")
        block = table.block if self.block is None else check_block(self.block)
        picks = table.choose(**budget)
        filled = {**budget, "digest": digest, "block": block, KEY: Chosen(profile, table, picks, _same(picks))}
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def _notes(self, site: Site) -> Iterator[str]:
        table = self.chosen.table
        if site.steps is None and len(table.bands) > 1:
            yield (f"head_profile: the number of steps is unknown, so that all have the patterns of the first "
                   f"{table.bands[0]:.0%} of a run: pass num_inference_steps")  # fmt: skip
        grid = (self.chosen.profile.calibration or {}).get("grid")
        if grid not in (None, str(site.layout)) and any(isinstance(each, Cells) for each in self.patterns(site)):
            yield (f"head_profile: calibrated on {grid}; on {site.layout} masks of heads' own keep far less: "
                   "calibrate at this size")  # fmt: skip
        if grid == str(site.layout) and self.block == table.block:
            return  # what the calibration measured: no density to find out again
        made, here = table.predicted(self.chosen.picks)["density"], self._density(site.layout)
        if abs(here - made) > COARSE:
            yield (f"head_profile: the chosen patterns have a video density of {here:.4f} on {site.layout}; on the "
                   f"calibration's grid it was {made:.4f}")  # fmt: skip

    def _density(self, layout: TokenLayout) -> float:
        """Mean video density over a run, on any grid, of all heads that have a choice."""
        table = self.chosen.table
        layers = list(table.layers(self.chosen.picks))
        heads = [(share, table.patterns[option.pattern]) for share, layer in layers for option in layer]
        total = sum(share * density_of(each, layout, self._block) for share, each in heads)
        return total / sum(share for share, _ in heads) if heads else 1.0


@functools.lru_cache(KEPT)
def first_step(bands: tuple[float, ...], band: int, steps: int | None) -> int | None:
    """The first step of a band in a run of `steps`; None where no step is in it. Of an unknown number, all are in 0."""
    if steps is None:
        return 0 if band == 0 else None
    return next((step for step in range(steps) if band_of(bands, step, steps) == band), None)


def _same(picks: Picks) -> dict[Place, list[Place]]:
    """For every place all that have its patterns, itself among them; equal places share a list."""
    chosen = {
        (name, band, layer): tuple(option.pattern for option in heads)
        for name, bands in picks.items()
        for band, layers in enumerate(bands)
        for layer, heads in enumerate(layers)
    }
    places: dict[tuple[int, ...], list[Place]] = {}
    for place, patterns in chosen.items():
        places.setdefault(patterns, []).append(place)
    return {place: places[patterns] for place, patterns in chosen.items()}
