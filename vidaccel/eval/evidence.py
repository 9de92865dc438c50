"""A comparison as a record: the figures, and what they were measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidaccel.eval.compare import Comparison
from vidaccel.eval.record import Record
from vidaccel.eval.sizes import attention_share, real_sizes
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import experts, family_named

FILES = {"dense": "dense.mp4", "fast": "fast.mp4", "side_by_side": "side_by_side.mp4"}
SETTINGS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")


def comparison_record(
    kind: str, pipe: Any, name: str, prompt: str, seed: int, comparison: Comparison, call: dict[str, Any], fps: float,
    mask_png: str | None,
) -> Record:
    """The record of one comparison.

    Args:
        kind, name: of the record and of the model.
        call: the pipeline call's arguments; size, frames, steps and guidance must be among them.
        mask_png: picture of the mask, base64.
    """
    values = comparison.summary.to_dict()
    dense_layers = comparison.summary.schedule["dense_first_layers"]
    model = describe(pipe, name)
    layers = int(dense_layers * model["layers"]) if isinstance(dense_layers, float) else dense_layers
    return Record.capture(
        kind=kind, seed=seed, prompt=prompt, negative_prompt=call.get("negative_prompt"), model=model,
        settings=generation_settings(pipe, call, fps),
        method=values["method"], schedule=values["schedule"], backend=values["backend"], layout=values["layout"],
        density=values["density"], calls=values["calls"], timing=comparison.timing(), metrics=comparison.metrics,
        notes=[*values["notes"], *_notes(pipe, model, values["layout"])], mask_png=mask_png,
        real_sizes=real_sizes(values["method"]["name"], layers), files=dict(FILES),
    )  # fmt: skip


def generation_settings(pipe: Any, call: Mapping[str, Any], fps: float) -> dict[str, Any]:
    """Size, frames, steps and guidance of a call, and on what it ran, JSON-ready."""
    dtype = str(pipe.transformer.dtype).removeprefix("torch.")
    return {key: call[key] for key in SETTINGS} | {"fps": fps, "dtype": dtype, "device": str(pipe.device)}


def describe(pipe: Any, name: str) -> dict[str, Any]:
    """Name, classes and attention shape of a pipeline's model, JSON-ready; no shape where no family of ours has it."""
    transformer = next(iter(experts(pipe).values()))
    named = {"name": name, "pipeline": type(pipe).__name__, "transformer": type(transformer).__name__}
    if (family := family_named(named["transformer"])) is None:
        return {**named, "layers": None, "heads": None, "head_dim": None}
    heads, head_dim = family.heads(transformer)
    return {**named, "layers": len(family.sites(transformer)), "heads": heads, "head_dim": head_dim}


def _notes(pipe: Any, model: dict[str, Any], layout: dict[str, int] | None) -> list[str]:
    """What limits the gain here, and how the counted one is meant."""
    counted = ("the gains at real sizes are counted work of one sparse step's self-attention, not measured time, "
               "with the method's defaults for each family")
    if layout is None:
        return [counted]
    tokens = TokenLayout(**layout).tokens
    transformer = next(iter(experts(pipe).values()))
    share = attention_share(transformer, tokens, model["layers"], model["heads"], model["head_dim"])
    return [f"self-attention is about {share:.0%} of this transformer's counted work at {tokens:,} tokens: a step "
            f"without any would still have about {1 - share:.0%} of it", counted]
