"""CogVideoX, image to video: each head gets a spatial or a temporal mask, whichever suits it better."""

from __future__ import annotations

import torch
from common import arguments, miniature, pictures
from diffusers import CogVideoXImageToVideoPipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "THUDM/CogVideoX-5b-I2V"
CLIP = {"height": 480, "width": 720, "num_frames": 49, "guidance_scale": 6.0}
PROMPT = "An astronaut climbs out of a cracked egg on the moon, dust drifts in the low gravity, slow push-in"
IMAGE = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/astronaut.jpg"


def load() -> CogVideoXImageToVideoPipeline:
    """The real model; parts that do not work wait in the CPU's memory."""
    pipe = CogVideoXImageToVideoPipeline.from_pretrained(REPO, torch_dtype=torch.bfloat16)
    pipe.vae.enable_tiling()
    pipe.enable_model_cpu_offload()
    return pipe


args = arguments(__doc__, PROMPT, steps=50, images=[IMAGE])
pipe, clip, small = miniature("cogvideox_i2v") if args.miniature else (load(), CLIP, {})
pipe.enable_sparse_attention("svg", density=0.3, **small)
frames = pipe(
    prompt=args.prompt, image=pictures(args, clip)[0], num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=8)
print(pipe.sparse_attention_summary())
