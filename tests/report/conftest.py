"""A record with its three videos, as the demo leaves them, made of moving shapes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from tests.report.browser import CHROMIUM, DRIVER, FLAGS
from vidaccel.layout import TokenLayout
from vidaccel.plan import BlockMask
from vidaccel.report import mask_picture

FRAMES, HEIGHT, WIDTH, FPS = 49, 144, 208, 16


def shapes(shift: int) -> list[np.ndarray]:
    """A red disc that moves over a checkerboard and casts a square that moves the other way; `shift` moves both."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    board = np.where((x // 16 + y // 16) % 2, 170, 205)[..., None].repeat(3, axis=2)
    clip = []
    for frame in range(FRAMES):
        picture = board.copy()
        picture[(x - 30 - 3 * frame - shift) ** 2 + (y - 72) ** 2 < 22**2] = (200, 40, 40)
        picture[(abs(x - 180 + 2 * frame + shift) < 12) & (abs(y - 110) < 12)] = (40, 70, 190)
        clip.append(picture.astype(np.uint8))
    return clip


def write_video(path: Path, clip: list[np.ndarray]) -> None:
    with imageio.get_writer(path, fps=FPS, codec="libx264", quality=8, macro_block_size=8, pixelformat="yuv420p",
                            output_params=["-threads", "1"]) as writer:
        for picture in clip:
            writer.append_data(picture)


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``dense.mp4``, ``fast.mp4`` and ``side_by_side.mp4``; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("videos")
    dense, fast = shapes(0), shapes(2)
    write_video(folder / "dense.mp4", dense)
    write_video(folder / "fast.mp4", fast)
    write_video(folder / "side_by_side.mp4", [np.hstack(pair) for pair in zip(dense, fast, strict=True)])
    return folder


@pytest.fixture
def run_folder(video_folder: Path, tmp_path: Path) -> Path:
    for path in video_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="session")
def frame_window_mask() -> Callable[..., BlockMask]:
    """Makes a mask in which each frame sees itself, its neighbours and the first frame."""

    def make(layout: TokenLayout, block: int, reach: int = 1) -> BlockMask:
        count = -(-layout.tokens // block)
        middle = (torch.arange(count) * block + block // 2).clamp(max=layout.tokens - 1)
        frame = middle // layout.frame_tokens
        keep = ((frame[:, None] - frame[None]).abs() <= reach) | (frame[None] == 0)
        return BlockMask.from_blocks(keep[None], block, block, layout.tokens, layout.tokens)

    return make


@pytest.fixture
def record(frame_window_mask: Callable[..., BlockMask]) -> dict[str, Any]:
    """A whole record; nothing in it is null but LPIPS and the GPU."""
    layout = TokenLayout(13, 9, 13)
    picture = mask_picture(frame_window_mask(layout, 16), layout)
    return {
        "kind": "demo", "created": "2026-01-02T03:04:05Z", "vidaccel": "0.1.0", "git": "abc123", "seed": 0,
        "prompt": "a red circle moves right over a checkerboard", "negative_prompt": "",
        "model": {"name": "miniature:wan", "pipeline": "WanPipeline", "transformer": "WanTransformer3DModel",
                  "layers": 4, "heads": 4, "head_dim": 64},
        "settings": {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "num_inference_steps": 20,
                     "guidance_scale": 3.0, "fps": FPS, "dtype": "float32", "device": "cpu"},
        "device": {"name": "AMD EPYC", "threads": 2, "memory_gib": 23.0, "gpu": None},
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "diffusers": "0.42.1"},
        "method": {"name": "radial", "options": {"decay": 0.2, "block": 16, "preset": None}},
        "schedule": {"dense_first_steps": 0.25, "dense_last_steps": 0, "dense_first_layers": 1}, "backend": "cpu",
        "layout": {"frames": 13, "height": 9, "width": 13, "text_before": 0, "text_after": 0},
        "density": {"density": 0.31, "video_density": 0.31, "computed_density": 0.33, "all_calls": 0.55},
        "timing": {"dense": [12.3, 12.1], "fast": [11.9, 11.8], "dense_median": 12.2, "fast_median": 11.85,
                   "speedup": 1.03, "note": "after one warm-up of each, alternating"},
        "metrics": {"psnr": 31.2, "ssim": 0.95, "lpips": None,
                    "lpips_reason": "the lpips extra is not installed (pip install vidaccel[lpips])"},
        "calls": {"dense": 70, "sparse": 90}, "peak_memory_gib": 1.4,
        "notes": ["Attention is under half of the time of so small a model, so sparse attention alone gains little."],
        "mask_png": base64.b64encode(picture).decode(),
        "real_sizes": [
            {"model": "Wan2.1-14B 720p 81 frames", "grid": "21x45x80", "tokens": 75600, "video_density": 0.2509,
             "attention_work": "0.25 of dense", "dense_pflop_per_step": 4.68, "sparse_pflop_per_step": 1.18,
             "counted_attention_gain": 3.98},
            {"model": "Wan2.1-1.3B 480p 81 frames", "grid": "21x30x52", "tokens": 32760, "video_density": 0.3402,
             "attention_work": "0.34 of dense", "dense_pflop_per_step": 0.198, "sparse_pflop_per_step": 0.067,
             "counted_attention_gain": 2.94},
        ],
        "files": {"dense": "dense.mp4", "fast": "fast.mp4", "side_by_side": "side_by_side.mp4"},
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, which keeps a log of all requests; for tests marked as `tests.report.browser.needs_browser` has it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()
