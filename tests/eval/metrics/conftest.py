from __future__ import annotations

import numpy as np
import pytest
from skimage import data, filters


@pytest.fixture
def clip() -> np.ndarray:
    """Three different photographic frames, uint8 ``[3, 66, 82, 3]``: no side is a multiple of 4."""
    photo = data.astronaut()
    return np.stack([photo[at : at + 66, at : at + 82] for at in (0, 100, 200)])


@pytest.fixture
def blurred(clip: np.ndarray) -> np.ndarray:
    """The clip blurred and a little noisy, uint8."""
    smooth = np.stack([filters.gaussian(frame, sigma=1.5, channel_axis=-1) for frame in clip])
    noise = np.random.default_rng(0).normal(0, 0.02, clip.shape)
    return ((smooth + noise).clip(0, 1) * 255).round().astype(np.uint8)
