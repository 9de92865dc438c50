"""The clip renderer: the same seed gives the same clip, and a clip shows what its caption says."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "miniatures"))

from vidaccel_miniatures.backdrops import Backdrop, sample
from vidaccel_miniatures.captions import (
    BACKGROUNDS,
    COLORS,
    DEEDS,
    DIAGONALS,
    DIRECTIONS,
    MAX_TOKENS,
    MOTIONS,
    SHAPES,
    held_out,
    prompt_for,
    vocabulary,
)
from vidaccel_miniatures.clips import Clip, Item, clip_of, dataset, position, render, sample_clip

PLAIN = Backdrop("plain", ((0.2, 0.2, 0.2), (0.4, 0.4, 0.4)), 0.5, 0.0, (0.0, 0.0), 0)


def single(motion: str, shape: str = "square", travel: float = 0.5, radius: float = 0.2) -> Clip:
    return Clip((Item(shape, "red", motion, radius, travel, (0.5, 0.5)),), PLAIN, "")


def inside(frame: np.ndarray, color: str) -> np.ndarray:
    """The pixels (x, y) close to a colour."""
    gap = np.abs(frame / 255.0 - np.asarray(COLORS[color])).max(-1)
    y, x = np.nonzero(gap < 0.1)
    assert len(x) > 20, "the object is not in the frame"
    return np.array([x, y])


def drawn(clip: Clip, index: int) -> np.ndarray:
    return render(clip, 49, 96, 144, span=(index, index + 1))[0]


def test_same_seed_same_pixels() -> None:
    assert sample_clip(5) == sample_clip(5)
    first, second = (render(sample_clip(5), 5, 48, 64) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == (5, 48, 64, 3)
    np.testing.assert_array_equal(first, second)
    assert sample_clip(5) != sample_clip(6)


def test_span_draws_the_same_frames() -> None:
    clip = sample_clip(3)
    np.testing.assert_array_equal(render(clip, 9, 48, 64, span=(2, 5)), render(clip, 9, 48, 64)[2:5])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", [*DIRECTIONS, *DIAGONALS])
def test_object_moves_as_named(motion: str, shape: str) -> None:
    clip = single(motion, shape)
    start, end = (inside(drawn(clip, index), "red").mean(1) for index in (0, 48))
    step = np.asarray({**DIRECTIONS, **DIAGONALS}[motion])
    np.testing.assert_allclose((end - start) / 96, 0.5 * step, atol=0.03)


@pytest.mark.parametrize(("motion", "travel"), [("grow", 2.0), ("shrink", 0.5)])
def test_size_changes_as_named(motion: str, travel: float) -> None:
    areas = [inside(drawn(single(motion, travel=travel), index), "red").shape[1] for index in (0, 48)]
    assert areas[1] / areas[0] == pytest.approx(travel**2, rel=0.15)


def test_rotation_turns_in_place() -> None:
    clip = single("rotate", travel=np.pi / 2)
    frames = [inside(drawn(clip, index), "red") for index in (0, 24, 48)]
    # A square turned by an eighth stands on its corner: wider, of the same area, in the same place.
    widths = [pixels[0].max() - pixels[0].min() for pixels in frames]
    assert widths[1] / widths[0] == pytest.approx(2**0.5, rel=0.1) and abs(widths[2] - widths[0]) <= 1
    np.testing.assert_allclose(frames[1].mean(1), frames[0].mean(1), atol=1)
    assert frames[1].shape[1] == pytest.approx(frames[0].shape[1], rel=0.05)


def test_bounces_twice_and_lands_where_it_began() -> None:
    item = single("bounce", travel=0.3).items[0]
    heights = [position(item, phase, 1.5)[1] for phase in (0.0, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(heights, [0.65, 0.35, 0.65, 0.35])


def test_the_first_object_hides_the_second() -> None:
    front, back = single("still", travel=0.0).items[0], Item("square", "blue", "still", 0.2, 0.0, (0.55, 0.5))
    frame = drawn(Clip((front, back), PLAIN, ""), 0)
    alone = inside(drawn(Clip((back,), PLAIN, ""), 0), "blue").shape[1]
    seen = inside(frame, "blue").shape[1]
    assert inside(frame, "red").shape[1] == inside(drawn(Clip((front,), PLAIN, ""), 0), "red").shape[1]
    assert 0 < seen < 0.8 * alone


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_are_what_they_are_called(kind: str) -> None:
    backdrop = dataclasses.replace(sample(np.random.default_rng(1), kind), pan=(0.0, 0.0))
    far = Item("circle", "red", "still", 0.01, 0.0, (5.0, 5.0))
    frame = drawn(Clip((far,), backdrop, ""), 0).astype(int)[..., 1]
    steps = np.concatenate([np.abs(np.diff(frame, axis=axis)).ravel() for axis in (0, 1)])
    hard = {"plain": False, "gradient": False, "noise": False, "checkerboard": True, "stripes": True}
    assert (steps.max() > 20) == hard[kind]
    assert (frame.std() < 1) == (kind == "plain")


def test_panning_moves_the_background_alone() -> None:
    clip = next(c for c in map(sample_clip, range(400)) if c.backdrop.pans)
    still = dataclasses.replace(clip, backdrop=dataclasses.replace(clip.backdrop, pan=(0.0, 0.0)))
    np.testing.assert_array_equal(drawn(clip, 0), drawn(still, 0))
    changed = (drawn(clip, 48) != drawn(still, 48)).any(-1)
    x, y = inside(drawn(still, 48), clip.items[0].color)
    assert changed.any() and not changed[y, x].mean() > 0.1


@pytest.mark.parametrize("seed", range(40))
def test_objects_stay_in_the_frame(seed: int) -> None:
    clip = sample_clip(seed)
    for phase in np.linspace(0, 1, 9):
        x, y = position(clip.items[0], phase, 1.5)
        assert 0.1 < x < 1.4 and 0.1 < y < 0.95


def test_captions_are_made_of_known_words_and_short() -> None:
    known = set(vocabulary())
    texts = [sample_clip(seed).text for seed in range(2000)]
    used = {word for text in texts for word in text.split()}
    assert used == known, "a word that no caption holds need not be known"
    assert max(len(text.split()) + 1 for text in texts) <= MAX_TOKENS
    assert len(set(texts)) > 1200, "the wordings hardly vary"


def test_words_keep_their_numbers() -> None:
    # Trained weights know words by their numbers: this list may grow at its end and change nowhere else.
    assert vocabulary()[:6] == ["a", "across", "as", "background", "blue", "by"]
    assert vocabulary()[36:38] == ["yellow", "and"] and len(vocabulary()) == len(set(vocabulary()))


def test_caption_names_the_objects() -> None:
    for clip in map(sample_clip, range(300)):
        first = clip.items[0]
        assert f"{first.color} {first.shape}" in clip.text
        assert all(f"in front of a {other.color} {other.shape}" in clip.text for other in clip.items[1:])
        others = set(DIRECTIONS) - set(first.motion.split()) - set(" ".join(DEEDS.get(first.motion, ())).split())
        assert not set(clip.text.split()) & others


def test_all_motions_and_backgrounds_occur() -> None:
    clips = [sample_clip(seed) for seed in range(3000)]
    assert {item.motion for clip in clips for item in clip.items} == set(MOTIONS)
    kinds = Counter(clip.backdrop.kind for clip in clips)
    assert set(kinds) == set(BACKGROUNDS) and min(kinds.values()) > 450
    assert 200 < sum(len(clip.items) == 2 for clip in clips) < 400


def test_held_out_combinations_are_balanced_and_never_trained() -> None:
    kept = held_out()
    assert len(set(kept)) == 48
    assert set(Counter((color, direction) for _, color, direction, _ in kept).values()) == {2}
    assert set(Counter(shape for shape, *_ in kept)) == set(SHAPES)
    assert all(8 <= count <= 11 for count in Counter(background for *_, background in kept).values())
    assert not {clip.combination for clip in map(sample_clip, range(3000))} & set(kept)


def test_a_clip_of_a_combination_shows_it() -> None:
    clip = clip_of("square", "red", "left", "noise", seed=3)
    assert clip.combination == ("square", "red", "left", "noise") and "red square" in clip.text
    assert set(prompt_for(*clip.combination).split()) <= set(vocabulary())


def test_dataset_counts_up_its_seeds() -> None:
    pairs = list(dataset(40, 2, 1, 48, 64))
    assert [text for _, text in pairs] == [sample_clip(40).text, sample_clip(41).text]
    np.testing.assert_array_equal(pairs[1][0], render(sample_clip(41), 1, 48, 64))
