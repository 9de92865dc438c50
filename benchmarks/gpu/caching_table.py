"""What caching.py measured, as a table: medians over the rounds of each case and variant."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

LABEL = "random weights: speed only, no quality"
DENSE, SPARSE, BOTH = "dense", "sparse", "sparse + "
ONE_RUN = ("model", "size", "frames", "steps", "guidance_scale", "method", "density", "seed", "variant", "round",
           "tiny", "git")  # fmt: skip


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run the same as one in the file."""
    return (*(str(line[name]) for name in ONE_RUN), line["device"]["gpu"])


def medians(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds and speed-up over the rounds of each case and variant; the rest is the first round's.

    ``product`` is the speed-up of sparse attention times that of the cache, each alone; None but where both are on.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        if "failed" not in line:
            groups.setdefault((key({**line, "variant": "", "round": ""}), line["variant"]), []).append(line)
    out = {at: {**group[0], "runs": len(group)} | {name: statistics.median(each[name] for each in group)
                                                   for name in ("seconds", "speedup")}
           for at, group in groups.items()}  # fmt: skip
    for (where, variant), found in out.items():
        parts = [out.get((where, each)) for each in (SPARSE, variant.removeprefix(BOTH))]
        found["product"] = parts[0]["speedup"] * parts[1]["speedup"] if BOTH in variant and all(parts) else None
    return list(out.values())


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    names = ("case", "variant", "runs", "s", "speed-up", "product of both", "computed steps", "density", "ms of a step",
             "deciding, ms of a run", "GiB")  # fmt: skip
    rows = [LABEL, "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for each in medians(lines):
        steps = len(each["cache"]["computed_steps"]) if each["cache"] else each["steps"]
        density = each["sparse"]["density"]["all_calls"] if each["sparse"] else None
        ms = ", ".join(f"{kind} {took:.1f}" for kind, took in each["step_ms"].items())
        deciding = sum(each["deciding_ms"].values()) if each["deciding_ms"] else None
        figures = (each["product"], f"{steps} of {each['steps']}", density, ms, deciding, each["peak_memory_gib"])
        shown = ("" if item is None else f"{item:.2f}" if isinstance(item, float) else item for item in figures)
        rows.append(f"| {each['model']}-{each['size']} | {each['variant']} | {each['runs']} | {each['seconds']:.2f} | "
                    f"{each['speedup']:.2f}x | {' | '.join(shown)} |")  # fmt: skip
    return "\n".join(rows)
