"""Bytes that a process sends to others, counted as the exchanges move them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from vidaccel.eval.sizes import ModelSize
from vidaccel.parallel.deal import plain
from vidaccel.scale.degrees import Degrees, tokens_of

FP32 = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends to all others in one pass, layers together.

    Args:
        heads: queries, keys and values there, and outputs back.
        text: outputs of text tokens, whose heads each rank of the exchange has to have.
        ring: keys and values that go round.
        ring_text: parts of text rows that ranks of a ring merge.
        output: the prediction, gathered at the end.
        guidance: the prediction, for the ranks that computed the other pass.
    """

    heads: int = 0
    text: int = 0
    ring: int = 0
    ring_text: int = 0
    output: int = 0
    guidance: int = 0

    @property
    def attention(self) -> int:
        """What the attention layers send."""
        return self.heads + self.text + self.ring + self.ring_text

    @property
    def total(self) -> int:
        """All of it."""
        return self.attention + self.output + self.guidance


def sent(size: ModelSize, degrees: Degrees, rank: int = 0, element: int = 2) -> Traffic:
    """What one rank sends in one pass.

    Per layer these are the four all-to-alls of DeepSpeed-Ulysses (arXiv 2309.14509), and the key and value stretches of
    Ring Attention (arXiv 2310.01889).

    Args:
        size: the model.
        degrees: of the split.
        rank: of the clip's ranks; of all, 0 sends the most.
        element: bytes of a number; 2 in bf16.
    """
    video, text = size.layout.video_tokens, size.layout.tokens - size.layout.video_tokens
    ring_rank, own = divmod(rank, degrees.ulysses)
    tokens = tokens_of(video, degrees.ranks)
    # Which heads a rank has does not change how many.
    heads = [len(each) for each in plain(size.heads, degrees.ulysses)]
    near = tokens[ring_rank * degrees.ulysses :][: degrees.ulysses]
    to_others = 3 * near[own] * (size.heads - heads[own]) + (sum(near) - near[own]) * heads[own]
    ends = list(accumulate(tokens, initial=0))[:: degrees.ulysses]
    # Every stretch goes on from here but the one of the next rank, which is the last to come.
    passed = video - (ends[(ring_rank + 1) % degrees.ring + 1] - ends[(ring_rank + 1) % degrees.ring])
    per_layer = Traffic(
        heads=to_others * size.head_dim * element,
        text=(degrees.ulysses - 1) * text * heads[own] * size.head_dim * element,
        ring=(degrees.ring > 1) * 2 * passed * heads[own] * size.head_dim * element,
        ring_text=(degrees.ring - 1) * text * heads[own] * (size.head_dim + 1) * FP32,
    )
    whole = {name: value * size.layers for name, value in vars(per_layer).items()}
    prediction = size.out * element
    whole["output"] = (degrees.ranks - 1) * tokens[rank] * prediction
    whole["guidance"] = (degrees.guidance - 1) * video * prediction
    return Traffic(**whole)
