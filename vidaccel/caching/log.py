"""What a cache decided in a run, and how long each step took."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

COMPUTED, GUIDANCE = "computed", "guidance"
NUMBERS = ("indicator", "guidance_change")
"""Of a decision, what it went by."""
DIGITS = 4


@dataclass(frozen=True)
class Decision:
    """What became of one transformer call.

    Args:
        step, expert, branch: where.
        what: "computed"; "reused" or "predicted" from earlier steps; "guidance": given the conditional pass of its
            step and the difference of an earlier one.
        indicator: the number that the policy went by; None where it went by none.
        forced: computed by the plan, whatever the policy said.
        sparse: whether its attention was sparse.
        guidance_change: by how much the difference between the guidance passes last changed a step, where that decided
            between "computed" and "guidance".
    """

    step: int
    expert: str
    branch: str
    what: str
    indicator: float | None
    forced: bool
    sparse: bool
    guidance_change: float | None = None


@dataclass
class Log:
    """Decisions of one run, and what its calls took."""

    decisions: list[Decision] = field(default_factory=list)
    spared: int = 0
    """Calls of blocks that were passed by."""
    notes: list[str] = field(default_factory=list)
    """What a user should know of the run."""
    _marks: list[tuple[Any, Any]] = field(default_factory=list)
    _begun: Any = None

    def start(self, device: torch.device) -> None:
        """A call begins."""
        self._begun = _mark(device)

    def add(self, decision: Decision, device: torch.device) -> None:
        """A call has ended."""
        self.decisions.append(decision)
        self._marks.append((self._begun, _mark(device)))

    def seconds(self) -> list[float]:
        """What each call took; waits for a GPU."""
        return [_between(begun, ended) for begun, ended in self._marks]

    @property
    def computed_share(self) -> float | None:
        """Share of the calls that were computed; None before a run."""
        if not self.decisions:
            return None
        return sum(each.what == COMPUTED for each in self.decisions) / len(self.decisions)

    def times(self) -> dict[str, float] | None:
        """Seconds of the transformer calls: ``measured``, and ``uncached``, what they would have taken computed, from
        the median of those that were, sparse and dense ones apart. None where some kind of call never was."""
        seconds, kinds = self.seconds(), {each.sparse for each in self.decisions}
        typical = {}
        for kind in kinds:
            took = [each for each, made in zip(seconds, self.decisions, strict=True)
                    if made.what == COMPUTED and made.sparse is kind]  # fmt: skip
            if not took:
                return None
            typical[kind] = statistics.median(took)
        return {"measured": sum(seconds), "uncached": sum(typical[each.sparse] for each in self.decisions)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        steps = [asdict(each) | {name: _rounded(getattr(each, name)) for name in NUMBERS} for each in self.decisions]
        times = self.times() if self.decisions else None
        return {"computed_share": self.computed_share, "decisions": steps, "notes": list(self.notes),
                "seconds": times and {name: round(each, DIGITS) for name, each in times.items()}}  # fmt: skip

    def lines(self) -> list[str]:
        """For people: a letter for each step of each pass, and the times."""
        if not self.decisions:
            return []
        rows: dict[tuple[str, str], list[Decision]] = {}
        for each in self.decisions:
            rows.setdefault((each.expert, each.branch), []).append(each)
        out = [f"cache: {self.computed_share:.0%} of {len(self.decisions)} calls computed "
               "(C computed, c by the plan, r reused, p predicted, g by guidance)"]  # fmt: skip
        for (expert, branch), made in rows.items():
            letters = "".join(_letter(each) for each in made)
            out.append(f"  {expert} {branch} from step {made[0].step}: {letters}{_shown_indicators(made)}")
        if (times := self.times()) is not None:
            out.append(f"  transformer calls took {times['measured']:.2f} s; all computed, at the median of those that "
                       f"were, {times['uncached']:.2f} s")  # fmt: skip
        return out + [f"note: {note}" for note in self.notes]


def _letter(decision: Decision) -> str:
    if decision.what == COMPUTED:
        return "c" if decision.forced else "C"
    return {"reused": "r", "predicted": "p", GUIDANCE: "g"}[decision.what]


def _shown_indicators(made: list[Decision]) -> str:
    out = ""
    for name in NUMBERS:
        if values := [value for each in made if (value := getattr(each, name)) is not None]:
            out += f", {name.replace('_', ' ')} {min(values):.3g} to {max(values):.3g}"
    return out


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _mark(device: torch.device) -> Any:
    """A moment: on a GPU of its stream, so that nothing waits."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(begun: Any, ended: Any) -> float:
    if isinstance(begun, float):
        return float(ended) - begun
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1000
