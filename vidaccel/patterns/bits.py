"""Small bit maps as text, for patterns that hold a mask: strict, so that one map has one text."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import torch
from torch import Tensor


def to_base64(kept: Tensor) -> str:
    """The bits of a bool map, row by row, eight to a byte, the first one highest."""
    return base64.b64encode(_packed(kept)).decode("ascii")


def from_base64(text: str, rows: int, columns: int) -> Tensor:
    """The bool map ``[rows, columns]`` of `to_base64`.

    Raises:
        ValueError: text of another length, of another alphabet, or with bits beyond the map.
    """
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    kept = _unpacked(data, rows, columns)
    if kept is None or to_base64(kept) != text:
        raise ValueError(f"cells of {rows}x{columns} are {-(-rows * columns // 8)} bytes as base64, the rest zeros")
    return kept


def to_hex(kept: Tensor) -> str:
    """As `to_base64`, in hexadecimal digits."""
    return _packed(kept).hex()


def from_hex(text: str, rows: int, columns: int) -> Tensor:
    """The bool map ``[rows, columns]`` of `to_hex`.

    Raises:
        ValueError: text of another length, of another alphabet, or with bits beyond the map.
    """
    try:
        data = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    kept = _unpacked(data, rows, columns)
    if kept is None or to_hex(kept) != text:
        raise ValueError(f"cells of {rows}x{columns} are {-(-rows * columns // 8)} bytes as hex digits, the rest zeros")
    return kept


def _packed(kept: Tensor) -> bytes:
    return np.packbits(kept.cpu().numpy().astype(bool).reshape(-1)).tobytes()


def _unpacked(data: bytes, rows: int, columns: int) -> Tensor | None:
    if len(data) != -(-rows * columns // 8):
        return None
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[: rows * columns]
    return torch.from_numpy(bits.astype(bool)).view(rows, columns)


def check_side(name: str, value: int, most: int) -> None:
    """Refuse what is no side of a map.

    Raises:
        ValueError: `value` is not a whole number in [1, most].
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name}={value!r} is not a whole number from 1 to {most}")
