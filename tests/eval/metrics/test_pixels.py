"""PSNR and SSIM against scikit-image, ffmpeg's filters and the formulas themselves."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vidaccel.eval.metrics.pixels import psnr, ssim, ssim_ffmpeg


def ffmpeg(*words: str, data: bytes | None = None) -> str:
    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", *words], input=data,
                          capture_output=True, check=True)  # fmt: skip
    return done.stderr.decode()


def stored(frames: np.ndarray, path: Path) -> Path:
    """A clip as lossless FFV1 in planar RGB."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "8", "-i", "-", "-c:v", "ffv1", "-pix_fmt", "gbrp",
           str(path), data=frames.tobytes())  # fmt: skip
    return path


def filtered(name: str, reference: np.ndarray, other: np.ndarray, folder: Path) -> str:
    """What ffmpeg's filter says of two clips; of planar RGB, so that nothing is converted to YUV."""
    paths = [str(stored(frames, folder / f"{i}.mkv")) for i, frames in enumerate((reference, other))]
    return ffmpeg("-i", paths[0], "-i", paths[1], "-lavfi", f"[0]format=gbrp[a];[1]format=gbrp[b];[b][a]{name}",
                  "-f", "null", "-")  # fmt: skip


def test_psnr_is_of_the_whole_clip(clip: np.ndarray) -> None:
    other = clip.astype(np.float64) / 255
    other[1] = np.where(other[1] > 0.5, other[1] - 0.1, other[1] + 0.1)
    # One of three frames is off by 0.1 everywhere: the error is 0.01 / 3, and no frame makes it infinite.
    score = psnr(clip, other)
    assert score.value == pytest.approx(-10 * math.log10(0.01 / 3), abs=1e-9)
    assert score.frames == [None, pytest.approx(20), None]


def test_psnr_equals_scikit_images(clip: np.ndarray, blurred: np.ndarray) -> None:
    score = psnr(clip, blurred)
    assert score.value == pytest.approx(peak_signal_noise_ratio(clip, blurred), abs=1e-9)
    alone = [peak_signal_noise_ratio(a, b) for a, b in zip(clip, blurred, strict=True)]
    assert score.frames == pytest.approx(alone, abs=1e-9)


def test_psnr_equals_ffmpegs(clip: np.ndarray, blurred: np.ndarray, tmp_path: Path) -> None:
    found = re.search(r"PSNR r:.*average:([\d.]+)", filtered("psnr", clip, blurred, tmp_path))
    assert found is not None
    # ffmpeg prints six digits after the point.
    assert psnr(clip, blurred).value == pytest.approx(float(found[1]), abs=1e-6)


def test_ssim_equals_scikit_images_of_each_channel(clip: np.ndarray, blurred: np.ndarray) -> None:
    """On bytes and channel by channel, while ours runs on floats with all channels."""
    frames = [
        np.mean([structural_similarity(a[..., c], b[..., c], data_range=255, gaussian_weights=True, sigma=1.5,
                                       use_sample_covariance=False) for c in range(3)])
        for a, b in zip(clip, blurred, strict=True)
    ]  # fmt: skip
    score = ssim(clip, blurred)
    assert score.frames == pytest.approx(frames, abs=1e-9) and score.value == pytest.approx(np.mean(frames), abs=1e-9)


def test_ssim_is_the_formula(clip: np.ndarray, blurred: np.ndarray) -> None:
    """Wang et al. 2004, equation 13, on windows that lie inside the frame."""
    a, b = clip[0] / 255, blurred[0] / 255
    window = 11

    def mean(image: np.ndarray) -> np.ndarray:
        smooth = ndimage.gaussian_filter(image, (1.5, 1.5, 0), truncate=3.5)
        return smooth[window // 2 : -(window // 2), window // 2 : -(window // 2)]

    covariance = mean(a * b) - mean(a) * mean(b)
    variances = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    luminance = (2 * mean(a) * mean(b) + 0.01**2) / (mean(a) ** 2 + mean(b) ** 2 + 0.01**2)
    expected = (luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)).mean()
    assert ssim(clip[:1], blurred[:1]).value == pytest.approx(expected, abs=1e-9)


def test_ssim_by_hand() -> None:
    """Constant frames have no variance: only the luminance term of the formula is left."""
    low, high = np.full((1, 16, 16, 3), 0.25), np.full((1, 16, 16, 3), 0.75)
    stabiliser = 0.01**2
    expected = (2 * 0.25 * 0.75 + stabiliser) / (0.25**2 + 0.75**2 + stabiliser)
    assert ssim(low, high).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("height, width", [(66, 82), (64, 80), (8, 8), (11, 31)])
def test_ssim_ffmpeg_equals_ffmpegs(
    clip: np.ndarray, blurred: np.ndarray, tmp_path: Path, height: int, width: int
) -> None:
    a, b = (np.ascontiguousarray(frames[:, :height, :width]) for frames in (clip, blurred))
    found = re.search(r"SSIM R:([\d.]+).*G:([\d.]+).*B:([\d.]+).*All:([\d.]+)", filtered("ssim", a, b, tmp_path))
    assert found is not None
    # ffmpeg prints six digits and computes in single precision.
    assert ssim_ffmpeg(a, b).value == pytest.approx(float(found[4]), abs=2e-6)
    for channel, expected in enumerate(found.groups()[:3]):
        alone = [np.repeat(frames[..., channel : channel + 1], 3, axis=-1) for frames in (a, b)]
        assert ssim_ffmpeg(*alone).value == pytest.approx(float(expected), abs=2e-6)


def test_the_two_ssims_are_not_the_same_number(clip: np.ndarray, blurred: np.ndarray) -> None:
    """Why they have two names."""
    ours, theirs = ssim(clip, blurred).value, ssim_ffmpeg(clip, blurred).value
    assert ours is not None and theirs is not None and 0.001 < abs(ours - theirs) < 0.1


@pytest.mark.parametrize("measure, least", [(ssim, 11), (ssim_ffmpeg, 8)])
def test_frames_too_small_for_a_window_say_so(measure, least: int) -> None:
    black, white = np.zeros((2, least, 16, 3)), np.ones((2, least, 16, 3))
    assert measure(black, white).value is not None
    small = measure(black[:, 1:], white[:, 1:])
    assert small.value is None and f"16x{least - 1}" in small.reason and f"{least}x{least}" in small.reason
