"""Counted bytes: against tokens and heads that change hands one by one."""

from __future__ import annotations

import itertools

import pytest

from vidaccel.eval.sizes import ModelSize
from vidaccel.layout import TokenLayout
from vidaccel.parallel.deal import plain
from vidaccel.scale import Degrees, sent
from vidaccel.scale.degrees import tokens_of

DIM, LAYERS, OUT, ELEMENT = 8, 3, 5, 2


def toy(heads: int, video: int, text: int) -> ModelSize:
    return ModelSize("toy", "wan", TokenLayout(1, 1, video, text_after=text), heads, DIM, LAYERS, 2, out=OUT)


def one_by_one(heads: int, video: int, text: int, degrees: Degrees) -> list[dict[str, int]]:
    """Of each rank, numbers that it sends in a layer: each token and head goes from who has it to who needs it."""
    owner = [rank for rank, count in enumerate(tokens_of(video, degrees.ranks)) for _ in range(count)]
    deal = plain(heads, degrees.ulysses)
    found = [{"heads": 0, "text": 0, "ring": 0, "ring_text": 0} for _ in range(degrees.ranks)]
    for rank, (own, computing) in itertools.product(owner, enumerate(deal)):
        there = rank // degrees.ulysses * degrees.ulysses + own
        if there != rank:
            found[rank]["heads"] += 3 * len(computing) * DIM
            found[there]["heads"] += len(computing) * DIM
    for rank, own in enumerate(found):
        mine, ring = len(deal[rank % degrees.ulysses]), rank // degrees.ulysses
        own["text"] = (degrees.ulysses - 1) * text * mine * DIM
        for turn in range(degrees.ring - 1):
            held = (ring - turn) % degrees.ring
            tokens = sum(each // degrees.ulysses == held for each in owner)
            own["ring"] += 2 * tokens * mine * DIM
            own["ring_text"] += text * mine * (DIM + 1)
    return found


@pytest.mark.parametrize("text", [0, 3])
@pytest.mark.parametrize(
    ("heads", "video", "degrees"),
    [
        (4, 16, Degrees(1, 1, 1)), (4, 16, Degrees(1, 1, 4)), (4, 16, Degrees(2, 1, 2)), (5, 19, Degrees(1, 1, 3)),
        (4, 24, Degrees(1, 3, 2)), (4, 17, Degrees(1, 4, 1)), (3, 24, Degrees(1, 2, 2)),
    ],
)  # fmt: skip
def test_bytes_are_those_of_tokens_that_change_hands(heads: int, video: int, degrees: Degrees, text: int) -> None:
    size = toy(heads, video, text)
    by_hand = one_by_one(heads, video, text, degrees)
    for rank, numbers in enumerate(by_hand):
        found = sent(size, degrees, rank, ELEMENT)
        assert found.heads == numbers["heads"] * LAYERS * ELEMENT
        assert found.text == numbers["text"] * LAYERS * ELEMENT
        assert found.ring == numbers["ring"] * LAYERS * ELEMENT
        assert found.ring_text == numbers["ring_text"] * LAYERS * 4
        assert found.output == (degrees.ranks - 1) * tokens_of(video, degrees.ranks)[rank] * OUT * ELEMENT
        assert found.guidance == (degrees.guidance - 1) * video * OUT * ELEMENT
    totals = [sent(size, degrees, rank, ELEMENT).total for rank in range(degrees.ranks)]
    assert totals[0] == max(totals) or degrees.ring > 1


def test_the_papers_formula() -> None:
    """DeepSpeed-Ulysses: per layer and rank four tensors of N/P tokens, of which (P - 1)/P leave."""
    size, ranks = ModelSize("toy", "wan", TokenLayout(4, 8, 8), 8, 16, 7, 1), 4
    expected = 7 * 4 * (256 // ranks) * 8 * 16 * 2 * (ranks - 1) // ranks
    assert sent(size, Degrees(1, 1, ranks)).heads == expected
    # Ring Attention: each passes on the keys and values of all but one rank.
    assert sent(size, Degrees(1, ranks, 1)).ring == 7 * 2 * (ranks - 1) * (256 // ranks) * 8 * 16 * 2
