"""What the metrics say of known changes of a photograph, as in docs/metrics.md: ``python benchmarks/metrics.py``.

The clip is scikit-image's astronaut at 256x256, moving to the right by 3 pixels a frame for 4 frames. ST-LPIPS needs
``pip install --no-deps stlpips-pytorch``. Appends JSON lines to benchmarks/results/metrics.jsonl.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage import data, filters, transform

from vidaccel.eval import compare_videos, env
from vidaccel.eval.metrics import ON_FRAMES
from vidaccel.eval.record import append_line

RESULTS = Path(__file__).parent / "results" / "metrics.jsonl"
SEED, SIDE, FRAMES, SPEED = 0, 256, 4, 3


def changes(clip: np.ndarray) -> dict[str, np.ndarray]:
    """The clip ``[frames, height, width, 3]`` in [0, 1], changed in each way."""
    draw = np.random.default_rng(SEED)

    def blurred(sigma: float) -> np.ndarray:
        return np.stack([filters.gaussian(frame, sigma=sigma, channel_axis=-1) for frame in clip])

    return {
        **{f"blur, sigma {sigma:g}": blurred(sigma) for sigma in (0.5, 1, 2)},
        "noise, sigma 0.1, new in each frame": clip + draw.normal(0, 0.1, clip.shape),
        "the same noise in each frame": clip + draw.normal(0, 0.1, clip.shape[1:]),
        "all one pixel to the right": np.roll(clip, 1, axis=2),
        "brighter by 0.05": clip + 0.05,
    }


def to_bytes(clip: np.ndarray) -> np.ndarray:
    """Frames as they would be stored, rounded to 8 bits."""
    return (clip.clip(0, 1) * 255).round().astype(np.uint8)


def main() -> None:
    """Measure every change, print the table and record it."""
    where = env.provenance()
    photo = transform.resize(data.astronaut(), (SIDE, SIDE), anti_aliasing=True)
    clip = np.stack([np.roll(photo, SPEED * frame, axis=1) for frame in range(FRAMES)])
    for what, changed in changes(clip).items():
        values = compare_videos(to_bytes(clip), to_bytes(changed), metrics=ON_FRAMES)
        append_line(RESULTS, {"benchmark": "metrics", "change": what, "seed": SEED, **values} | where)
        shown = [values[name] for name in ("psnr", "ssim", "ssim_ffmpeg", "st_lpips", "flicker", "flicker_ratio")]
        print("|", what, *(f"| {value:.4f}" if value is not None else "| -" for value in shown), "|")


if __name__ == "__main__":
    main()
