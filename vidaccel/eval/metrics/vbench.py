"""VBench (Huang et al., arXiv 2311.17982), by the package `vbench` of its authors: a scorer for each dimension.

Only its public interface is used, with clips of one's own (``mode="custom_input"``).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidaccel.eval.video import write_lossless

PACKAGE = "vbench"
# No extra of ours: it asks for a transformers with which no present diffusers runs.
DIMENSIONS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "temporal_style", "overall_consistency",
)  # fmt: skip
"""Those that need no prompts of VBench's own."""


class VBench:
    """One dimension of VBench; a `vidaccel.eval.metrics.scorer.Scorer`.

    Raises:
        ValueError: no such dimension, or the package is not installed.
    """

    better = "higher"

    def __init__(self, dimension: str) -> None:
        if dimension not in DIMENSIONS:
            raise ValueError(f"VBench has no dimension {dimension!r} for clips of one's own; choose vbench:DIMENSION "
                             f"of {', '.join(DIMENSIONS)}")  # fmt: skip
        if importlib.util.find_spec(PACKAGE) is None:
            raise ValueError(f"scorer 'vbench:{dimension}' needs the package vbench, which is not installed; "
                             "docs/metrics.md says how")  # fmt: skip
        self.dimension, self.name = dimension, f"vbench:{dimension}"
        try:
            self.version = importlib.metadata.version(PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            self.version = "unknown"  # a checkout on the path

    def score(self, frames: NDArray[np.uint8], fps: float, prompt: str) -> float:
        """VBench's number for a clip, which it reads from a file without loss; it loads its model for each clip.

        Raises:
            Exception: whatever VBench raises, or ValueError where it gives no number.
        """
        with tempfile.TemporaryDirectory(prefix="vidaccel-vbench-") as folder:
            # VBench reads no .mkv.
            clip = write_lossless(frames, Path(folder) / "clip.mp4", fps)
            return self._evaluated(clip, prompt, Path(folder) / "results")

    def _evaluated(self, clip: Path, prompt: str, results: Path) -> float:
        import torch

        module: Any = importlib.import_module(PACKAGE)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        full_info = Path(module.__file__).with_name("VBench_full_info.json")
        judge = module.VBench(device, str(full_info), str(results))
        judge.evaluate(videos_path=str(clip), name="clip", prompt_list=[prompt], dimension_list=[self.dimension],
                       mode="custom_input")  # fmt: skip
        told = json.loads((results / "clip_eval_results.json").read_text(encoding="utf-8"))
        # The score, and behind it that of each clip, which some dimensions have on another scale.
        score = told[self.dimension][0]
        if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(score):
            raise ValueError(f"VBench gave {score!r} for {self.dimension}, which is no number")
        return float(score)
