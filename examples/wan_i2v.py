"""Wan 2.1, image to video: each head gets a spatial or a temporal mask, whichever suits it better."""

from __future__ import annotations

import torch
from common import NEGATIVE, arguments, miniature, pictures
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline
from diffusers.utils import export_to_video
from transformers import CLIPVisionModel

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"  # or Wan-AI/Wan2.1-I2V-14B-720P-Diffusers
CLIP = {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0}
PROMPT = "An astronaut climbs out of a cracked egg on the moon, dust drifts in the low gravity, slow push-in"
IMAGE = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/astronaut.jpg"


def load() -> WanImageToVideoPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    eyes = CLIPVisionModel.from_pretrained(REPO, subfolder="image_encoder", torch_dtype=torch.float32)
    vae = AutoencoderKLWan.from_pretrained(REPO, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanImageToVideoPipeline.from_pretrained(REPO, vae=vae, image_encoder=eyes, torch_dtype=torch.bfloat16)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=3.0)  # 5.0 at 720p
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=40, images=[IMAGE])
pipe, clip, small = miniature("wan_i2v") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("svg", density=0.3, **small)
frames = pipe(
    prompt=args.prompt, image=pictures(args, clip)[0], negative_prompt=NEGATIVE, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=16)
print(pipe.sparse_attention_summary())
