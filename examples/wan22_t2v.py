"""Wan 2.2 A14B, text to video: two experts, and the settings that vidaccel ships for the model."""

from __future__ import annotations

import torch
from common import NEGATIVE, arguments, miniature
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
CLIP = {"height": 720, "width": 1280, "num_frames": 81, "guidance_scale": 4.0, "guidance_scale_2": 3.0}
PROMPT = "Two cats in boxing gloves spar under a spotlight on a small stage, the crowd is a blur behind them"


def load() -> WanPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    vae = AutoencoderKLWan.from_pretrained(REPO, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(REPO, vae=vae, torch_dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=40)
pipe, clip, small = miniature("wan22_t2v") if args.miniature else (load(), CLIP, {})
# Without a name: the profile shipped for this repository, for both experts; a miniature has none and gets radial.
pipe.enable_sparse_attention(**small)
frames = pipe(
    prompt=args.prompt, negative_prompt=NEGATIVE, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=16)
print(pipe.sparse_attention_summary())
