"""Which token is which frame, row, column and text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLayout:
    """The token grid of one self-attention call, after patchify.

    Video tokens are frame-major (frame slowest, column fastest), as in every diffusers video family; text tokens, if
    any, stand before or after them in the same sequence.

    Args:
        frames, height, width: the grid, in tokens; each at least 1.
        text_before, text_after: text tokens in the sequence, padding included; at least 0.

    Raises:
        ValueError: a size that no grid has.
    """

    frames: int
    height: int
    width: int
    text_before: int = 0
    text_after: int = 0

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("height", 1), ("width", 1), ("text_before", 0), ("text_after", 0)):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < least:
                raise ValueError(f"{name}={size!r} is not a whole number of tokens of at least {least}")

    @classmethod
    def parse(cls, grid: str, text_before: int = 0, text_after: int = 0) -> TokenLayout:
        """Read ``"FRAMESxHEIGHTxWIDTH"``, say ``"21x45x80"``.

        Raises:
            ValueError: `grid` is not three positive whole numbers joined by "x".
        """
        match = re.fullmatch(r"(\d{1,9})x(\d{1,9})x(\d{1,9})", grid.strip())
        if not match or "0" in match.groups():
            raise ValueError(f"grid {grid!r} is not FRAMESxHEIGHTxWIDTH in tokens, such as 21x45x80")
        frames, height, width = map(int, match.groups())
        return cls(frames, height, width, text_before, text_after)

    @classmethod
    def patched(
        cls, size: Sequence[int], patch: Sequence[int], text_before: int = 0, text_after: int = 0
    ) -> TokenLayout:
        """The grid of latents of `size` (frames, height, width), with `patch` of each to a token."""
        frames, height, width = (count // each for count, each in zip(size, patch, strict=True))
        return cls(frames, height, width, text_before, text_after)

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        """Video tokens, text not counted."""
        return self.frames * self.frame_tokens

    @property
    def tokens(self) -> int:
        """All tokens of the sequence."""
        return self.text_before + self.video_tokens + self.text_after

    @property
    def video_start(self) -> int:
        """Position of the first video token."""
        return self.text_before

    @property
    def video_end(self) -> int:
        """Position one past the last video token."""
        return self.text_before + self.video_tokens

    def __str__(self) -> str:
        text = "".join(
            f" {sign} {count} text" for sign, count in (("after", self.text_before), ("+", self.text_after)) if count
        )
        return f"{self.frames}x{self.height}x{self.width}{text}"
