"""Scores of an eval's clips by outside judges, added to its records and tables after the fact."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidaccel.eval.clip import Clip
from vidaccel.eval.metrics import NOT_DECODED
from vidaccel.eval.metrics.scorer import Scorer, scorers
from vidaccel.eval.store import CLIP, Store
from vidaccel.eval.table import Row, rows_of, write_tables

Progress = Callable[[str, int, int], None]
"""Called before each score with the cell, the scores done and all that are missing."""


@dataclass
class Scored:
    """What `score_folder` did.

    Args:
        out: the eval's folder.
        made: new scores.
        kept: scores that were there before.
        missing: cells and scorers that gave none, and why.
        rows: of the table, with the scores' means.
    """

    out: Path
    made: int = 0
    kept: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {"kind": "score", "out": str(self.out), "made": self.made, "kept": self.kept, "missing": self.missing,
                "rows": [row.to_dict() for row in self.rows]}  # fmt: skip


def score_folder(
    out: str | os.PathLike[str], names: Iterable[str], progress: Progress | None = None
) -> Scored:
    """Score every clip of an eval, dense and fast ones alike, as they were generated and without loss.

    A score is written into the record of its cell as soon as it is there: after a kill the same call goes on. Where a
    scorer fails, the record has None and the reason, and the next call tries again.

    Args:
        out: the folder of an eval.
        names: of scorers, such as "vbench:imaging_quality"; see `vidaccel.eval.metrics.scorer`.
        progress: hears of every score.

    Raises:
        ValueError: no eval's folder or one without a finished cell, one in use, or a scorer that cannot work here.
    """
    judges = scorers(names)
    out = Path(out).expanduser().absolute()
    if not (out / "cells").is_dir():
        raise ValueError(f"{str(out)!r} is not the folder of an eval: it has no cells")
    with Store(out) as store:
        records = store.records()
        if not records:
            raise ValueError(f"the eval in {str(out)!r} has no finished cell")
        result = Scored(out)
        try:
            _score_all(store, records, judges, result, progress or (lambda *_: None))
        finally:
            records = store.records()
            result.rows = rows_of(records)
            write_tables(out, records, result.rows)
    return result


def _score_all(store: Store, records: Sequence[dict[str, Any]], judges: Sequence[Scorer], result: Scored,
               progress: Progress) -> None:  # fmt: skip
    todo = list(_todo(records, judges))
    result.kept = len(records) * len(judges) - sum(len(lacking) for _, lacking in todo)
    total, done = sum(len(lacking) for _, lacking in todo), 0
    for record, lacking in todo:
        clip = Clip.load(store.cells / record["cell"] / CLIP)
        for judge in lacking:
            progress(record["cell"], done, total)
            value, reason = _scored(judge, clip, record)
            done, result.made = done + 1, result.made + (value is not None)
            if reason is not None:
                result.missing[f"{record['cell']}, {judge.name}"] = reason
            record["metrics"] |= {judge.name: value, f"{judge.name}_reason": reason}
            record["scores"] = {**(record.get("scores") or {}), judge.name: {"better": judge.better,
                                                                             "version": judge.version}}  # fmt: skip
            store.rewrite(record)


def _todo(records: Iterable[dict[str, Any]], judges: Sequence[Scorer]) -> Iterator[tuple[dict[str, Any], list[Scorer]]]:
    for record in records:
        lacking = [judge for judge in judges if record["metrics"].get(judge.name) is None]
        if lacking:
            yield record, lacking


def _scored(judge: Scorer, clip: Clip, record: dict[str, Any]) -> tuple[float | None, str | None]:
    """The score of a clip, or why there is none."""
    if clip.frames is None:
        return None, NOT_DECODED
    try:
        value = float(judge.score(clip.frames, record["settings"]["fps"], record["prompt"]))
        return (value, None) if math.isfinite(value) else (None, f"the score is {value}")
    except Exception as error:  # whatever an outside judge raises is about this clip alone
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
