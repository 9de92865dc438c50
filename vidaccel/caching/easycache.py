"""The last computed step tells how fast the model's output follows its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.caching.base import CachePolicy, Place, Signals, Turn, Verdict, check_share
from vidaccel.caching.changes import mean_size

BEFORE, INPUT, OUTPUT, RATE, SUM = "before", "input", "output", "rate", "sum"


@dataclass(frozen=True)
class EasyCache(CachePolicy):
    """EasyCache: steps are reused until their inputs have moved by a share of what the output is worth.

    With ``x`` the latents that the model gets, ``v`` what it returns and ``c`` the last computed step, each step adds
    ``k * mean|x - x before| / mean|v_c|``, where ``x before`` is of the step before, reused or not. Below `threshold`
    it is reused, else it is computed and the sum starts from 0 again. Each computed step measures ``k = mean|v - v_c| /
    mean|x - x_c|`` against the one before it, so the first two are always computed. Reused is ``v`` as it is, where the
    paper's ``x + (v_c - x_c)`` is ``reuse="output"`` held: that was 1 to 7 dB worse on three trained miniatures.

    Latents are far smaller than a model's tokens: three of them in fp32 are kept. Nothing has to be calibrated. Each
    step that may be reused waits for the device once.

    The first tenth of a run is always computed, the authors' 5 of 50 steps as a share, so that runs of 20 steps keep
    something to reuse. (Their script for Wan keeps 10.)

    Args:
        threshold: of the sum; the authors take 0.05 for Wan and 0.025 for HunyuanVideo.

    Raises:
        ValueError: a threshold that is not above 0.
    """

    name: ClassVar[str] = "easycache"
    paper: ClassVar[str] = "https://arxiv.org/abs/2507.02860"
    place: ClassVar[Place] = Place.OUTPUT
    gives: ClassVar[Place | None] = Place.PREDICTION
    first_steps: ClassVar[float] = 0.1

    threshold: float = 0.05

    def __post_init__(self) -> None:
        check_share("threshold", self.threshold)

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        # A copy: a pipeline's callback may change latents where they lie.
        now = signals.latents().detach().to(torch.float32, copy=True)
        before, state[BEFORE] = state.get(BEFORE), now
        if turn.must_compute or turn.since == 0 or before is None or RATE not in state:
            state[SUM] = 0.0
            return Verdict(False)
        moved = state[RATE] * signals.mean((now - before).abs_()) / mean_size(state[OUTPUT], signals.mean)
        total = state[SUM] + moved.item()
        reuse = total < self.threshold * turn.allowance
        state[SUM] = total if reuse else 0.0
        return Verdict(reuse, total)

    def observe(self, turn: Turn, signals: Signals, residual: Tensor, state: dict[str, Any]) -> None:
        entered = state[BEFORE]
        output = entered + residual.detach()
        if OUTPUT in state:
            moved = mean_size(entered - state[INPUT], signals.mean)
            state[RATE] = signals.mean((output - state[OUTPUT]).abs_()) / moved
        state[INPUT], state[OUTPUT] = entered, output
