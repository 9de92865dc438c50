"""Documents that hold something made by a command, between two marks; the rest of them is their writers' own."""

from __future__ import annotations

from pathlib import Path

from vidaccel.files import write_text

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
"""What stands between them is written by `put`."""


def split(out: Path, new: str) -> tuple[str, str]:
    """What stands before and after the marks of a document.

    Args:
        new: the document where there is none yet, with the marks.

    Raises:
        ValueError: a document without the two marks, or that is not text in UTF-8.
    """
    try:
        text = out.read_text(encoding="utf-8") if out.exists() else new
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(out)!r} is not text in UTF-8") from error
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{str(out)!r} has no marks {BEGIN} and {END} for the results to go between")
    return before, after


def put(out: Path, around: tuple[str, str], body: str) -> Path:
    """Write a document with `body` between its marks, whole or not at all; `around` is of `split`."""
    before, after = around
    return write_text(out, f"{before}{BEGIN}\n{body}\n{END}{after}")
