"""The calibrator: measures what each head of a pipeline can do without, and makes a profile of it."""

from __future__ import annotations

from vidaccel.calibration.run import calibrate

__all__ = ["calibrate"]
