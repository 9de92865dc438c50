"""SkyReels-V2, text to video: a static mask after fewer dense steps than by default."""

from __future__ import annotations

import torch
from common import NEGATIVE, arguments, miniature
from diffusers import AutoencoderKLWan, SkyReelsV2Pipeline, UniPCMultistepScheduler
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers"  # or Skywork/SkyReels-V2-T2V-14B-720P-Diffusers
CLIP = {"height": 544, "width": 960, "num_frames": 97, "guidance_scale": 6.0}
PROMPT = "A cat and a dog bake a cake in a sunlit kitchen, the cat measures flour and the dog stirs the batter"


def load() -> SkyReelsV2Pipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    vae = AutoencoderKLWan.from_pretrained(REPO, subfolder="vae", torch_dtype=torch.float32)
    pipe = SkyReelsV2Pipeline.from_pretrained(REPO, vae=vae, torch_dtype=torch.bfloat16)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=8.0)
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=50)
pipe, clip, small = miniature("skyreels_v2") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("radial", density=0.4, schedule={"dense_first_steps": 0.2}, **small)
frames = pipe(
    prompt=args.prompt, negative_prompt=NEGATIVE, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=24)
print(pipe.sparse_attention_summary())
