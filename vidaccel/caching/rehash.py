"""Two computed steps in a row that are alike stand for a third."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.caching.base import CachePolicy, Signals, Turn, Verdict, check_share
from vidaccel.caching.changes import relative_change

RESIDUAL, CHANGE = "residual", "change"


@dataclass(frozen=True)
class Rehash(CachePolicy):
    """Adjacent-step reuse, after the idea of Step Rehash: the rule is ours, as theirs is not public in numbers.

    Where two steps in a row are computed and their residuals `R` of the block stack differ by ``mean|R - R before| /
    mean|R before| < threshold``, the next step is reused; never two in a row. So a third of a run is reused at most,
    each time from the step right before.

    The residual that it compares with is the one that is kept for reuse anyway. The change is computed with the second
    step and read at the third, so that nothing waits for the device but a step that may be reused, once.

    Args:
        threshold: of the change.

    Raises:
        ValueError: a threshold that is not above 0.
    """

    name: ClassVar[str] = "rehash"

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_share("threshold", self.threshold)

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        change = state.pop(CHANGE, None)
        if turn.must_compute or turn.since != 1 or change is None:
            return Verdict(False)
        indicator = change.item()
        return Verdict(indicator < self.threshold * turn.allowance, indicator)

    def observe(self, turn: Turn, signals: Signals, residual: Tensor, state: dict[str, Any]) -> None:
        before, state[RESIDUAL] = state.get(RESIDUAL), residual.detach()
        if before is not None and turn.since == 1:
            state[CHANGE] = relative_change(residual.detach(), before, signals.mean)
