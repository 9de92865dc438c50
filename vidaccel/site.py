"""Where an attention call happens, and what an observer sees of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.plan import AttentionPlan


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


@dataclass(frozen=True, eq=False)
class Observed:
    """One attention call as an observer sees it, once its output is there. Its tensors are the run's own: to read only.

    Args:
        site: where it happened.
        plan: what ran; a dense call has a plan without a mask.
        query, key: ``[batch, tokens, heads, head_dim]``, after normalisation and position embeddings.
        value: as the key.
        key_lengths: int ``[batch]``, valid keys of each row; None where all are.
        how: how the output came about, in words.
        heads: what the method chose for each head, see `vidaccel.methods.Method.heads_have`; None where it chose none.
    """

    site: Site
    plan: AttentionPlan
    query: Tensor
    key: Tensor
    value: Tensor
    key_lengths: Tensor | None
    how: str
    heads: tuple[Mapping[str, Any], ...] | None = None


Observer = Callable[[Observed], None]
