"""What a session did in its last run, for people and for records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan, Density


@dataclass
class Tally:
    """Counts of the attention calls of one run."""

    sparse: int = 0
    dense: dict[str, int] = field(default_factory=dict)
    """Dense calls by reason."""
    whole: int = 0
    """Of the dense calls, those that the method planned so."""
    total: Tensor | None = None
    """Sum of the sparse calls' `AttentionPlan.densities`; on a GPU it waits there until someone asks."""
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
        self.total = densities if self.total is None else self.total + densities
        self.mask, self.backend = plan.mask, backend
        for note in plan.notes:
            self.note(note)

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
        if self.total is None:
            return None
        return Density(*((self.total + self.whole) / (self.sparse + self.whole)).tolist())

    @property
    def all_calls(self) -> float:
        """Mean density over dense and sparse calls: the share of dense attention's work that the run did."""
        calls = self.sparse + sum(self.dense.values())
        attended = 0.0 if self.total is None else float(self.total[0])
        return (attended + sum(self.dense.values())) / calls if calls else 1.0

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

    @property
    def mask(self) -> BlockMask | None:
        """The mask of the last sparse call."""
        return self.tally.mask

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; `density` and `layout` are None before a run."""
        tally = self.tally
        mean = tally.density
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
            "runs": self.runs,
            "steps": tally.steps,
            "layout": dataclasses.asdict(tally.layout) if tally.layout else None,
            "calls": {"sparse": tally.sparse, "dense": sum(tally.dense.values())},
            "dense_calls": dict(tally.dense),
            "density": density,
            "notes": tally.remarks,
        }

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items() if value is not None)
        lines = [f"{self.method}({options}) on {self.family}, backend {self.tally.backend or self.requested_backend}"]
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
        if (error := tally.error) is not None:
            lines.append(
                f"precision {self.precision}: outputs differ from the model's own type by {error['mean']:.2%} on "
                f"average over layers, at most {error['worst']:.2%} (layer {error['worst_at']['layer']} of "
                f"{error['worst_at']['expert']}), in each layer's first sparse call"
            )
        return lines + [f"note: {note}" for note in tally.remarks]
