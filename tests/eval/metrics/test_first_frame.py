"""First-frame fidelity: against the image alone, whatever the clips do later."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from vidaccel.eval.metrics import ON_FIRST_FRAME, compare_videos

NAMES = list(ON_FIRST_FRAME)


def test_only_the_first_frame_and_the_image_count(clip: np.ndarray, blurred: np.ndarray) -> None:
    image = clip[0] / 255
    values = compare_videos(clip[::-1], blurred, image=image, metrics=NAMES)
    wanted = peak_signal_noise_ratio(clip[0], blurred[0], data_range=255)
    assert values["first_frame_psnr"] == pytest.approx(wanted) and 0 < values["first_frame_ssim"] < 1
    later = np.concatenate([blurred[:1], clip[:2]])
    assert compare_videos(clip, later, image=image, metrics=NAMES) == values
    alone = compare_videos(image[None], blurred[:1] / 255, metrics=["ssim"])
    assert values["first_frame_ssim"] == pytest.approx(alone["ssim"])


def test_the_image_itself_is_a_perfect_first_frame(clip: np.ndarray) -> None:
    values = compare_videos(clip, clip, image=clip[0], metrics=NAMES)
    assert values["first_frame_psnr"] is None and "infinite" in values["first_frame_psnr_reason"]
    assert values["first_frame_ssim"] == pytest.approx(1)


def test_without_an_image_or_frames_there_is_a_reason(clip: np.ndarray) -> None:
    values = compare_videos(clip, clip, metrics=NAMES)
    assert values["first_frame_psnr"] is None and values["first_frame_psnr_reason"] == "no image was given"
    seen = compare_videos(clip, clip, image_reason="it was not seen", metrics=NAMES)
    assert seen["first_frame_ssim_reason"] == "it was not seen"
    latents = np.ones((1, 4, 2, 2), np.float32)
    values = compare_videos(None, None, reference_latents=latents, other_latents=latents, image=clip[0], metrics=NAMES)
    assert values["first_frame_psnr"] is None and "only the reference" in values["first_frame_psnr_reason"]


def test_an_image_of_another_size_is_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one shape"):
        compare_videos(clip, clip, image=clip[0][:-1], metrics=NAMES)
