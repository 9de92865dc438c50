"""What the examples share: their command line, the small models of ``--miniature``, and pictures to start from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import load_image
from PIL import Image, ImageOps

import vidaccel

NEGATIVE = "blurry, distorted, low quality, overexposed, static, subtitles, watermark"
TRAINED = ("wan", "hunyuanvideo", "cogvideox")
SMALL = {"block": 16, "min_tokens": 0}
"""Of `enable_sparse_attention`: a miniature has some hundred tokens, which stay dense otherwise, being so few."""
MINIATURE_STEPS = 20
QUICK = {"height": 96, "width": 144, "num_frames": 25}
"""The smallest clips that the trained miniatures were shown."""


def arguments(about: str | None, prompt: str, steps: int, images: Sequence[str] = ()) -> argparse.Namespace:
    """The command line of an example.

    Args:
        about: its docstring.
        prompt, steps: used where the command line has none.
        images: files or URLs of the pictures to start from, likewise.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--prompt", help=f"what to show (default: {prompt})")
    if images:
        parser.add_argument("--image", nargs=len(images), type=_picture, metavar=("FIRST", "LAST")[: len(images)],
                            help="files or URLs to start from, and to end with where there are two (default: some of "
                            "the Hugging Face documentation)")  # fmt: skip
    parser.add_argument("--steps", type=_steps, help=f"(default: {steps}, with --miniature {MINIATURE_STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--out", type=_video, default=f"{Path(sys.argv[0]).stem}.mp4", help="(default: %(default)s)")
    parser.add_argument("--miniature", action="store_true", help="a tiny model on the CPU; nothing is downloaded")
    args = parser.parse_args()
    args.steps = args.steps or (MINIATURE_STEPS if args.miniature else steps)
    args.prompt = args.prompt or (vidaccel.miniature.miniatures().PROMPTS[0] if args.miniature else prompt)
    args.image = getattr(args, "image", None) or (None if args.miniature else list(images))
    return args


def miniature(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A tiny pipeline, the arguments that its call needs, and those that `enable_sparse_attention` needs.

    Args:
        name: of a trained miniature, or of one that runs but shows nothing: see `vidaccel_miniatures.untrained`.

    Raises:
        ValueError: no such miniature, or none are installed.
    """
    if name in TRAINED:
        pipe, call = vidaccel.load_miniature(name), vidaccel.miniature.generation_defaults(name) | QUICK
    else:
        vidaccel.miniature.miniatures()  # or an error that says how to install them
        from vidaccel_miniatures.untrained import generation_defaults, untrained

        pipe, call = untrained(name), generation_defaults(name)
    return pipe, {key: value for key, value in call.items() if key != "num_inference_steps"}, SMALL


def pictures(args: argparse.Namespace, clip: dict[str, Any], count: int = 1) -> list[Image.Image]:
    """The pictures to start from, cut to the clip's size; with ``--miniature``, if none are given, drawn ones."""
    size = clip["width"], clip["height"]
    if args.image is not None:
        return [ImageOps.fit(load_image(each), size) for each in args.image]
    from vidaccel_miniatures.clips import render, sample_clip

    return [Image.fromarray(frame) for frame in render(sample_clip(args.seed), count, size[1], size[0])]


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps of at least 1")
    return int(text)


def _picture(text: str) -> str:
    if not text.startswith(("http://", "https://")) and not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a file nor a URL")
    return text


def _video(text: str) -> str:
    if Path(text).suffix.lower() != ".mp4":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .mp4")
    return text
