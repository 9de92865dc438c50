"""What each layer did in each step of a run, all guidance passes taken together: what records hold and reports draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vidaccel.caching.log import Decision

DENSE, SPARSE, REUSED, PREDICTED, MIXED = "D", "S", "R", "P", "M"
DIGITS = 4
Pass = tuple[str, str, int]
"""Expert, branch, step: one transformer call."""
Place = tuple[str, str, int, int]
"""Expert, branch, layer, step."""


@dataclass
class Course:
    """Which blocks ran in each transformer call of a run."""

    ran: dict[Pass, set[int]] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    """Blocks of each expert."""

    def begin(self, place: Pass, depth: int) -> None:
        """A transformer of `depth` blocks is called."""
        self.ran.setdefault(place, set())
        self.depths[place[0]] = depth

    def run(self, place: Pass, blocks: Iterable[int]) -> None:
        """Some of its blocks run."""
        self.ran[place].update(blocks)

    def step_map(
        self, densities: Mapping[Place, float], whole: set[Place], decisions: Iterable[Decision] = ()
    ) -> dict[str, Any] | None:
        """The map, JSON-ready.

        Args:
            densities: video density of each call that was left to the method.
            whole: those of them that it planned dense.
            decisions: of the cache.

        Returns:
            ``layers``, their number, and ``steps``, for each of the run ``kinds``, a letter for each layer (D dense, S
            sparse, R reused, P predicted, M where guidance passes differ), and ``density``, the mean video density of
            the layer's computed passes, None where none was. None before a run, and where experts differ in depth.
        """
        if len(set(self.depths.values())) != 1:
            return None
        layers = next(iter(self.depths.values()))
        told = {(each.expert, each.branch, each.step): each.what for each in decisions}
        cells: list[list[list[tuple[str, float | None]]]] = [
            [[] for _ in range(layers)] for _ in range(1 + max(step for *_, step in self.ran))
        ]
        for (expert, branch, step), ran in self.ran.items():
            passed_by = REUSED if told.get((expert, branch, step)) == "reused" else PREDICTED
            for layer in range(layers):
                place = (expert, branch, layer, step)
                computed = (SPARSE, densities[place]) if place in densities and place not in whole else (DENSE, 1.0)
                cells[step][layer].append(computed if layer in ran else (passed_by, None))
        return {"layers": layers, "steps": [_step(row) for row in cells]}


def _step(layers: list[list[tuple[str, float | None]]]) -> dict[str, Any]:
    return {"kinds": "".join(_kind({kind for kind, _ in each}) for each in layers),
            "density": [_mean([value for _, value in each if value is not None]) for each in layers]}  # fmt: skip


def _kind(found: set[str]) -> str:
    """That of a layer; a step without any call of the transformer stands on what came before it."""
    return MIXED if len(found) > 1 else next(iter(found), REUSED)


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), DIGITS) if values else None
