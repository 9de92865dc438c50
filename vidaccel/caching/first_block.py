"""What the first block adds tells whether the others will add what they did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.caching.base import CachePolicy, Signals, Turn, Verdict, check_share
from vidaccel.caching.changes import relative_change

NOW, REFERENCE = "now", "reference"


@dataclass(frozen=True)
class FirstBlock(CachePolicy):
    """First block cache: the first block runs in every step, and the others while its residual changes.

    With ``r`` what the first block adds to the video tokens and ``c`` the last computed step, the others are reused
    unless ``mean|r - r_c| / mean|r_c| > threshold``. Changes do not add up: only what is computed becomes the
    reference. Each guidance pass decides for itself. The decisions are those of diffusers' `FirstBlockCacheConfig`;
    steps that must be computed, such as the first and the last, come on top, and where both guidance passes share a
    call (CogVideoX) the conditional rows alone decide.

    A tensor of the video tokens is kept. Each step that may be reused waits for the device once.

    Args:
        threshold: of the change; diffusers' default.

    Raises:
        ValueError: a threshold that is not above 0, or, when it is enabled, a model of one block.
    """

    name: ClassVar[str] = "first_block"
    paper: ClassVar[str] = "https://github.com/chengzeyi/ParaAttention"
    leads: ClassVar[bool] = False

    threshold: float = 0.05

    def __post_init__(self) -> None:
        check_share("threshold", self.threshold)

    def segments(self, blocks: int) -> tuple[tuple[int, int], ...]:
        if blocks < 2:
            raise ValueError(f"first_block needs blocks after the first, and the model has {blocks} in all")
        return ((1, blocks),)

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        now, reference = signals.first_residual().detach(), state.get(REFERENCE)
        if turn.must_compute or turn.since == 0 or reference is None:
            state[NOW] = now
            return Verdict(False)
        change = relative_change(now, reference, signals.mean).item()
        reuse = change <= self.threshold * turn.allowance
        # The blocks that follow may need the memory: what a reused step had is not kept.
        if not reuse:
            state[NOW] = now
        return Verdict(reuse, change)

    def observe(self, turn: Turn, signals: Signals, residual: Tensor, state: dict[str, Any]) -> None:
        state[REFERENCE] = state.pop(NOW)
