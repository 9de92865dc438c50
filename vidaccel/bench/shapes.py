"""Self-attention shapes of real models, and tiny ones to try everything with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from vidaccel.layout import TokenLayout

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shape:
    """Self-attention of one model at one resolution, batch 1.

    Args:
        name: as on the command line.
        layout: its tokens, padded text included.
        heads, head_dim: of the attention.
    """

    name: str
    layout: TokenLayout
    heads: int
    head_dim: int

    @property
    def tokens(self) -> int:
        """Tokens of the sequence."""
        return self.layout.tokens

    @property
    def dense_flop(self) -> float:
        """FLOP of one dense call: two products of ``2 * tokens**2 * head_dim`` per head."""
        return 4.0 * self.tokens**2 * self.heads * self.head_dim


SHAPES = (
    Shape("wan-14b-720p", TokenLayout(21, 45, 80), 40, 128),
    Shape("cogvideox-5b", TokenLayout(13, 30, 45, text_before=226), 48, 64),
    Shape("wan-1.3b-480p", TokenLayout(21, 30, 52), 12, 128),
    Shape("hunyuanvideo-720p", TokenLayout(33, 45, 80, text_after=256), 24, 128),
    Shape("cogvideox1.5-5b", TokenLayout(11, 48, 85, text_before=226), 48, 64),
)
"""75,600, 17,776, 32,760, 119,056 and 45,106 tokens, most important first."""

SMOKE = (
    Shape("smoke-128", TokenLayout(3, 11, 13), 2, 128),
    Shape("smoke-64", TokenLayout(2, 9, 16, text_before=17), 3, 64),
)
"""Ragged grids of a few hundred tokens, for trying all of it on a CPU."""


def chosen(names: list[str] | None, smoke: bool) -> tuple[Shape, ...]:
    """The shapes of a run, in their own order.

    Raises:
        ValueError: an unknown name.
    """
    return named("shape", {shape.name: shape for shape in (SMOKE if smoke else SHAPES)}, names)


def named(kind: str, known: dict[str, Item], names: list[str] | None) -> tuple[Item, ...]:
    """Those of `known` that have one of the `names`, or all without names, in their own order.

    Raises:
        ValueError: an unknown name, of what `kind` says.
    """
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; choose {', '.join(known)}")
    return tuple(item for name, item in known.items() if not names or name in names)
