"""What every attention pattern has in common: geometry in relative measures that fits any token grid."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover, orders

SHADES = "·█"
"""Of a drawing: blocks that are skipped and kept."""


class Pattern(ABC):
    """Which keys a head's queries attend to, as geometry. Subclasses are small frozen dataclasses, one file a kind.

    The fields are relative (fractions of a frame's rows and columns, of the clip, of all tokens), so that one pattern
    serves every resolution and length. A pattern speaks of video tokens in the positions of its `order`, 0 to
    ``layout.video_tokens - 1``. Text is no part of it: text rows attend to everything, all rows attend to text.

    What a pattern keeps is a union of rectangles in these positions. A block of queries by keys is computed where any
    pair in it is kept, so that nothing that a pattern names is ever lost; blocks on the diagonal always are.
    """

    name: ClassVar[str]
    """In profiles and in the CLI."""
    paper: ClassVar[str] = ""
    """Source paper."""

    @property
    def order(self) -> str:
        """Name of the token order in which it is executed, see `vidaccel.patterns.orders`; "FHW" is the natural one."""
        return orders.NATURAL

    @abstractmethod
    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        """What is kept: int64 ``[n, 4]`` of ``query start, query end, key start, key end``, each end one past the last.

        In pieces, so that none needs much memory; rectangles may overlap, and empty ones are allowed.
        """

    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]:
        """As `rectangles`, for blocks of `block` tokens: each may be widened to all queries of its tile.

        Since a block is computed where any pair in it is kept, blocks stay the same, and fewer rectangles do.

        Args:
            layout: of the positions of the order, see `orders.placed`.
        """
        return self.rectangles(layout)

    @classmethod
    def scaled(cls, share: float) -> Pattern:
        """The member of this family of patterns that is `share` of the way from its thinnest to dense, share in [0, 1].

        Its density never falls as `share` grows.

        Raises:
            TypeError: a pattern without a size, such as `Dense`.
        """
        raise TypeError(f"pattern {cls.name!r} has no size to scale")

    def blocks(self, layout: TokenLayout, block: int) -> Tensor:
        """The blocks to compute: bool ``[tiles, tiles]`` over the positions of its order, text included."""
        placed = orders.placed(layout, self.order)
        kept = cover.covered(self.covering(placed, block), placed, block)
        return cover.with_text(kept.fill_diagonal_(True), placed, block)

    def draw(self, layout: TokenLayout, block: int = 1) -> str:
        """A picture in text, a line for each query tile and a sign for each key block. For small grids."""
        return "\n".join("".join(SHADES[kept] for kept in row) for row in self.blocks(layout, block).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Its name and fields, JSON-ready."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **{key: _plain(item) for key, item in values.items()}}


class Runs(Pattern):
    """A pattern whose queries are cheapest taken by runs: pieces of a line of tokens that lie in one tile."""

    @abstractmethod
    def covering(self, layout: TokenLayout, block: int) -> Iterator[Tensor]: ...

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        return self.covering(orders.placed(layout, self.order), 1)


class Rule(Pattern):
    """A pattern whose blocks follow a rule of their own, not that of any pair."""

    @abstractmethod
    def blocks(self, layout: TokenLayout, block: int) -> Tensor: ...

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        """The pairs that it keeps in blocks of one token, one by one: for small grids."""
        video = TokenLayout(layout.frames, layout.height, layout.width)
        pairs = self.blocks(video, 1).nonzero()
        yield torch.stack([pairs[:, 0], pairs[:, 0] + 1, pairs[:, 1], pairs[:, 1] + 1], dim=1)


def _plain(value: Any) -> Any:
    """A field's value as JSON has it, patterns within it too."""
    if isinstance(value, Pattern):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def count(share: float, size: int) -> int:
    """The whole number nearest to a share of `size`; of a share that is not 0, at least 1."""
    return max(1, round(share * size)) if share else 0


def check_share(name: str, value: float, least: float = 0.0) -> None:
    """Refuse what is no fraction.

    Raises:
        ValueError: `value` is not a number in [least, 1].
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= 1:
        raise ValueError(f"{name}={value!r} is not a fraction from {least:g} to 1")
