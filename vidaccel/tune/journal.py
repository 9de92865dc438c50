"""What a tuning has found so far, one JSON object a line: a kill loses at most the line that was being written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidaccel.eval.record import append_line
from vidaccel.files import write_text

KIND, SPENT = "kind", "spent"


class Journal:
    """Lines of a file, each of some kind.

    Args:
        path: of the file; it need not be there. None writes nothing.

    Raises:
        ValueError: a line that is not one of a journal.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines = [] if path is None else self._read(path)

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The lines of a kind, in the order in which they were added."""
        return (line for line in list(self.lines) if line[KIND] == kind)

    def add(self, kind: str, spent: float, **values: Any) -> dict[str, Any]:
        """Add a line, and say how many seconds of the budget are spent by now."""
        line = {KIND: kind, SPENT: round(spent, 2), **values}
        if self.path is not None:
            append_line(self.path, line)
        self.lines.append(line)
        return line

    @property
    def spent(self) -> float:
        """Seconds that were spent when the last line was written."""
        return max((float(line[SPENT]) for line in self.lines), default=0.0)

    @staticmethod
    def _read(path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            # The line that a kill cut short: another one is not to be written behind it.
            write_text(path, whole)
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): remove it to begin again") from error
        if not all(isinstance(line, dict) and {KIND, SPENT} <= line.keys() for line in lines):
            raise ValueError(f"{path} is no journal of a tuning: choose another folder")
        return lines
