"""The calibrators: of what each head of a pipeline can do without, and of how alike its steps are."""

from __future__ import annotations

from vidaccel.calibration.cache import calibrate_cache
from vidaccel.calibration.run import calibrate

__all__ = ["calibrate", "calibrate_cache"]
