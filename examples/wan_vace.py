"""Wan VACE, from the first and the last frame: the control blocks' attention is sparse, too."""

from __future__ import annotations

import torch
from common import NEGATIVE, arguments, miniature, pictures
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACEPipeline
from diffusers.utils import export_to_video
from PIL import Image

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "Wan-AI/Wan2.1-VACE-1.3B-diffusers"  # or Wan-AI/Wan2.1-VACE-14B-diffusers
CLIP = {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0}
PROMPT = "A small blue bird takes off from the ground and climbs, the camera follows it up into a clear sky"
IMAGES = [
    "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/flf2v_input_first_frame.png",
    "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/flf2v_input_last_frame.png",
]


def load() -> WanVACEPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    vae = AutoencoderKLWan.from_pretrained(REPO, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanVACEPipeline.from_pretrained(REPO, vae=vae, torch_dtype=torch.bfloat16)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=3.0)  # 5.0 at 720p
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=30, images=IMAGES)
pipe, clip, small = miniature("wan_vace") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("radial", density=0.4, **small)
first, last = pictures(args, clip, 2)
unknown = clip["num_frames"] - 2
video = [first, *[Image.new("RGB", first.size, "gray")] * unknown, last]
mask = [Image.new("L", first.size, level) for level in (0, *[255] * unknown, 0)]
frames = pipe(
    prompt=args.prompt, video=video, mask=mask, negative_prompt=NEGATIVE, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=16)
print(pipe.sparse_attention_summary())
