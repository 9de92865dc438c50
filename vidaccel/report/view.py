"""What the page shows, as text: every number of a record formatted, every missing one explained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_FPS = 16.0
_DASH = "–"


@dataclass(frozen=True)
class Column:
    """One figure of the results table: its heading, which way is better, and its value dense and fast."""

    label: str
    better: str
    dense: str
    fast: str | None
    reason: str = ""
    """Why `fast` is None."""


REAL_SIZES = (
    ("model", "Model", "{}"), ("grid", "Token grid", "{}"), ("tokens", "Tokens", "{:,}"),
    ("video_density", "Video density", "{:.3f}"), ("attention_work", "Attention work", "{}"),
    ("dense_pflop_per_step", "Dense, PFLOP per step", "{:#.3g}"),
    ("sparse_pflop_per_step", "Sparse, PFLOP per step", "{:#.3g}"),
    ("counted_attention_gain", "Counted gain, attention", "{:.2f}×"),
)


def page_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """All text of the page but its assets, by the names that the template uses."""
    settings, sizes = _part(record, "settings"), record.get("real_sizes") or []
    return {
        "kind": record.get("kind") or "record",
        "method": _part(record, "method").get("name") or "sparse",
        "headline": headline(record),
        "facts": _facts(record),
        "counted": _counted(sizes),
        "prompt": record.get("prompt"),
        "fps": _number(settings.get("fps")) or DEFAULT_FPS,
        "width": settings.get("width") or 16, "height": settings.get("height") or 9,
        "columns": columns(record),
        "timing_note": _timing_note(record),
        "mask_text": mask_sentence(record),
        "real_heads": [heading for key, heading, _ in REAL_SIZES if any(row.get(key) is not None for row in sizes)],
        "real_rows": real_sizes(sizes),
        "groups": details(record),
        "notes": [str(note) for note in record.get("notes") or []],
        "files": [str(name) for name in _part(record, "files").values()],
    }


def is_dense(record: Mapping[str, Any]) -> bool:
    """Whether the record is of a dense run alone: it names a dense file, no fast one, and no method."""
    files = _part(record, "files")
    return not record.get("method") and "dense" in files and "fast" not in files


def headline(record: Mapping[str, Any]) -> str:
    """The measured speed in one line, slower runs and noise included."""
    if is_dense(record):
        return f"{_part(record, 'model').get('name') or 'a model'}, dense attention"
    timing, method = _part(record, "timing"), _part(record, "method").get("name") or "sparse"
    speedup = _number(timing.get("speedup"))
    if speedup is None:
        text = f"{method}: time not measured"
    elif abs(speedup - 1) < 0.005:
        text = f"{method}: as fast as dense ({speedup:.2f}×)"
    else:
        text = f"{method}: {speedup:.2f}× the speed of dense{', slower' if speedup < 1 else ''}"
    if speedup is not None and _overlap(timing.get("dense"), timing.get("fast")):
        text += ", within the spread of the runs"
    psnr = _number(_part(record, "metrics").get("psnr"))
    return text if psnr is None else f"{text}; PSNR {_format(psnr, '{:.1f}')} dB"


def columns(record: Mapping[str, Any]) -> list[Column]:
    """The results table: time, speed, density and fidelity, dense baseline and fast run."""
    timing, density, metrics = (_part(record, name) for name in ("timing", "density", "metrics"))

    def column(label: str, better: str, source: Mapping[str, Any], key: str, pattern: str, dense: str) -> Column:
        value = _number(source.get(key))
        text = None if value is None else _format(value, pattern)
        return Column(label, better, dense, text, str(source.get(f"{key}_reason") or "the record holds no value"))

    dense_time = _number(timing.get("dense_median"))
    time = column("Time, s", "lower", timing, "fast_median", "{:.2f}", _format(dense_time, "{:.2f}"))
    if is_dense(record):
        return [time]
    return [
        time,
        column("Speed", "higher", timing, "speedup", "{:.2f}×", "1.00×"),
        column("Density, sparse calls", "lower", density, "density", "{:.3f}", "1.000"),
        column("Density, all calls", "lower", density, "all_calls", "{:.3f}", "1.000"),
        column("PSNR, dB", "higher", metrics, "psnr", "{:.2f}", "reference"),
        column("SSIM", "higher", metrics, "ssim", "{:.4f}", "reference"),
        column("LPIPS", "lower", metrics, "lpips", "{:.4f}", "reference"),
    ]


def mask_sentence(record: Mapping[str, Any]) -> str:
    """What the mask picture shows and what share of the pairs it keeps."""
    layout, density = _part(record, "layout"), _part(record, "density")
    parts = ["Each row is a tile of query tokens and each column a block of key tokens; dark cells are computed and "
             "pale ones skipped, and the lines mark where a latent frame begins."]
    if all(layout.get(name) for name in ("frames", "height", "width")):
        parts.append(f"The grid is {layout['frames']} frames of {layout['height']} × {layout['width']} tokens.")
    video = _number(density.get("video_density"))
    if video is not None:
        parts.append(f"A sparse call computes {video:.1%} of the pairs of video tokens.")
    return " ".join(parts)


def real_sizes(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of the counted-gain table, without the columns that no row has."""
    shown = [(key, form) for key, _, form in REAL_SIZES if any(row.get(key) is not None for row in rows)]
    return [[_format(row.get(key), pattern) for key, pattern in shown] for row in rows]


def details(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, hardware and versions: (group, [(name, value)]), empty groups left out."""
    run = {key: record[key] for key in ("created", "vidaccel", "git", "seed", "negative_prompt", "backend",
                                        "peak_memory_gib", "calls") if key in record}
    method = _part(record, "method")
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Run", run), ("Model", _part(record, "model")), ("Generation", _part(record, "settings")),
        ("Method", {"name": method.get("name"), **_part(method, "options")} if method else {}),
        ("Schedule", _part(record, "schedule")), ("Token layout", _part(record, "layout")),
        ("Density", _part(record, "density")), ("Timing", _part(record, "timing")),
        ("Device", _part(record, "device")), ("Versions", _part(record, "versions")),
    ]
    return [(title, [(name.replace("_", " "), plain(value)) for name, value in values.items()])
            for title, values in groups if values]


def _facts(record: Mapping[str, Any]) -> list[str]:
    """Model, size, steps, device and seed, for the line under the headline."""
    settings, device = _part(record, "settings"), _part(record, "device")
    size = [settings.get(name) for name in ("width", "height", "num_frames")]
    facts = [_part(record, "model").get("name"), f"{size[0]} × {size[1]}, {size[2]} frames" if all(size) else None]
    if settings.get("num_inference_steps"):
        facts.append(f"{settings['num_inference_steps']} steps")
    if device.get("gpu") or device.get("name"):
        threads = f", {device['threads']} threads" if device.get("threads") and not device.get("gpu") else ""
        facts.append(f"{device.get('gpu') or device['name']}{threads}")
    facts += [settings.get("dtype"), f"seed {record['seed']}" if record.get("seed") is not None else None]
    return [str(fact) for fact in facts if fact]


def _counted(sizes: Sequence[Mapping[str, Any]]) -> str | None:
    """The counted gain at the record's first real size, for the line beside the measured one."""
    for row in sizes:
        gain = _number(row.get("counted_attention_gain"))
        if gain:
            return f"attention work falls {gain:.2f}-fold at {row.get('model', 'a real size')}"
    return None


def _timing_note(record: Mapping[str, Any]) -> str:
    timing = _part(record, "timing")
    runs = len(timing.get("dense" if is_dense(record) else "fast") or [])
    counted = f"Time is the median of {runs} run{'s' if runs != 1 else ''}" if runs else "Time of one whole generation"
    return f"{counted}{', ' + str(timing['note']) if timing.get('note') else ''}."


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)


def _format(value: Any, pattern: str) -> str:
    if value is None:
        return _DASH
    if isinstance(value, float) and math.isinf(value):
        return "∞"
    return str(value) if isinstance(value, str) else pattern.format(value)


def plain(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _overlap(dense: Any, fast: Any) -> bool:
    """Whether the slowest run of one side is no slower than the fastest of the other."""
    return bool(dense and fast) and min(dense) <= max(fast) and min(fast) <= max(dense)
