"""The blocks whose residuals change least are passed by between refreshes; all others run in every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vidaccel.caching.base import Signals, Turn, Verdict, check_share
from vidaccel.caching.measured import Measured, count_of
from vidaccel.caching.optimal import best_blocks

CHANGES, SEGMENTS = "_changes", "_segments"


@dataclass(frozen=True)
class BlockProfile(Measured):
    """After ProfilingDiT: part of the blocks are reused, and refreshed at intervals that shrink over the run.

    The paper takes the blocks that attend to the background. Here they are those with the least relative change of
    their own residual from step to step, mean over steps, branches and experts, as measured: no segmentation model is
    needed for that. With ``T`` steps from one refresh to the next, T falls from `most` after the warm-up, in a
    straight line, to `least` at the end of the run; a step reuses while fewer than T have passed since the last
    refresh.

    Args:
        file: a calibration, see `Measured`; runs may have any number of steps.
        share: of the blocks that are reused, in (0, 1].
        runs: runs of neighbouring blocks that they lie in, at most: each keeps a residual.
        most, least: steps from refresh to refresh, after the warm-up and at the end.
        warmup: steps at the start of a run that compute everything, a share below 1.

    Raises:
        ValueError: no calibration, or a value out of range.
    """

    name: ClassVar[str] = "block_profile"
    paper: ClassVar[str] = "ProfilingDiT, Ma et al. 2025 (arXiv 2504.03140)"
    any_steps: ClassVar[bool] = True

    share: float = 0.5
    runs: int = 4
    most: int = 6
    least: int = 2
    warmup: float = 0.12

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("runs", 1), ("least", 1), ("most", self.least)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} {value!r} is not a whole number of at least {low}")
        check_share("share", self.share, 1)
        number = isinstance(self.warmup, int | float) and not isinstance(self.warmup, bool)
        if not number or not 0 <= self.warmup < 1:
            raise ValueError(f"warmup {self.warmup!r} is not a share from 0 to below 1")
        changes = self._changes()
        chosen = best_blocks(changes, count_of("share", float(self.share), len(changes)), self.runs)
        object.__setattr__(self, CHANGES, changes)
        object.__setattr__(self, SEGMENTS, chosen)

    @property
    def changes(self) -> tuple[float, ...]:
        """Of each block: mean relative change of its residual from one step to the next."""
        found: tuple[float, ...] = self.__dict__[CHANGES]
        return found

    def segments(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """The reused blocks.

        Raises:
            ValueError: the model has other blocks than the calibration.
        """
        if blocks != len(self.changes):
            raise ValueError(f"the calibration is of {len(self.changes)} blocks, and the model has {blocks}")
        found: tuple[tuple[int, int], ...] = self.__dict__[SEGMENTS]
        return found

    def decide(self, turn: Turn, signals: Signals, state: dict[str, Any]) -> Verdict:
        if turn.steps is None:
            raise ValueError("block_profile needs the number of steps: give num_inference_steps")
        start = int(self.warmup * turn.steps + 1e-9)
        if turn.since == 0 or turn.step < start:
            return Verdict(False)
        interval = self.most - (self.most - self.least) * (turn.step - start) / max(1, turn.steps - start)
        return Verdict(turn.since < interval * turn.allowance, float(turn.since))

    def _changes(self) -> tuple[float, ...]:
        tracks = [track for expert in self.known.tracks.values() for track in expert.values()]
        if len({len(track.blocks[0]) for track in tracks}) > 1:
            raise ValueError("block_profile needs experts with as many blocks as each other")
        # An expert's first step has none before it.
        rows = [row for track in tracks for row in track.blocks[1:]]
        if not rows:
            raise ValueError("the calibration has no two steps of one expert to compare blocks at")
        return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))
