"""The published settings of Sparse VideoGen 2, by model and size; see `vidaccel.methods.semantic`."""

from __future__ import annotations

from typing import Any

from vidaccel.methods.presets import Preset

DEFAULTS: dict[str, Any] = {"by": "tile", "first_iterations": 10, "iterations": 2, "warmup": True}
"""Where neither an option nor a preset says."""


def _of(queries: int, keys: int, dense_steps: float, dense_layers: int, *, warmup: bool) -> Preset:
    """All of them keep 90 % of the attention and at least 10 % of the key clusters."""
    options = {
        "density": None, "top_p": 0.9, "minimum": 0.1, "by": "cluster", "rank": "mass", "first_iterations": 50,
        "iterations": 2, "query_clusters": queries, "key_clusters": keys, "warmup": warmup,
    }  # fmt: skip
    return Preset(options, dense_steps, dense_layers)


PRESETS = {
    "wan2.1-14b-t2v-720p": _of(300, 1000, 0.2, 2, warmup=False),
    "wan2.1-14b-i2v-720p": _of(300, 1000, 0.35, 2, warmup=False),
    "wan2.1-14b-i2v-480p": _of(200, 1000, 0.2, 2, warmup=True),
    "hunyuanvideo-720p": _of(400, 1000, 0.1, 2, warmup=True),
    "hunyuanvideo-480p": _of(200, 1000, 0.04, 0, warmup=True),
    "cosmos-704p": _of(400, 1000, 0.3, 2, warmup=False),
}
"""Dense layers are those whose index is under 3 % of 40 (Wan), 60 (HunyuanVideo) and 36 (Cosmos) layers."""
