from __future__ import annotations

import math

import numpy as np
import pytest

from vidaccel.eval.metrics import compare_videos
from vidaccel.eval.metrics.latents import latent_error, latent_snr


def test_by_hand() -> None:
    reference, other = np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])
    assert latent_error(reference, other).value == pytest.approx(0.1)
    assert latent_snr(reference, other).value == pytest.approx(20)


def test_does_not_depend_on_the_unit() -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.normal(size=(1, 16, 4, 8, 8)) for _ in range(2))
    assert latent_error(a, b).value == pytest.approx(latent_error(7 * a, 7 * b).value)
    # Independent noise of the same size is off by the root of 2.
    assert latent_error(a, b).value == pytest.approx(math.sqrt(2), rel=0.05)


def test_half_precision_does_not_overflow() -> None:
    reference = np.full((4096,), 200.0, np.float16)
    assert latent_error(reference, reference * np.float16(0.5)).value == pytest.approx(0.5)


def test_what_has_no_ratio_says_so() -> None:
    zeros, ones = np.zeros(4), np.ones(4)
    assert latent_error(ones, ones).value == 0
    assert "infinite" in latent_snr(ones, ones).reason
    for measure in (latent_error, latent_snr):
        score = measure(zeros, ones)
        assert score.value is None and "zero" in score.reason


@pytest.mark.parametrize(
    ("reference", "other", "said"),
    [
        (np.ones(4), np.ones((2, 2)), r"one shape, not \[4\] and \[2, 2\]"),
        (np.ones(4), np.array([1, np.nan, np.inf, 1]), "2 of 4 values"),
        (np.ones(4, int), np.ones(4, int), "int64"),
        (np.ones((2, 0)), np.ones((2, 0)), r"\[2, 0\]"),
    ],
)
def test_what_are_no_latents_is_refused(reference: np.ndarray, other: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare_videos(None, None, reference_latents=reference, other_latents=other)
