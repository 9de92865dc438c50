"""The two ends: a head that attends to everything, and one that is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.patterns import cover
from vidaccel.patterns.base import Pattern


@dataclass(frozen=True)
class Dense(Pattern):
    """Everything."""

    name: ClassVar[str] = "dense"

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        yield torch.tensor([[0, layout.video_tokens, 0, layout.video_tokens]])


@dataclass(frozen=True)
class Skip(Pattern):
    """Nothing: video rows have an output of zeros. Text rows still attend to everything."""

    name: ClassVar[str] = "skip"
    paper: ClassVar[str] = "Sparse-vDiT, arXiv 2506.03065"

    def rectangles(self, layout: TokenLayout) -> Iterator[Tensor]:
        yield torch.empty(0, 4, dtype=torch.int64)

    def blocks(self, layout: TokenLayout, block: int) -> Tensor:
        text = cover.text_blocks(layout, block)
        return text[:, None].expand(-1, len(text)).clone()
