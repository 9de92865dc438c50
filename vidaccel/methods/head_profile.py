"""Profiled heads: each has the cheapest pattern that a calibration found to keep its output, in each band of steps.

After Sparse-vDiT (arXiv 2506.03065), PAROAttention (arXiv 2506.16054) and Sliding Tile Attention (arXiv 2502.04507).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.heads import HeadOption, band_of, check_block, heads_digest
from vidaccel.layout import TokenLayout
from vidaccel.methods.base import Method, ModelFacts
from vidaccel.methods.budget import as_tuples, check_budget, is_curve
from vidaccel.methods.sizes import Chosen, Sizes
from vidaccel.patterns import Pattern, density_of, plan_of
from vidaccel.patterns.cells import Cells
from vidaccel.plan import AttentionPlan
from vidaccel.profile import Profile
from vidaccel.site import Site

COARSE = 0.02
"""Difference of the density from the calibration's from which the notes say so."""
KEPT = 1024
KEY = "_sizes"
SHOWN = 12
"""Letters of a digest in a message."""


@dataclass(frozen=True)
class HeadProfile(Method):
    """A static plan for each layer in each band of steps, from a profile that `vidaccel.calibrate` made.

    Of a profile that was measured at several sizes, a run has the heads of its own token grid, or of the one with the
    nearest number of video tokens, as a ratio. The budget holds at each size by itself.

    Args:
        profile: a path that ends in ".json", a folder or hub repository (``owner/name``, after which "@" and a
            revision may follow) with a ``vidaccel.json``, or ``miniature:NAME``.
        density: mean cost of the heads over a run, in (0, 1], for which those of the least error are chosen. Or a curve
            over the run, as `vidaccel.methods.dynamic.Dynamic` has it; each quarter of a run has that of its middle.
        max_error: relative error of a layer's output, in [0, 1], within which the cheapest heads are chosen. Without
            this and `density`, the budget of the calibration.
        digest: of the profile's heads, at all sizes; filled in. Given, a profile with others is an error.
        block: tile size in tokens of queries and keys; the profile's by default, which is what its numbers are for.
            Where its sizes differ in it, it stays None, and each size has its own.

    Raises:
        ValueError: a profile that cannot be read or has no heads, or whose heads are not those of the digest; a budget
            that is out of range or cannot be met at any size. One that cannot be met at a run's size is refused
            before its first step.
    """

    name: ClassVar[str] = "head_profile"
    paper: ClassVar[str] = "Sparse-vDiT, arXiv 2506.03065; PAROAttention, arXiv 2506.16054"
    static: ClassVar[bool] = True
    alternatives: ClassVar[tuple[str, ...]] = ("density", "max_error")

    profile: str = ""
    density: float | Sequence[Sequence[float]] | None = None
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
        made._settle(profile.rounded())
        return made

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        plan = plan_of(self.patterns(site), site.layout, self._block(site.layout))
        return dataclasses.replace(plan, notes=tuple(self._notes(site)))

    @property
    def sizes(self) -> Sizes:
        """The profile's heads, as read when this was made."""
        kept: Sizes = self.__dict__[KEY]
        return kept

    def chosen(self, layout: TokenLayout) -> Chosen:
        """What each head has in runs on a token grid.

        Raises:
            ValueError: the budget cannot be met at this size.
        """
        return self.sizes.chosen(layout)

    def _block(self, layout: TokenLayout) -> int:
        return self.block or self.sizes.table(layout).block

    def patterns(self, site: Site) -> tuple[Pattern, ...]:
        """What each head of a site has.

        Raises:
            ValueError: an expert or a layer that the profile does not know, or a budget that cannot be met here.
        """
        chosen = self.chosen(site.layout)
        table = chosen.table
        shapes = table.shapes()
        if site.expert not in shapes or site.layer >= shapes[site.expert][0]:
            known = ", ".join(f"{name} of {layers} layers" for name, (layers, _) in shapes.items())
            raise ValueError(f"the profile knows {known}, not layer {site.layer} of {site.expert}")
        return tuple(table.patterns[option.pattern] for option in self.picked(site))

    def picked(self, site: Site) -> tuple[HeadOption, ...]:
        """What the budget picked for each head of a site, measured on the grid of the calibration."""
        chosen = self.chosen(site.layout)
        return chosen.picks[site.expert][chosen.table.band_of(site.step, site.steps)][site.layer]

    def heads_have(self, site: Site, state: dict[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
        pairs = zip(self.patterns(site), self.picked(site), strict=True)
        return tuple(
            {**pattern.to_dict(), "calibrated": {name: getattr(option, name) for name in ("error", "density", "cost")}}
            for pattern, option in pairs
        )

    def level(self, site: Site) -> Hashable:
        return self.chosen(site.layout).table.band_of(site.step, site.steps)

    def static_site(self, site: Site) -> Site:
        """The first site of a run with the same patterns: layers, bands and experts of equal choice share a plan."""
        chosen = self.chosen(site.layout)
        table = chosen.table
        own = (site.expert, table.band_of(site.step, site.steps), site.layer)
        for expert, band, layer in chosen.same.get(own, ()):
            step = first_step(table.bands, band, site.steps)
            if step is not None:
                return Site(layer, site.layers, step, site.steps, "", expert, site.layout)
        return dataclasses.replace(site, branch="")

    @property
    def needs_steps(self) -> bool:
        return is_curve(self.density)

    def check_models(self, models: Mapping[str, ModelFacts]) -> None:
        self.sizes.profile.check(models)
        shapes = self.sizes.tables[0].shapes()
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
        digest = heads_digest(table, profile.heads_at)
        if self.digest not in (None, digest):
            raise ValueError(f"{where} has changed: its heads have the digest {digest[:SHOWN]}, not "
                             f"{str(self.digest)[:SHOWN]}")  # fmt: skip
        budget = {name: getattr(self, name) for name in self.alternatives}
        if all(each is None for each in budget.values()):
            budget = {name: profile.options.get(name) for name in self.alternatives}
        if all(each is None for each in budget.values()):
            raise ValueError(f"{where} names no budget of its own: give a density or a max_error")
        if is_curve(budget["density"]):
            check_budget(budget["density"], None)
            budget["density"] = as_tuples(budget["density"])
        block = None if self.block is None else check_block(self.block)
        sizes = Sizes(profile, budget)
        if len({each.block for each in sizes.tables}) == 1:
            block = block or table.block
        filled = {**budget, "digest": digest, "block": block, KEY: sizes}
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def _notes(self, site: Site) -> Iterator[str]:
        chosen = self.chosen(site.layout)
        table = chosen.table
        if site.steps is None and len(table.bands) > 1:
            yield (f"head_profile: the number of steps is unknown, so that all have the patterns of the first "
                   f"{table.bands[0]:.0%} of a run: pass num_inference_steps")  # fmt: skip
        yield from self._elsewhere(site, chosen)
        if chosen.grid == str(site.layout) and self._block(site.layout) == table.block:
            return  # what the calibration measured: no density to find out again
        made, here = table.predicted(chosen.picks)["density"], self._density(site.layout)
        if abs(here - made) > COARSE:
            yield (f"head_profile: the chosen patterns have a video density of {here:.4f} on {site.layout}; on the "
                   f"calibration's grid it was {made:.4f}")  # fmt: skip

    def _elsewhere(self, site: Site, chosen: Chosen) -> Iterator[str]:
        """A note for runs of a size that the calibration did not measure; text does not matter."""
        video = f"{site.layout.frames}x{site.layout.height}x{site.layout.width}"
        if chosen.grid is not None and str(chosen.grid).partition(" ")[0] != video:
            own = any(isinstance(each, Cells) for each in self.patterns(site))
            less = "masks of heads' own keep far less" if own else "other choices may be better"
            yield (f"head_profile: calibrated on {' and '.join(map(str, self.sizes.grids))}; on {site.layout} {less}: "
                   "calibrate at this size")  # fmt: skip

    def _density(self, layout: TokenLayout) -> float:
        """Mean video density over a run, on any grid, of all heads that have a choice."""
        table = self.chosen(layout).table
        layers = list(table.layers(self.chosen(layout).picks))
        heads = [(share, table.patterns[option.pattern]) for share, layer in layers for option in layer]
        total = sum(share * density_of(each, layout, self._block(layout)) for share, each in heads)
        return total / sum(share for share, _ in heads) if heads else 1.0


@functools.lru_cache(KEPT)
def first_step(bands: tuple[float, ...], band: int, steps: int | None) -> int | None:
    """The first step of a band in a run of `steps`; None where no step is in it. Of an unknown number, all are in 0."""
    if steps is None:
        return 0 if band == 0 else None
    return next((step for step in range(steps) if band_of(bands, step, steps) == band), None)
