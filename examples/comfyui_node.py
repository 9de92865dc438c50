"""A ComfyUI node that makes the self-attention of Wan models sparse: copy this file into ``custom_nodes``.

It stands on what ComfyUI has for this, in ``comfy/ldm/modules/attention.py``, ``comfy/ldm/wan/model.py`` and
``comfy/samplers.py`` of Comfy-Org/ComfyUI as of September 2026 (pull request 9639 brought it):

- ``transformer_options["optimized_attention_override"]`` is called in place of every attention function, as
  ``override(func, q, k, v, heads, ..., transformer_options=...)``; `func` is what would have run.
- q, k and v are ``[batch, tokens, heads * head_dim]``, or with `skip_reshape` ``[batch, heads, tokens, head_dim]``;
  outputs are as the former, or with `skip_output_reshape` as the latter.
- ``transformer_options`` says where a call is: ``grid_sizes`` (frames, rows and columns of tokens), ``block_index``,
  ``total_blocks``, ``sigmas`` (of this step), ``sample_sigmas`` (of all, one more than steps), ``cond_or_uncond`` and
  ``uuids`` (of the conditions in the batch), ``context_window`` (of a longer clip). It is one dictionary a forward.
- a wrapper of type ``"outer_sample"`` stands around each sampling.

Left to `func`: cross-attention, and what a block attends to after its own tokens, such as VACE's control blocks. Two
samplers in a row, as for Wan 2.2's two experts, are two samplings: give the second model ``dense_first_steps=0``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vidaccel

OVERRIDE, OUTER_SAMPLE, KEY = "optimized_attention_override", "outer_sample", "vidaccel"
PASSES = ("cond", "uncond")
NEEDED = ("grid_sizes", "block_index", "total_blocks", "sigmas", "sample_sigmas")
NEAR = 1e-4
"""Relative difference up to which two sigmas are the same."""
NOT_OFFERED = ("random", "oracle", "head_profile", "mixed")
"""Baselines, and what needs a profile."""
METHODS = [name for name, cls in vidaccel.METHODS.items() if hasattr(cls, "density") and name not in NOT_OFFERED]


class SparseOverride:
    """Attention of one patched model: sparse where it is a block's self-attention, else as it would have been.

    Args:
        inner: an override that was there before; it computes what is not sparse.
        setting: arguments of `vidaccel.sparse_attention` that are the same in all calls.
    """

    def __init__(self, inner: Callable[..., Tensor] | None, **setting: Any) -> None:
        self.inner = inner
        self.setting = setting
        self.state = vidaccel.AttentionState()
        self._sigmas: Tensor | None = None
        self._step = 0

    def sample(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stands around a sampling: each begins with nothing remembered, and ends with a line in the log."""
        self._restart()
        runs = self.state.runs
        try:
            out = executor(*args, **kwargs)
        finally:
            self._restart()
        if self.state.runs == runs:
            logging.warning("vidaccel: no self-attention of this sampling came to the node")
        else:
            logging.info("vidaccel: %s", self.state.summary())
        return out

    @torch.compiler.disable
    def __call__(self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None,
                 attn_precision: Any = None, skip_reshape: bool = False, skip_output_reshape: bool = False,
                 **kwargs: Any) -> Tensor:  # fmt: skip
        """Attention as ComfyUI's functions compute it; see the module."""
        options = kwargs.get("transformer_options") or {}
        run = func if self.inner is None else _bound(self.inner, func)

        def stock(skip_output: bool) -> Tensor:
            return run(q, k, v, heads, mask=mask, attn_precision=attn_precision, skip_reshape=skip_reshape,
                       skip_output_reshape=skip_output, **kwargs)  # fmt: skip

        own = mask is None and "scale" not in kwargs and not kwargs.get("enable_gqa") and q.shape == k.shape
        if not own or not _first_of_block(options):
            return stock(skip_output_reshape)
        query, key, value = (_states(each, heads, skip_reshape) for each in (q, k, v))
        out: Tensor = vidaccel.sparse_attention(
            query, key, value, layout=_layout(options, query.shape[1]), state=self.state, branch=_branch(options),
            dense=lambda *_: stock(False).unflatten(2, (heads, -1)), layer=options["block_index"],
            layers=options["total_blocks"], step=self._step_of(options), steps=len(options["sample_sigmas"]) - 1,
            **self.setting,
        )  # fmt: skip
        return out.transpose(1, 2) if skip_output_reshape else out.flatten(2)

    def _restart(self) -> None:
        self.state.reset()
        self._sigmas, self._step = None, 0

    def _step_of(self, options: dict[str, Any]) -> int:
        """The step whose sigma is the last that is not below the call's: samplers also look between two steps."""
        # Once for each step, not for each call: the numbers are on the GPU.
        if self._sigmas is not options["sigmas"]:
            least = options["sigmas"].flatten()[0] * (1 - NEAR)
            step = max(0, int((options["sample_sigmas"][:-1] >= least).sum()) - 1)
            if step < self._step:  # a sampler that adds noise again starts anew
                self.state.reset()
            self._sigmas, self._step = options["sigmas"], step
        return self._step


def _bound(inner: Callable[..., Tensor], func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: inner(func, *args, **kwargs)


def _first_of_block(options: dict[str, Any]) -> bool:
    """Whether a call is the first of its block with as many keys as queries; options are those of one forward.

    Raises:
        ValueError: the model does not say where its calls are.
    """
    if missing := [name for name in NEEDED if name not in options]:
        raise ValueError(f"this model's attention comes without {', '.join(missing)} in transformer_options: the "
                         "vidaccel node is for Wan models")  # fmt: skip
    seen, options[KEY] = options.get(KEY), options["block_index"]
    return bool(seen != options[KEY])


def _layout(options: dict[str, Any], tokens: int) -> vidaccel.TokenLayout:
    """The token grid of a forward.

    Raises:
        ValueError: the sequence is not that grid alone.
    """
    layout = vidaccel.TokenLayout(*(int(size) for size in options["grid_sizes"]))
    if layout.tokens != tokens:
        raise ValueError(f"self-attention has {tokens} tokens, the grid {layout} {layout.tokens}: the vidaccel node "
                         "does not know where reference tokens are; bypass it for this model")  # fmt: skip
    return layout


def _branch(options: dict[str, Any]) -> str:
    """A name for what has a memory of its own: the conditions in the batch, and the window of a longer clip."""
    passes = [PASSES[index] if index < len(PASSES) else f"pass{index}" for index in options.get("cond_or_uncond", [0])]
    names = ["+".join(passes), *(str(each) for each in options.get("uuids", ()))]
    window = options.get("context_window")
    return " ".join(names if window is None else [*names, f"from {window.index_list[0]}"])


def _states(states: Tensor, heads: int, split: bool) -> Tensor:
    """``[batch, tokens, heads, head_dim]`` of what ComfyUI hands over."""
    return states.transpose(1, 2) if split else states.unflatten(2, (heads, -1))


class VidaccelSparseAttention:
    """The node."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches/vidaccel"
    DESCRIPTION = "Sparse self-attention for Wan models, by vidaccel."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows."""
        return {
            "required": {
                "model": ("MODEL",),
                "method": (METHODS, {"default": "radial"}),
                "density": ("FLOAT", {"default": 0.3, "min": 0.01, "max": 1.0, "step": 0.01}),
                "dense_first_steps": ("FLOAT", {"default": 0.25, "min": 0.0, "max": 1.0, "step": 0.05}),
                "dense_first_layers": ("INT", {"default": 1, "min": 0, "max": 100}),
            },
            "optional": {
                "profile": ("STRING", {"default": "", "tooltip": "path of a vidaccel profile, instead of a method"}),
            },
        }

    def patch(self, model: Any, method: str, density: float, dense_first_steps: float, dense_first_layers: int,
              profile: str = "") -> tuple[Any]:  # fmt: skip
        """A copy of the model with sparse attention.

        Args:
            model: a ``ModelPatcher``.
            method, density, dense_first_steps, dense_first_layers: see `vidaccel.enable` and `vidaccel.Schedule`.
            profile: path of one, instead of `method`, `density` and the schedule; empty for none.
        """
        setting: dict[str, Any] = {"method": profile, "family": "wan"}
        if not profile:
            schedule = {"dense_first_steps": float(dense_first_steps), "dense_first_layers": dense_first_layers}
            setting |= {"method": method, "density": density, "schedule": schedule}
        patched = model.clone()
        options = patched.model_options.setdefault("transformer_options", {})
        override = SparseOverride(options.get(OVERRIDE), **setting)
        options[OVERRIDE] = override
        patched.add_wrapper_with_key(OUTER_SAMPLE, KEY, override.sample)
        return (patched,)


NODE_CLASS_MAPPINGS = {"VidaccelSparseAttention": VidaccelSparseAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"VidaccelSparseAttention": "Sparse Attention (vidaccel)"}
