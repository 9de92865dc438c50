"""In which ways so many GPUs can share the work of one clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vidaccel.eval.sizes import ModelSize


@dataclass(frozen=True)
class Degrees:
    """Into how many parts each kind of parallelism divides the work.

    Args:
        guidance: groups that compute a guidance pass each; 1 or 2.
        ring: stretches of the video between which keys and values go round.
        ulysses: ranks of a stretch, which exchange heads for tokens.
    """

    guidance: int = 1
    ring: int = 1
    ulysses: int = 1

    @property
    def ranks(self) -> int:
        """That the tokens of one pass are split over."""
        return self.ring * self.ulysses

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.guidance * self.ranks

    def __str__(self) -> str:
        return f"guidance {self.guidance} x ring {self.ring} x ulysses {self.ulysses}"


def tokens_of(video: int, ranks: int) -> list[int]:
    """Video tokens of each rank, as even as they go, the first ones with one more."""
    least, more = divmod(video, ranks)
    return [least + (rank < more) for rank in range(ranks)]


def choices(size: ModelSize, gpus: int, no_ring: str | None) -> tuple[list[Degrees], list[tuple[Degrees, str]]]:
    """All degrees that take so many GPUs: those that work, and those that do not with the reason.

    Args:
        size: the model.
        gpus: all of which work on one clip.
        no_ring: why its attention cannot go round a ring; None where it can.

    Raises:
        ValueError: no GPU.
    """
    if gpus < 1:
        raise ValueError(f"{gpus} GPUs cannot compute anything: give at least 1")
    able, refused = [], []
    for degrees in _all(gpus):
        reason = why_not(size, degrees, no_ring)
        if reason is None:
            able.append(degrees)
        else:
            refused.append((degrees, reason))
    return able, refused


def why_not(size: ModelSize, degrees: Degrees, no_ring: str | None) -> str | None:
    """Why a model's pass cannot be divided so; None where it can."""
    video, ranks = size.layout.video_tokens, degrees.ranks
    if degrees.guidance > 1 and size.passes < degrees.guidance:
        return "a step has one pass"
    if degrees.guidance > 1 and size.batched:
        return "the pipeline computes both passes as one batch"
    if degrees.ulysses > size.heads:
        return f"there are {size.heads} heads for {degrees.ulysses} processes"
    if degrees.ring > 1 and no_ring is not None:
        return no_ring
    if video < ranks:
        return f"there are {video} video tokens for {ranks} processes"
    if video % ranks and degrees.ulysses > 1 and degrees.ring > 1:
        return f"{video} video tokens do not divide by {ranks}, which ulysses_anything takes with ring 1 alone"
    return None


def needs_anything(size: ModelSize, degrees: Degrees) -> str | None:
    """The option of ``ContextParallelConfig`` by which tokens or heads that do not divide are split, if any."""
    uneven = size.layout.video_tokens % degrees.ranks or size.heads % degrees.ulysses
    if not uneven:
        return None
    return "ulysses_anything" if degrees.ulysses > 1 else "ring_anything"


def _all(gpus: int) -> Iterator[Degrees]:
    for guidance in (1, 2):
        ranks, rest = divmod(gpus, guidance)
        for ring in range(1, ranks + 1) if not rest else ():
            if ranks % ring == 0:
                yield Degrees(guidance, ring, ranks // ring)
