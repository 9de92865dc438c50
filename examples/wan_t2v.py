"""Wan 2.1, text to video: a static mask and, beside it, steps that are taken from the one before."""

from __future__ import annotations

import torch
from common import NEGATIVE, arguments, miniature
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # or Wan-AI/Wan2.1-T2V-14B-Diffusers
CLIP = {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0}
PROMPT = "A fox trots through fresh snow at the edge of a birch forest, low winter sun, the camera follows beside it"


def load() -> WanPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    vae = AutoencoderKLWan.from_pretrained(REPO, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(REPO, vae=vae, torch_dtype=torch.bfloat16)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=3.0)  # 5.0 at 720p
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=50)
pipe, clip, small = miniature("wan") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("radial", cache="easycache", **small)
frames = pipe(
    prompt=args.prompt, negative_prompt=NEGATIVE, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=16)
print(pipe.sparse_attention_summary())
