"""CogVideoX, text to video: blocks chosen by the mean of each, except where a block's tokens differ much."""

from __future__ import annotations

import torch
from common import arguments, miniature
from diffusers import CogVideoXPipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "THUDM/CogVideoX-5b"
CLIP = {"height": 480, "width": 720, "num_frames": 49, "guidance_scale": 6.0}
PROMPT = "A panda in a red jacket plays a small guitar in a bamboo forest, other pandas watch and clap"


def load() -> CogVideoXPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    pipe = CogVideoXPipeline.from_pretrained(REPO, torch_dtype=torch.bfloat16)
    pipe.vae.enable_tiling()
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=50)
pipe, clip, small = miniature("cogvideox") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("meansim", density=0.4, **small)
frames = pipe(
    prompt=args.prompt, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=8)
print(pipe.sparse_attention_summary())
