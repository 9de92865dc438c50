"""What a session did in its last run, for people and for records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vidaccel.layout import TokenLayout
from vidaccel.plan import BlockMask, Density


@dataclass
class Tally:
    """Counts of the attention calls of one run."""

    sparse: int = 0
    dense: dict[str, int] = field(default_factory=dict)
    """Dense calls by reason."""
    attended: float = 0.0
    """Sum of the sparse calls' densities."""
    density: Density | None = None
    """Of the last sparse call."""
    mask: BlockMask | None = None
    layout: TokenLayout | None = None
    steps: int | None = None
    backend: str | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Remember a remark once."""
        if text not in self.notes:
            self.notes.append(text)

    def count_dense(self, reason: str) -> None:
        """Count one dense call."""
        self.dense[reason] = self.dense.get(reason, 0) + 1

    @property
    def all_calls(self) -> float:
        """Mean density over dense and sparse calls: the share of dense attention's work that the run did."""
        calls = self.sparse + sum(self.dense.values())
        return (self.attended + sum(self.dense.values())) / calls if calls else 1.0


@dataclass(frozen=True)
class Summary:
    """The setting and the last run of a session. `print` it, or take `to_dict`.

    Args:
        family: of the model.
        method, options, schedule, min_tokens: the setting.
        requested_backend: as asked for; `tally.backend` is what ran.
        runs: generations seen.
        tally: counts of the last run.
    """

    family: str
    method: str
    options: dict[str, Any]
    schedule: dict[str, float]
    min_tokens: int
    requested_backend: str
    runs: int
    tally: Tally

    @property
    def mask(self) -> BlockMask | None:
        """The mask of the last sparse call."""
        return self.tally.mask

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; `density` and `layout` are None before a run."""
        tally = self.tally
        density = dataclasses.asdict(tally.density) | {"all_calls": tally.all_calls} if tally.density else None
        return {
            "family": self.family,
            "method": {"name": self.method, "options": self.options},
            "schedule": self.schedule,
            "min_tokens": self.min_tokens,
            "backend": tally.backend,
            "requested_backend": self.requested_backend,
            "runs": self.runs,
            "steps": tally.steps,
            "layout": dataclasses.asdict(tally.layout) if tally.layout else None,
            "calls": {"sparse": tally.sparse, "dense": sum(tally.dense.values())},
            "dense_calls": dict(tally.dense),
            "density": density,
            "notes": list(tally.notes),
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
        if tally.density:
            lines.append(
                f"video density {tally.density.video_density:.4f} in sparse calls; the run's attention did "
                f"{tally.all_calls:.4f} of the dense work"
            )
        return lines + [f"note: {note}" for note in tally.notes]
