"""What the tests of whole calibrations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidaccel.calibration import calibrate
from vidaccel.profile import Profile

PROMPTS = ["a red circle moves left", "a blue square moves right", "a red square"]
SIZE: dict[str, Any] = {"num_frames": 17, "height": 64, "width": 96, "num_inference_steps": 4,
                        "max_sequence_length": 16}  # fmt: skip
"""5x4x6 video tokens and 4 steps, of which the first is dense."""
GUIDED = SIZE | {"negative_prompt": "blurry", "guidance_scale": 3.0}


def calibrated(pipe: Any, prompts: Sequence[str] = PROMPTS, **options: Any) -> Profile:
    """A calibration of a tiny pipeline: quick, and the same on every machine."""
    given = {"target_density": 0.6, "rows": 16, "steps_per_band": 2, "cost": "density", "generation_kwargs": GUIDED}
    return calibrate(pipe, prompts, **(given | options))
