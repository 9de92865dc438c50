"""Evidence: a dense and a fast run from the same seed, their fidelity, their time, and the record of it all."""

from __future__ import annotations

from vidaccel.eval.compare import Comparison, compare
from vidaccel.eval.metrics import compare_videos
from vidaccel.eval.record import Record

__all__ = ["Comparison", "Record", "compare", "compare_videos"]
