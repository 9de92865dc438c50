from __future__ import annotations

import numpy as np
import pytest

from vidaccel.eval.metrics.motion import flicker, flicker_ratio


def levels(*values: float) -> np.ndarray:
    """One flat frame for each value."""
    return np.stack([np.full((4, 5, 3), value) for value in values])


def test_by_hand() -> None:
    # Changes: 0.1, 0.2 and 0.3, -0.1; they differ by 0.2 and 0.3.
    reference, other = levels(0.1, 0.2, 0.4), levels(0.2, 0.5, 0.4)
    assert flicker(reference, other).value == pytest.approx(0.25)
    assert flicker_ratio(reference, other).value == pytest.approx(0.4 / 0.3)


def test_a_constant_difference_is_none(clip: np.ndarray) -> None:
    darker = clip / 255 * 0.5
    brighter = darker + 0.25
    assert flicker(darker, brighter).value == pytest.approx(0, abs=1e-12)
    assert flicker_ratio(darker, brighter).value == pytest.approx(1)


def test_equals_the_formula_on_the_whole_clip(clip: np.ndarray, blurred: np.ndarray) -> None:
    a, b = np.diff(clip / 255, axis=0), np.diff(blurred / 255, axis=0)
    assert flicker(clip, blurred).value == pytest.approx(np.abs(b - a).mean())
    assert flicker_ratio(clip, blurred).value == pytest.approx(np.abs(b).mean() / np.abs(a).mean())


def test_the_same_frames_in_another_order_flicker(clip: np.ndarray) -> None:
    assert flicker(clip, clip[::-1]).value > 0.1


def test_what_has_no_change_says_so() -> None:
    for measure in (flicker, flicker_ratio):
        score = measure(levels(0.1), levels(0.2))
        assert score.value is None and "one frame" in score.reason
    still = flicker_ratio(levels(0.1, 0.1), levels(0.1, 0.2))
    assert still.value is None and "stands still" in still.reason
    assert flicker(levels(0.1, 0.1), levels(0.1, 0.2)).value == pytest.approx(0.1)
