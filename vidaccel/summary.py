"""What a session did in its last run, for people and for records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from vidaccel.caching.log import Log
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan, Density
from vidaccel.site import Site
from vidaccel.step_map import Course, Place

DIGITS = 4
"""Of densities in records."""
MOST_HEADS = 1024
"""Records have a density of each head where all layers together have no more of them."""
Group = TypeVar("Group")


@dataclass(frozen=True)
class Achieved:
    """Mean video density of the calls that were left to the method; None where no call was.

    Args:
        by_step: of each step of the run.
        by_layer: by expert, of each layer.
        by_head: by expert, of each head of each layer.
    """

    by_step: tuple[float | None, ...]
    by_layer: dict[str, tuple[float | None, ...]]
    by_head: dict[str, tuple[tuple[float, ...] | None, ...]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready and rounded; ``by_head`` is None where that would be long."""
        heads = sum(len(layer) for layers in self.by_head.values() for layer in layers if layer)
        return {"by_step": _rounded(self.by_step), "by_layer": _rounded(self.by_layer),
                "by_head": _rounded(self.by_head) if heads <= MOST_HEADS else None}  # fmt: skip

    def __str__(self) -> str:
        steps = [value for value in self.by_step if value is not None]
        layers = [(value, layer, expert) for expert, values in self.by_layer.items()
                  for layer, value in enumerate(values) if value is not None]  # fmt: skip
        (low, *least), (high, *most) = min(layers), max(layers)
        places = [f"layer {layer}" + (f" of {expert}" if len(self.by_layer) > 1 else "")
                  for layer, expert in (least, most)]  # fmt: skip
        return (f"video density by step {steps[0]:.2f} -> {steps[-1]:.2f}, by layer {low:.2f} ({places[0]}) to "
                f"{high:.2f} ({places[1]})")  # fmt: skip


@dataclass
class Tally:
    """Counts of the attention calls of one run."""

    sparse: int = 0
    dense: dict[str, int] = field(default_factory=dict)
    """Dense calls by reason."""
    whole: int = 0
    """Of the dense calls, those that the method planned so."""
    totals: dict[torch.device, Tensor] = field(default_factory=dict)
    """Sum of the sparse calls' `AttentionPlan.densities` where they are; on a GPU it waits there until someone asks."""
    mask: BlockMask | None = None
    """Of the last sparse call; not its plan, which may hold orders and keys of a GPU."""
    errors: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """Relative error of fewer bits by expert and layer, each in its first sparse call."""
    layout: TokenLayout | None = None
    steps: int | None = None
    backend: str | None = None
    notes: list[str] = field(default_factory=list)
    slower: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Least and most modelled time of sparse calls over dense ones, of calls that stayed dense for it, by source."""
    made: int = 0
    """Plans that a method made in its calls; static ones are not counted."""
    reused: int = 0
    """Calls that ran on the plan of an earlier one."""
    lanes: dict[Place, Tensor] = field(default_factory=dict)
    """`AttentionPlan.video_densities` of each call that was left to the method; on a GPU they wait there, too."""
    spared: int = 0
    """Calls of blocks that a cache passed by."""
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Layers and heads of each expert of those calls."""
    whole_at: set[Place] = field(default_factory=set)
    """Where the method planned dense."""
    course: Course = field(default_factory=Course)
    """Which blocks ran, of a session's runs."""

    def note(self, text: str) -> None:
        """Remember a remark once."""
        if text not in self.notes:
            self.notes.append(text)

    def count_dense(self, reason: str, planned: bool = False) -> None:
        """Count one dense call; `planned` where the method chose it, so that its density counts as the method's."""
        self.dense[reason] = self.dense.get(reason, 0) + 1
        self.whole += planned

    def note_slower(self, share: float, source: str) -> None:
        """Remember that a sparse call would have taken `share` of the dense call's time, by the model of `source`."""
        least, most = self.slower.get(source, (share, share))
        self.slower[source] = min(least, share), max(most, share)

    def count_sparse(self, plan: AttentionPlan, densities: Tensor, backend: str) -> None:
        """Count one sparse call."""
        self.sparse += 1
        self.totals[densities.device] = self.totals.get(densities.device, 0) + densities
        self.mask, self.backend = plan.mask or self.mask, backend
        for note in plan.notes:
            self.note(note)

    def count_plan(self, reused: bool) -> None:
        """Count a plan that a method gave for a call: new, or one that it had chosen in an earlier call."""
        self.made, self.reused = self.made + (not reused), self.reused + reused

    def record(self, site: Site, lanes: Tensor, heads: int, whole: bool = False) -> None:
        """Remember the video densities of a call's patterns: one, or `heads` for each batch row; `whole` is dense."""
        place = (site.expert, site.branch, site.layer, site.step)
        self.lanes[place] = lanes
        self.shapes[site.expert] = (site.layers, heads)
        if whole:
            self.whole_at.add(place)

    def achieved(self) -> Achieved | None:
        """What the calls that were left to the method kept, by step, layer and head; None without any."""
        if not self.lanes:
            return None
        heads = {place: _by_head(lanes, self.shapes[place[0]][1]) for place, lanes in _on_cpu(self.lanes).items()}
        # Experts may differ in their number of heads.
        steps = _means({place: each.mean(0) for place, each in heads.items()}, lambda place: place[3])
        layers = _means(heads, lambda place: (place[0], place[2]))
        run = range(max(self.steps or 0, max(steps) + 1))
        every = {expert: [layers.get((expert, layer)) for layer in range(count)]
                 for expert, (count, _) in self.shapes.items()}  # fmt: skip
        return Achieved(
            tuple(_mean(steps.get(step)) for step in run),
            {expert: tuple(map(_mean, values)) for expert, values in every.items()},
            {expert: tuple(None if each is None else tuple(each.tolist()) for each in values)
             for expert, values in every.items()},
        )  # fmt: skip

    @property
    def total(self) -> Tensor | None:
        """Sum of the sparse calls' densities on the CPU; None without any. Waits for a GPU."""
        return torch.stack([each.cpu() for each in self.totals.values()]).sum(0) if self.totals else None

    @property
    def remarks(self) -> list[str]:
        """The notes, and why calls stayed dense by the cost model."""
        return self.notes + [
            f"calls on {self.layout} stay dense by the cost model: sparse attention would take "
            f"{f'{least:.2f}' if f'{least:.2f}' == f'{most:.2f}' else f'{least:.2f} to {most:.2f}'} times as long "
            f"(coefficients: {source}); min_tokens=0 turns this off"
            for source, (least, most) in self.slower.items()
        ]

    @property
    def density(self) -> Density | None:
        """Mean over the calls that were left to the method, those included that it planned dense."""
        if (total := self.total) is None:
            return None
        return Density(*((total + self.whole) / (self.sparse + self.whole)).tolist())

    @property
    def all_calls(self) -> float:
        """Mean density over dense and sparse calls: the share of dense attention's work that the run did."""
        return self._attended / calls if (calls := self._ran + self.spared) else 1.0

    @property
    def calls_that_ran(self) -> float:
        """The same over the calls of blocks that no cache passed by."""
        return self._attended / self._ran if self._ran else 1.0

    @property
    def _ran(self) -> int:
        return self.sparse + sum(self.dense.values())

    @property
    def _attended(self) -> float:
        total = self.total
        return (0.0 if total is None else float(total[0])) + sum(self.dense.values())

    @property
    def error(self) -> dict[str, Any] | None:
        """Mean and largest relative error of fewer bits, and which layer has the largest; None without any."""
        if not self.errors:
            return None
        values = {site: float(error) for site, error in self.errors.items()}
        # NaN is worse than anything and must not hide behind a comparison.
        worst = max(values, key=lambda site: (values[site] != values[site], values[site]))
        return {"mean": sum(values.values()) / len(values), "worst": values[worst],
                "worst_at": {"expert": worst[0], "layer": worst[1]}}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """The setting and the last run of a session. `print` it, or take `to_dict`.

    Args:
        family: of the model.
        method, options, schedule, min_tokens: the setting.
        requested_backend: as asked for; `tally.backend` is what ran.
        precision: of sparse calls; None for the model's own type.
        runs: generations seen.
        tally: counts of the last run.
        compensation: name and options of what makes up for skipped keys; None where nothing does.
        cache: the setting of the cache; None without one.
        log: what it decided in the last run.
    """

    family: str
    method: str
    options: dict[str, Any]
    schedule: dict[str, float]
    min_tokens: int | None
    requested_backend: str
    precision: str | None
    runs: int
    tally: Tally
    compensation: dict[str, Any] | None = None
    cache: dict[str, Any] | None = None
    log: Log | None = None

    @property
    def mask(self) -> BlockMask | None:
        """The mask of the last sparse call."""
        return self.tally.mask

    def densities(self) -> Achieved | None:
        """What the last run kept by step, layer and head, where the method chose; None where it chose nowhere."""
        return self.tally.achieved()

    def step_map(self) -> dict[str, Any] | None:
        """What each layer did in each step of the last run; see `vidaccel.step_map.Course.step_map`."""
        tally = self.tally
        means = {place: float(each.mean()) for place, each in _on_cpu(tally.lanes).items()}
        return tally.course.step_map(means, tally.whole_at, self.log.decisions if self.log is not None else ())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the map as JSON-ready values; `density`, `densities` and `layout` are None before a run."""
        tally = self.tally
        mean, achieved = tally.density, tally.achieved()
        density = dataclasses.asdict(mean) | {"all_calls": tally.all_calls} if mean else None
        return {
            "family": self.family,
            "method": {"name": self.method, "options": self.options},
            "schedule": self.schedule,
            "min_tokens": self.min_tokens,
            "backend": tally.backend,
            "requested_backend": self.requested_backend,
            "precision": self.precision,
            "precision_error": tally.error,
            "compensation": self.compensation,
            "cache": None if self.cache is None or self.log is None else self.cache | self.log.to_dict(),
            "runs": self.runs,
            "steps": tally.steps,
            "layout": dataclasses.asdict(tally.layout) if tally.layout else None,
            "calls": {"sparse": tally.sparse, "dense": sum(tally.dense.values())}
            | ({} if self.cache is None else {"spared": tally.spared}),
            "dense_calls": dict(tally.dense),
            "density": density,
            "densities": achieved.to_dict() if achieved else None,
            "plans": {"made": tally.made, "reused": tally.reused},
            "notes": tally.remarks,
        }

    def __str__(self) -> str:
        parts = [(self.method, self.options)]
        if self.compensation is not None:
            parts.append((self.compensation["name"], self.compensation["options"]))
        chosen = "+".join(f"{name}({_listed(options)})" for name, options in parts)
        lines = [f"{chosen} on {self.family}, backend {self.tally.backend or self.requested_backend}"]
        if self.cache is not None:
            policy = f"{self.cache['name']}({_listed(self.cache['options'])})"
            lines += [f"cache: {policy}, predictor {self.cache['predictor']['name']}"]
        lines += [f"schedule: {', '.join(f'{name} {value:g}' for name, value in self.schedule.items())}"]
        lines += self._run_lines() if self.runs else ["no run yet"]
        return "\n".join(lines)

    def _run_lines(self) -> list[str]:
        tally = self.tally
        dense = ", ".join(f"{count} {reason}" for reason, count in tally.dense.items())
        lines = [
            f"last run: grid {tally.layout}, {tally.steps or 'unknown'} steps, {tally.sparse} sparse calls, "
            f"{sum(tally.dense.values())} dense" + (f" ({dense})" if dense else "")
        ]
        if (density := tally.density) is not None:
            lines.append(
                f"video density {density.video_density:.4f} where the method chose; the run's attention did "
                f"{tally.all_calls:.4f} of the dense work"
            )
        if (achieved := tally.achieved()) is not None:
            lines.append(str(achieved))
        if tally.made:
            lines.append(f"plans made {tally.made}, reused {tally.reused}")
        if (error := tally.error) is not None:
            lines.append(
                f"precision {self.precision}: outputs differ from the model's own type by {error['mean']:.2%} on "
                f"average over layers, at most {error['worst']:.2%} (layer {error['worst_at']['layer']} of "
                f"{error['worst_at']['expert']}), in each layer's first sparse call"
            )
        lines += self.log.lines() if self.log is not None else []
        return lines + [f"note: {note}" for note in tally.remarks]


def _rounded(value: Any) -> Any:
    """Densities in whatever lists and dictionaries, rounded, JSON-ready."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_rounded(each) for each in value]
    return value if value is None else round(value, DIGITS)


def _on_cpu(lanes: dict[Place, Tensor]) -> dict[Place, Tensor]:
    """The same on the CPU, by one copy from each device."""
    moved: dict[Place, Tensor] = {}
    for device in {each.device for each in lanes.values()}:
        there = {place: each for place, each in lanes.items() if each.device == device}
        parts = torch.cat(list(there.values())).cpu().split([len(each) for each in there.values()])
        moved |= dict(zip(there, parts, strict=True))
    return moved


def _by_head(lanes: Tensor, heads: int) -> Tensor:
    """The mean of each head over batch rows: float64 ``[heads]``."""
    return lanes.view(-1, heads).mean(0) if len(lanes) > 1 else lanes.expand(heads)


def _means(heads: dict[Place, Tensor], group: Callable[[Place], Group]) -> dict[Group, Tensor]:
    """The mean of each head over the calls of a group."""
    grouped: dict[Group, list[Tensor]] = {}
    for place, each in heads.items():
        grouped.setdefault(group(place), []).append(each)
    return {name: torch.stack(each).mean(0) for name, each in grouped.items()}


def _mean(heads: Tensor | None) -> float | None:
    return None if heads is None else float(heads.mean())


def _listed(options: dict[str, Any]) -> str:
    """Options in words, without those that are not set."""
    return ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
