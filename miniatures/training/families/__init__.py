"""The three families: classes, sizes, text side, objective and assembly, one file each."""

from __future__ import annotations

from .base import Family
from .cogvideox import CogVideoX
from .hunyuanvideo import HunyuanVideo
from .wan import Wan

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {family.name: family for family in (Wan(), HunyuanVideo(), CogVideoX())}
"""Every family by its miniature's name."""
