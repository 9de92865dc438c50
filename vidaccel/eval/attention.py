"""What a model's attention attends to: block-averaged maps of every layer and head, taken while a pipeline runs.

Works for every diffusers video pipeline, with stock processors or ours on dense steps: it watches torch's own attention
call, keeps one small map of it, and lets it pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vidaccel.api import set_aside
from vidaccel.layout import TokenLayout
from vidaccel.pipelines import experts

CHUNK = 1024
"""Query rows whose attention is held at once."""
Maps = dict[tuple[int, int], Tensor]
"""By step and layer, counted from 0: ``[heads, query blocks, key blocks]``, fp32."""


def attention_maps(
    pipe: Any, prompt: str, layout: TokenLayout, steps: Collection[int], *, block: int = 16, seed: int = 0,
    generation_kwargs: Mapping[str, Any] | None = None,
) -> Maps:
    """Generate once, dense, and map the self-attention of every layer at some steps.

    Of a step's passes the first is seen, and of a batch its last row: with guidance, the pass with the prompt.

    Args:
        pipe: any diffusers video pipeline whose transformer calls torch's `scaled_dot_product_attention`.
        layout: of its self-attention, text included.
        steps: denoising steps, counted from 0.
        block: tokens along a block's side.
        seed: of the noise, drawn on the CPU.
        generation_kwargs: for the pipeline's call; nothing is decoded.

    Raises:
        ValueError: a step or block that is none, a run in which no call of `layout` was seen at one of the steps, or a
            model whose mask is not one of keys.
    """
    if block < 1 or not steps or min(steps) < 0:
        raise ValueError(f"block={block} and steps={sorted(steps)}: a block has at least 1 token, steps count from 0")
    watch = _Watch(layout, frozenset(steps), block)
    handles = [expert.register_forward_pre_hook(watch.begin_pass) for expert in experts(pipe).values()]

    def on_step_end(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        watch.begin_step(step + 1)
        return tensors

    try:
        with set_aside(pipe), watch:
            pipe(prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), output_type="latent",
                 callback_on_step_end=on_step_end, **(generation_kwargs or {}))  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    missing = sorted(set(steps) - {step for step, _ in watch.maps})
    if missing:
        raise ValueError(f"no self-attention of {layout.tokens} tokens was seen at steps {missing}: a wrong layout, "
                         "fewer steps, or a model that does not call scaled_dot_product_attention")
    return watch.maps


def block_map(
    query: Tensor, key: Tensor, layout: TokenLayout, block: int = 16, *, mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Where the attention mass between video tokens lies, as shares that sum to 1 for each head.

    Each video query's attention is taken over all keys, text included; what falls on text is set apart, and the rest is
    summed over blocks of `block` queries by `block` keys in token order. The last block of a side may be smaller.

    Args:
        query, key: ``[heads, tokens, head_dim]``.
        mask: ``[tokens]`` or ``[1, tokens]`` bool, False for keys that none attends to.

    Returns:
        ``[heads, query blocks, key blocks]``, fp32, on the CPU.
    """
    first, video = layout.text_before, layout.video_tokens
    blocks = math.ceil(video / block)
    place = torch.arange(video, device=query.device) // block
    total = query.new_zeros(len(query), blocks, blocks, dtype=torch.float32)
    keys = key.float().transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    for start in range(0, video, CHUNK):
        stop = min(start + CHUNK, video)
        logits = query[:, first + start : first + stop].float() @ keys
        if mask is not None:
            logits = logits.masked_fill(~mask.reshape(1, 1, -1), -torch.inf)
        mass = logits.softmax(-1)[..., first : first + video]
        columns = total.new_zeros(len(query), stop - start, blocks).index_add_(2, place, mass)
        total.index_add_(1, place[start:stop], columns)
    return (total / total.sum((1, 2), keepdim=True)).cpu()


def mass_in_best(maps: Tensor, share: float) -> Tensor:
    """The mass that the best blocks of each head's map hold.

    Args:
        maps: ``[heads, query blocks, key blocks]`` as of `block_map`.
        share: of all blocks, in (0, 1]; rounded to whole blocks, at least one.

    Returns:
        ``[heads]`` in [0, 1]: what a mask of that density could keep at most, if it were chosen for this very call.
    """
    flat = maps.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.sum(1)


class _Watch(TorchFunctionMode):
    """Sees every attention call, and maps those of the layout in the first pass of the chosen steps."""

    def __init__(self, layout: TokenLayout, steps: frozenset[int], block: int) -> None:
        super().__init__()
        self.layout, self.steps, self.block = layout, steps, block
        self.maps: Maps = {}
        self.step, self.passes, self.layer = 0, 0, 0

    def begin_step(self, step: int) -> None:
        """The next pass is the first of this step."""
        self.step, self.passes = step, 0

    def begin_pass(self, *_: Any) -> None:
        """The transformer is called: layers count from 0."""
        self.passes, self.layer = self.passes + 1, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self.passes:
            self._see(*args, **kwargs)
        return func(*args, **kwargs)

    def _see(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any,
             scale: float | None = None, **__: Any) -> None:
        if not query.shape[-2] == key.shape[-2] == self.layout.tokens:
            return
        layer, self.layer = self.layer, self.layer + 1
        if self.step in self.steps and self.passes == 1:
            made = block_map(query[-1], key[-1], self.layout, self.block, mask=_keys(attn_mask), scale=scale)
            self.maps[self.step, layer] = made


def _keys(mask: Tensor | None) -> Tensor | None:
    """Which keys the last row of the batch may attend to."""
    if mask is not None and (mask.dtype != torch.bool or mask[-1].numel() != mask.shape[-1]):
        raise ValueError(f"attention maps need a bool mask of keys, one for all heads and queries; this model's is "
                         f"{mask.dtype} of shape {list(mask.shape)}")
    return None if mask is None else mask[-1].flatten()
