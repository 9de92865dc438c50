"""The clip renderer: the same seed gives the same clip, and a clip shows what its caption says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "miniatures"))

from vidaccel_miniatures.captions import COLORS, DIRECTIONS, MAX_TOKENS, vocabulary
from vidaccel_miniatures.clips import Clip, dataset, render, sample_clip

SEEDS = range(12)


def object_center(frame: np.ndarray, clip: Clip) -> np.ndarray:
    """The centroid (x, y), in pixels, of the pixels close to the object's colour."""
    gap = np.abs(frame / 255.0 - np.asarray(COLORS[clip.color])).max(-1)
    y, x = np.nonzero(gap < 0.1)
    assert len(x) > 20, "the object is not in the frame"
    return np.array([x.mean(), y.mean()])


def test_same_seed_same_pixels() -> None:
    assert sample_clip(5) == sample_clip(5)
    first, second = (render(sample_clip(5), 5, 48, 64) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == (5, 48, 64, 3)
    np.testing.assert_array_equal(first, second)
    assert sample_clip(5) != sample_clip(6)


def test_span_draws_the_same_frames() -> None:
    clip = sample_clip(3)
    np.testing.assert_array_equal(render(clip, 9, 48, 64, span=(2, 5)), render(clip, 9, 48, 64)[2:5])


@pytest.mark.parametrize("seed", SEEDS)
def test_object_moves_as_named(seed: int) -> None:
    clip = sample_clip(seed)
    start, end = (object_center(render(clip, 49, 96, 144, span=(i, i + 1))[0], clip) for i in (0, 48))
    moved = (end - start) / 96
    step = np.asarray(DIRECTIONS[clip.direction])
    assert moved @ step == pytest.approx(clip.travel, abs=0.03)
    assert abs(moved @ step[::-1]) < 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_object_stays_inside(seed: int) -> None:
    clip = sample_clip(seed)
    for index in (0, 48):
        x, y = object_center(render(clip, 49, 96, 144, span=(index, index + 1))[0], clip)
        assert 8 < x < 136 and 8 < y < 88


def test_captions_are_made_of_known_words() -> None:
    known = set(vocabulary())
    texts = [sample_clip(seed).text for seed in range(300)]
    assert all(set(text.split()) <= known for text in texts)
    assert max(len(text.split()) + 1 for text in texts) <= MAX_TOKENS
    assert len(set(texts)) > 200, "the wordings hardly vary"


def test_caption_names_the_object() -> None:
    for seed in range(50):
        clip = sample_clip(seed)
        assert f"{clip.color} {clip.shape}" in clip.text
        assert not set(clip.text.split()) & (set(DIRECTIONS) - {clip.direction})


def test_panning_moves_the_background() -> None:
    clip = next(c for c in map(sample_clip, range(200)) if any(c.pan))
    first, last = render(clip, 49, 96, 144, span=(0, 1))[0], render(clip, 49, 96, 144, span=(48, 49))[0]
    still = Clip(**{**clip.__dict__, "pan": (0.0, 0.0)})
    np.testing.assert_array_equal(first, render(still, 49, 96, 144, span=(0, 1))[0])
    assert (last != render(still, 49, 96, 144, span=(48, 49))[0]).any()


def test_dataset_counts_up_its_seeds() -> None:
    pairs = list(dataset(40, 2, 1, 48, 64))
    assert [text for _, text in pairs] == [sample_clip(40).text, sample_clip(41).text]
    np.testing.assert_array_equal(pairs[1][0], render(sample_clip(41), 1, 48, 64))
