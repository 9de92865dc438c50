"""HunyuanVideo 1.5, text to video: blocks chosen for each head from pooled queries and keys."""

from __future__ import annotations

import torch
from common import arguments, miniature
from diffusers import HunyuanVideo15Pipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v"
CLIP = {"height": 480, "width": 848, "num_frames": 121}
PROMPT = "A cat walks on the grass towards the camera, realistic"


def load() -> HunyuanVideo15Pipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    pipe = HunyuanVideo15Pipeline.from_pretrained(REPO, torch_dtype=torch.bfloat16)
    pipe.vae.enable_tiling()
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=50)
pipe, clip, small = miniature("hunyuanvideo15") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("draft", density=0.3, per_head=True, **small)
frames = pipe(
    prompt=args.prompt, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=24)
print(pipe.sparse_attention_summary())
