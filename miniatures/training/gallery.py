"""Draw a picture of what the clip renderer shows: every motion and every background, with the captions.

python miniatures/training/gallery.py --out docs/images/clips.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import ROOT  # noqa: F401  # puts the renderer of this checkout on the path
from PIL import Image, ImageDraw, ImageFont

from vidaccel_miniatures.captions import MOTIONS
from vidaccel_miniatures.clips import Clip, render, sample_clip

HEIGHT, WIDTH, FRAMES, COLUMNS, LINE = 72, 104, 4, 2, 18


def choose() -> Iterator[Clip]:
    """The first clip of each motion, two of two objects, backgrounds in turn as far as that goes."""
    wanted = [*MOTIONS, "two", "two"]
    seen: dict[str, int] = {}
    for seed in range(100_000):
        if not wanted:
            return
        clip = sample_clip(seed)
        kind = "two" if len(clip.items) == 2 else clip.items[0].motion
        scene = f"{clip.backdrop.kind} {clip.backdrop.pans}"
        if kind in wanted and seen.get(scene, 0) <= min(seen.values(), default=0) + 1:
            wanted.remove(kind)
            seen[scene] = seen.get(scene, 0) + 1
            yield clip


def row(clip: Clip) -> Image.Image:
    """Frames of a clip side by side, its caption below."""
    frames = render(clip, 49, HEIGHT, WIDTH)[:: 48 // (FRAMES - 1)]
    picture = Image.new("RGB", (FRAMES * (WIDTH + 2) + 48, HEIGHT + LINE), "white")
    for index, frame in enumerate(frames):
        picture.paste(Image.fromarray(frame), (index * (WIDTH + 2), 0))
    ImageDraw.Draw(picture).text((0, HEIGHT + 1), clip.text, fill="black", font=ImageFont.load_default(11))
    return picture


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    rows = [np.asarray(row(clip)) for clip in choose()]
    rows += [np.full_like(rows[0], 255)] * (-len(rows) % COLUMNS)
    half = len(rows) // COLUMNS
    sheet = np.concatenate([np.concatenate(rows[i * half : (i + 1) * half]) for i in range(COLUMNS)], axis=1)
    Image.fromarray(sheet).save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
