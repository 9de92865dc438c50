"""What simple vision says of rendered clips, whose truth is known: sharp, soft, with ghosts, and empty."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "miniatures"))

from vidaccel_miniatures.adherence import STILL, Seen, look
from vidaccel_miniatures.backdrops import paint
from vidaccel_miniatures.captions import BACKGROUNDS, COLORS, DIAGONALS, DIRECTIONS, SHAPES
from vidaccel_miniatures.clips import Clip, Item, clip_of, render, sample_clip
from vidaccel_miniatures.pieces import label, main_pieces

COUNT = 216
SIZE = (13, 96, 144)


def truths() -> list[tuple[str, str, str, str]]:
    """`COUNT` combinations, held-out ones among them, in an order that has all of everything early."""
    every = list(itertools.product(SHAPES, COLORS, DIRECTIONS, BACKGROUNDS))
    return [every[index] for index in np.random.default_rng(0).permutation(len(every))[:COUNT]]


def drawn(clip: Clip, size: tuple[int, int, int] = SIZE) -> np.ndarray:
    return render(clip, *size).astype(np.float32) / 255


def softened(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As decoded clips are: blurred by about a pixel, and noisy."""
    filters = pytest.importorskip("skimage.filters")
    blurred = filters.gaussian(frames, sigma=(0, 1.0, 1.0, 0))
    return np.clip(blurred + rng.normal(0, 0.03, blurred.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module", params=["sharp", "soft"])
def judged(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, float], list[Seen]]]:
    """Share of right answers to each question, and all answers."""
    rng, seen = np.random.default_rng(1), []
    for seed, combination in enumerate(truths()):
        frames = drawn(clip_of(*combination, seed=seed))
        seen.append(look(softened(frames, rng) if request.param == "soft" else frames))
    answers = [(each.shape, each.color, each.direction, each.background) for each in seen]
    right = np.mean([np.equal(np.array(a, object), t) for a, t in zip(answers, truths(), strict=True)], axis=0)
    yield request.param, dict(zip(("shape", "color", "direction", "background"), right, strict=True)), seen


def test_rendered_clips_are_read_right(judged: tuple[str, dict[str, float], list[Seen]]) -> None:
    kind, right, seen = judged
    least = {"sharp": {"color": 0.99, "direction": 0.99, "shape": 0.95, "background": 0.95},
             "soft": {"color": 0.95, "direction": 0.95, "shape": 0.85, "background": 0.85}}[kind]  # fmt: skip
    assert len(seen) == COUNT and all(right[name] >= share for name, share in least.items()), right


def test_one_object_is_one_piece(judged: tuple[str, dict[str, float], list[Seen]]) -> None:
    assert np.mean([seen.pieces == 0 for seen in judged[2]]) > 0.99


def test_other_motions_are_diagonal_or_still() -> None:
    right = []
    for seed in range(100_000, 100_400):
        clip = sample_clip(seed)
        item = clip.items[0]
        if len(clip.items) == 1 and item.motion not in DIRECTIONS:
            seen, way = look(drawn(clip)), item.motion if item.motion in DIAGONALS else STILL
            right.append((seen.direction == way, seen.color == item.color, seen.shape == item.shape))
    assert len(right) > 40 and (np.mean(right, axis=0) >= 0.95).all()


def test_the_trained_size_is_read_as_well() -> None:
    seen = look(drawn(clip_of("triangle", "white", "up", "noise", seed=5), (49, 144, 208)))
    assert seen == Seen("white", "up", "triangle", "noise", 0.0)


def with_ghost(frames: np.ndarray, last: int) -> np.ndarray:
    """A square of the same red at an edge of the first frames, larger than the object itself."""
    frames = frames.copy()
    frames[:last, 4:48, 4:40] = COLORS["red"]
    return frames


def test_a_ghost_is_told_and_does_not_turn_the_motion() -> None:
    clip = Clip((Item("circle", "red", "right", 0.16, 0.8, (0.5, 0.7)),),
                clip_of("circle", "red", "right", "plain", 3).backdrop, "")  # fmt: skip
    frames = drawn(clip)
    ghost = look(with_ghost(frames, last=3))
    assert ghost.direction == "right" and ghost.color == "red" and ghost.pieces == pytest.approx(3 / 13, abs=0.08)
    assert look(frames).pieces == 0


def test_an_empty_scene_has_no_object() -> None:
    backdrop = clip_of("circle", "red", "left", "stripes", 3).backdrop
    clip = Clip((Item("circle", "red", "left", 0.2, 0.6, (9.0, 9.0)),), backdrop, "")
    assert look(drawn(clip)) == Seen(None, None, None, "stripes", None)


def test_an_object_that_hides_everything_hides_the_background() -> None:
    clip = Clip((Item("square", "blue", "still", 3.0, 0.0, (0.5, 0.5)),),
                clip_of("circle", "red", "left", "plain", 3).backdrop, "")  # fmt: skip
    seen = look(drawn(clip))
    assert seen.background is None and seen.color == "blue" and seen.direction == STILL


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "no clip of shape"),
        (np.zeros((4, 8, 8), np.float32), "no clip of shape"),
        (np.zeros((4, 8, 8, 3), np.uint8), "uint8, not floats"),
        (np.full((4, 8, 8, 3), 3.0), "reach from 3 to 3"),
        (np.full((4, 8, 8, 3), np.nan), "not within"),
    ],
)
def test_what_is_no_clip_is_refused(frames: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        look(frames)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_uneven_backgrounds_are_read_by_their_kind(background: str) -> None:
    """As generated clips have them: the bars of one are not all as wide, nor in line over the whole frame."""
    y, x = np.mgrid[:96, :144] / 96
    bent = (x + 0.06 * np.sin(5 * y + 1) + 0.05 * np.sin(9 * x), y + 0.06 * np.sin(5 * x) + 0.05 * np.sin(8 * y))
    right = []
    for seed in range(12):
        backdrop = replace(clip_of("circle", "red", "left", background, seed).backdrop, pan=(0.0, 0.0), period=0.34)
        frame = paint(backdrop, *bent, 0.0, 96).clip(0, 1)
        right.append(look(np.stack([frame] * 2)).background == background)
    assert np.mean(right) >= 0.9


def test_pieces_equal_scikit_images() -> None:
    measure = pytest.importorskip("skimage.measure")
    mask = np.random.default_rng(2).random((3, 40, 50)) < 0.62  # winding pieces
    ours = label(mask)
    for frame, numbers in zip(mask, ours, strict=True):
        theirs = measure.label(frame, connectivity=1)
        pairs = set(zip(theirs.ravel().tolist(), numbers.ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == theirs.max() + 1
    assert not set(ours[0].ravel()) & set(ours[1].ravel()) - {0}


def test_main_pieces_are_the_two_largest() -> None:
    mask = np.zeros((2, 10, 12), bool)
    mask[0, 1:4, 1:4], mask[0, 6:8, 6:9], mask[0, 9, 11] = True, True, True
    piece, sizes = main_pieces(mask, least=2)
    assert sizes.tolist() == [[9, 6], [0, 0]] and piece.sum() == 9 and piece[0, 2, 2]
