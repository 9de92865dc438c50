"""What several methods check of their options, and say of a density: one wording for all."""

from __future__ import annotations

from vidaccel.layout import TokenLayout

MISSED = 0.02
"""Distance from the density asked for from which the notes say so: masks of small grids change in large jumps."""


def check_density(density: float | None) -> None:
    """Refuse what is no density; None is one not given.

    Raises:
        ValueError: outside (0, 1].
    """
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density {density} is outside (0, 1]")


def check_block(block: int) -> None:
    """Refuse a tile size that kernels do not take.

    Raises:
        ValueError: not a power of two of at least 16.
    """
    if block < 16 or block & (block - 1):
        raise ValueError(f"block {block} is not a power of two of at least 16 tokens")


def check_count(name: str, count: int | None) -> None:
    """Refuse a number of rows or steps that is none; None is one not given.

    Raises:
        ValueError: under 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"{name} {count} is not a whole number of at least 1")


def note_of_density(method: str, asked: float, reached: float, layout: TokenLayout) -> tuple[str, ...]:
    """What the user should know where the nearest density of a grid is not near."""
    if abs(reached - asked) <= MISSED:
        return ()
    return (f"{method}: density {asked:g} was asked for; the nearest on {layout} is {reached:.4f}",)
