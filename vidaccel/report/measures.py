"""The metrics of a group of rows: what they are called, which way they are better, and what they compare with."""

from __future__ import annotations

from dataclasses import dataclass

from vidaccel.eval.table import HEADINGS, SHOWN_METRICS, scored
from vidaccel.report.eval_folder import Group

BETTER = {**dict.fromkeys(("psnr", "ssim", "speedup"), "higher"),
          **dict.fromkeys(("lpips", "st_lpips", "flicker", "latent_error"), "lower")}  # fmt: skip
"""Which way columns of the table are better; those that are choices have no way."""
ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(frozen=True)
class Metric:
    """One measure of quality.

    Args:
        name: in records.
        better: "higher" or "lower".
        judged: whether it is an outside judge's score of the clip by itself; else the clip is compared with the dense
            one, and the best is to be identical.
    """

    name: str
    better: str
    judged: bool = False

    @property
    def heading(self) -> str:
        """What stands above its column."""
        return HEADINGS.get(self.name, self.name)

    @property
    def title(self) -> str:
        """Heading and arrow."""
        return f"{self.heading} {ARROWS[self.better]}"


def metrics_of(group: Group) -> list[Metric]:
    """Those to plot: what some row has and a better way; the scores of outside judges come last.

    Raises:
        ValueError: a score whose record does not say which way it is better.
    """
    found = [Metric(name, BETTER[name]) for name in SHOWN_METRICS
             if name in BETTER and any(row.counts.get(name) for row in group.rows)]  # fmt: skip
    return found + [Metric(name, _way(group, name), judged=True) for name in scored(group.rows)]


def arrow(group: Group, name: str) -> str:
    """An arrow up where more of a column is better, down where less is, else nothing."""
    judged = {metric.name: metric.better for metric in metrics_of(group) if metric.judged}
    return ARROWS.get((BETTER | judged).get(name, ""), "")


def _way(group: Group, name: str) -> str:
    told = [(cell.record.get("scores") or {}).get(name) for row in group.cells for cell in row]
    ways = {each["better"] if isinstance(each, dict) and "better" in each else None for each in told if each}
    if len(ways) != 1 or not ways <= set(ARROWS):
        raise ValueError(f"the records do not agree whether higher or lower scores of {name!r} are better: {ways}")
    return str(ways.pop())
