"""LTX-Video, text to video: a window that slides over the clip in tiles."""

from __future__ import annotations

import torch
from common import NEGATIVE, arguments, miniature
from diffusers import LTXPipeline
from diffusers.utils import export_to_video

import vidaccel  # noqa: F401 (it gives pipelines enable_sparse_attention)

REPO = "Lightricks/LTX-Video"
CLIP = {"height": 704, "width": 1216, "num_frames": 121, "guidance_scale": 3.0}
PROMPT = "A woman with long brown hair turns from a window to the camera and smiles, warm evening light, close-up"


def load() -> LTXPipeline:
    """The real model; it fits on most GPUs as a whole."""
    pipe = LTXPipeline.from_pretrained(REPO, torch_dtype=torch.bfloat16)
    pipe.to("cuda")
    return pipe


args = arguments(__doc__, PROMPT, steps=50)
pipe, clip, small = miniature("ltx") if args.miniature else (load(), CLIP, {})
# The VAE shrinks so much that this is a short sequence: the summary says if dense attention was expected to be faster.
pipe.enable_sparse_attention("neighborhood", density=0.4, **small)
frames = pipe(
    prompt=args.prompt, negative_prompt=NEGATIVE, num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(args.seed), **clip,
).frames[0]  # fmt: skip
export_to_video(frames, args.out, fps=24)
print(pipe.sparse_attention_summary())
