"""Cache calibrations with random numbers, for tests of what goes by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vidaccel.architecture import describe
from vidaccel.caching.base import Turn
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.guided import Guided, exact
from vidaccel.caching.track import Track, rounded
from vidaccel.methods import ModelFacts

FACTS = ModelFacts("WanTransformer3DModel", {"num_layers": 4, "patch_size": (1, 2, 2)}, 4, 2, 64)


def random_track(first: int, steps: int, rng: np.random.Generator, blocks: int = 4) -> Track:
    """A track of `steps` steps; differences grow with the distance between steps, as they do."""

    def row(count: int) -> tuple[float, ...]:
        return tuple(rounded(each) for each in rng.uniform(0.02, 0.2, count))

    def pairs() -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(rounded(each * (step - kept)) for kept, each in enumerate(row(step)))
                     for step in range(steps))  # fmt: skip

    return Track(
        first, (1.0, *(rounded(1 + each) for each in rng.uniform(-0.05, 0.03, steps - 1))), pairs(), pairs(),
        tuple(tuple((a - 0.1, b) for a, b in zip(row(step), row(step), strict=True)) for step in range(steps)),
        ((0.0,) * blocks, *(row(blocks) for _ in range(steps - 1))), (0.0, *row(steps - 1)), row(steps), row(steps),
        (0.0, *row(steps - 1)),
    )  # fmt: skip


def random_guided(steps: int, rng: np.random.Generator) -> Guided:
    """Products of outputs that go a crooked way, and effects of any size."""
    outputs = np.cumsum(rng.standard_normal((steps, 8)), 0) + 3
    inner = outputs @ outputs.T
    inner /= np.trace(inner) / steps
    rows = tuple(tuple(exact(each) for each in row[: step + 1]) for step, row in enumerate(inner.tolist()))
    return Guided(rows, tuple(rounded(each) for each in rng.uniform(0.05, 0.3, steps)))


def made(
    steps: int = 12, *, branches: Sequence[str] = ("cond", "uncond"), switch: int | None = None, seed: int = 0,
    **changed: Any,
) -> CacheCalibration:  # fmt: skip
    """A calibration of a run; at `switch` a second expert takes over."""
    rng = np.random.default_rng(seed)
    parts = {"transformer": (0, switch or steps)} | ({"transformer_2": (switch, steps)} if switch else {})
    tracks = {expert: {branch: random_track(start, end - start, rng) for branch in branches}
              for expert, (start, end) in parts.items()}  # fmt: skip
    values: dict[str, Any] = {
        "model": describe(dict.fromkeys(parts, FACTS)), "steps": steps,
        "timesteps": tuple(rounded(1000 * (1 - (step / steps) ** 2)) for step in range(steps)),
        "scheduler": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "guidance": 5.0, "tracks": tracks,
        "guided": random_guided(steps, rng), "prompts": {"count": 1, "sha256": "0" * 64}, "versions": {"vidaccel": "0"},
    }  # fmt: skip
    return CacheCalibration(**(values | changed))


def turn(step: int, since: int, steps: int | None = 12, **changed: Any) -> Turn:
    """A call of a branch that was last computed `since` steps ago."""
    values: dict[str, Any] = {"branch": "cond", "expert": "transformer", "expert_step": 0, "timestep": 500.0,
                              "timesteps": None, "must_compute": False}  # fmt: skip
    return Turn(step=step, steps=steps, since=since, **(values | changed))


def computed_by(policy: Any, steps: int, *, switch: int | None = None, forced: Sequence[int] = (0,),
                **changed: Any) -> list[int]:
    """The steps that a run computes: `forced` ones, an expert's first, and those that the policy does not reuse."""
    last, found = None, []
    for step in range(steps):
        second = switch is not None and step >= switch
        if step == switch:
            last = None
        must = step in forced or last is None
        place = {"expert": "transformer_2", "expert_step": switch} if second else {}
        now = turn(step, 0 if last is None else step - last, steps, must_compute=must, **(place | changed))
        if not policy.decide(now, None, {}).reuse or must:
            last = step
            found.append(step)
    return found
