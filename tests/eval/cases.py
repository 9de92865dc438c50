"""Cells of an eval without a model: only the signature of a pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from vidaccel.eval.cells import Cell, plan_cells
from vidaccel.eval.settings import Settings
from vidaccel.eval.sources import Source


class Pipeline:
    """A pipeline's signature: planning loads none."""

    def __call__(self, prompt: str, negative_prompt: str | None = None, height: int = 480, width: int = 832,
                 num_frames: int = 81, num_inference_steps: int = 50, guidance_scale: float = 5.0) -> None: ...


class ImagePipeline(Pipeline):
    def __call__(self, image: Any, prompt: str, num_inference_steps: int = 50) -> None: ...  # type: ignore[override]


def source(**values: Any) -> Source:
    def load() -> Any:
        pytest.fail("it was loaded")

    given = {"name": "miniature:wan", "pipeline": Pipeline, "transformer": "WanTransformer3DModel",
             "load": load, "dtype": "float32", "identify": lambda: "sha256:0", "device": "cpu", **values}  # fmt: skip
    return Source(**given)


def plan(values: dict[str, Any] | None = None, *sources: Source) -> list[Cell]:
    given = {"prompt": "a red circle", "baselines": False, **(values or {})}
    return plan_cells(sources or (source(),), Settings.of(given))
