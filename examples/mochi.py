"""Mochi 1, text to video: clusters of like tokens, whose pairs are kept or skipped together."""

from __future__ import annotations

import torch
from common import arguments, miniature
from diffusers import MochiPipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "genmo/mochi-1-preview"
CLIP = {"height": 480, "width": 848, "num_frames": 163, "guidance_scale": 4.5}
PROMPT = "Close-up of a chameleon's eye as the scaly skin around it changes color, very high resolution"


def load() -> MochiPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    pipe = MochiPipeline.from_pretrained(REPO, torch_dtype=torch.bfloat16)
    pipe.vae.enable_tiling()
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=64)
pipe, clip, small = miniature("mochi") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("semantic", density=0.3, **small)
frames = pipe(
    prompt=args.prompt, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=30)
print(pipe.sparse_attention_summary())
