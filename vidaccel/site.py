"""Where an attention call happens."""

from __future__ import annotations

from dataclasses import dataclass

from vidaccel.layout import TokenLayout


@dataclass(frozen=True)
class Site:
    """One self-attention call of one run.

    Args:
        layer: index of the attention layer within its transformer, from 0.
        layers: attention layers of that transformer.
        step: denoising step, from 0, counted over all experts.
        steps: steps of this run, None where only a bare transformer is known.
        branch: the classifier-free guidance pass, such as "cond" and "uncond".
        expert: name of the transformer in its pipeline, such as "transformer" and "transformer_2".
        layout: the token grid of this call.
    """

    layer: int
    layers: int
    step: int
    steps: int | None
    branch: str
    expert: str
    layout: TokenLayout
