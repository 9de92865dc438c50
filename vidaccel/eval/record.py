"""One evaluation's result: settings, hardware, versions, figures, files; strict JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import vidaccel
from vidaccel.eval import env
from vidaccel.files import write_text

Kind = TypeVar("Kind", bound="Captured")


@dataclass(frozen=True)
class Captured:
    """What every record has: the setting of a generation, what it did, and where; see `capture`.

    Args:
        kind: what made it, such as "demo".
        created: UTC, ISO 8601.
        vidaccel: version.
        git: revision of the source checkout, None for an installed package.
        seed, prompt, negative_prompt: of the generation.
        model: name, pipeline, transformer, layers, heads, head_dim.
        settings: size, frames, steps, guidance, fps, dtype, device.
        device, versions: where it was measured.
        method, schedule, backend, layout, density, calls, notes: from the session's summary of the last fast run.
        timing: seconds of each dense and fast run, medians, speedup, and a note on what they hold.
        metrics: as of `compare_videos`.
        peak_memory_gib: of the process.
        files: names of the files beside the record.
    """

    kind: str
    created: str
    vidaccel: str
    git: str | None
    seed: int
    prompt: str
    negative_prompt: str | None
    model: dict[str, Any]
    settings: dict[str, Any]
    device: dict[str, Any]
    versions: dict[str, str | None]
    method: dict[str, Any]
    schedule: dict[str, Any]
    backend: str | None
    layout: dict[str, int] | None
    density: dict[str, float] | None
    timing: dict[str, Any]
    metrics: dict[str, Any]
    calls: dict[str, int]
    notes: list[str]
    peak_memory_gib: float | None
    files: dict[str, str]

    @classmethod
    def capture(cls: type[Kind], **values: Any) -> Kind:
        """A record of `values` made now, here and with these versions.

        Raises:
            TypeError: a field that is missing or unknown.
        """
        return cls(
            vidaccel=vidaccel.__version__, peak_memory_gib=env.peak_memory_gib(), **env.provenance(), **values,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return dataclasses.asdict(self)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write it as strict JSON, whole or not at all.

        Raises:
            ValueError: a number that JSON does not have, such as infinity.
        """
        return write_text(path, to_json(self.to_dict(), indent=2) + "\n")


@dataclass(frozen=True)
class Record(Captured):
    """One dense run beside one fast run.

    Args:
        mask_png: the mask as a picture, base64.
        real_sizes: counted work at the sizes of real models.
    """

    mask_png: str | None
    real_sizes: list[dict[str, Any]]


@dataclass(frozen=True)
class CellRecord(Captured):
    """One cell of an eval, against its dense reference.

    Args:
        cell: name of its folder.
        label: what its row of a table is called.
        requested_density: None where the method's own counts.
        cache: in words, "none" without one.
        baseline: what it is a baseline of, and how: kind, cell and the chosen number of steps or density; else None.
        reference: name of the dense reference's folder.
        row: hash of all that cells must share to be averaged: everything but prompt and seed.
        follow_up: what the baselines of this cell take from it: its equal-time number of steps and its density; with a
            cache also the computed steps, and how many would be as much work.
        compensation: of what was skipped, its name and options; None for none.
        cached: setting of the cache and what it did, see `vidaccel.eval.caches.cached_run`; None without one, and
            absent from records that were made before there were any.
        map: what each layer did in each step, see `vidaccel.step_map.Course.step_map`; None without a session.
        split: where the time goes, see `vidaccel.eval.breakdown.split`; None where nobody asked.
        scores: of outside judges, whose values are among the metrics: which are better, and the judge's version.
    """

    cell: str
    label: str
    requested_density: float | None
    cache: str
    baseline: dict[str, Any] | None
    reference: str
    row: str
    follow_up: dict[str, Any] | None
    compensation: dict[str, Any] | None
    cached: dict[str, Any] | None = None
    map: dict[str, Any] | None = None
    split: dict[str, Any] | None = None
    scores: dict[str, dict[str, str]] | None = None


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append one measurement to a file of JSON lines, whose folder is made if need be.

    Raises:
        ValueError: a number that JSON does not have.
    """
    line = to_json(values) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def to_json(values: Any, indent: int | None = None) -> str:
    """Strict JSON.

    Raises:
        ValueError: an infinity or a NaN, which JSON does not have.
    """
    return json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)
