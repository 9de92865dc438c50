"""The sections of a performance page, each a Markdown table of some of the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Line = dict[str, Any]
"""One result, as `vidaccel bench` or a benchmark of the source tree writes it."""


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, empty without rows."""
    made = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if not made:
        return ""
    return "\n".join(["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings), *made])


def _dense(lines: Sequence[Line]) -> str:
    dense = [line for line in _of(lines, "attention") if line["plan"] == "dense"]
    latest = {(line["shape"], line["implementation"]): line for line in dense}
    rows = [
        (line["shape"], f"{line['tokens']:,}", f"{line['heads']} x {line['head_dim']}", line["implementation"],
         _times(line), f"{line['tflops']:.4g}")
        for line in latest.values() if "tflops" in line
    ]  # fmt: skip
    return _table(("shape", "tokens", "heads", "implementation", "ms: p50 (p20 to p80)", "TFLOP/s"), rows)


def _sparse(lines: Sequence[Line]) -> str:
    """Every plan, and beside each of our times that of FlexAttention over it."""
    found = {(line["shape"], line["plan"], line["requested_density"], line["implementation"]): line
             for line in _of(lines, "attention") if line["plan"] != "dense" and "tflops" in line}  # fmt: skip
    rows = []
    for (shape, plan, asked, name), line in found.items():
        flex = found.get((shape, plan, asked, "flex"))
        over = f"{flex['p50_ms'] / line['p50_ms']:.2f}x" if flex and name != "flex" else ""
        rows.append((shape, plan, f"{line['density']:.3f}", name, _times(line), f"{line['tflops']:.4g}",
                     _figure(line.get("efficiency"), "{:.2f}"), _figure(line.get("speedup"), "{:.2f}x"), over,
                     f"{line['error']:.1e}"))  # fmt: skip
    return _table(("shape", "plan", "density", "implementation", "ms: p50 (p20 to p80)", "TFLOP/s, computed tiles",
                   "efficiency", "over dense", "over flex", "error"), rows)  # fmt: skip


def _models(lines: Sequence[Line]) -> str:
    latest = {(line["model"], line["method"], str(line["options"])): line for line in _of(lines, "model")}
    rows = [
        (line["model"], f"{line['tokens']:,}", f"{line['method']}, density {line['density']:.3f}",
         f"{line['dense_median_s']:.2f} s", f"{line['sparse_median_s']:.2f} s", f"{line['speedup']:.2f}x",
         f"{line['dense_block_ms']:.1f}, {line['sparse_block_ms']:.1f} ms", f"{line['attention_share']:.0%}",
         f"{line['predicted_limit']:.2f}x")
        for line in latest.values() if "speedup" in line
    ]  # fmt: skip
    return _table(("transformer, random weights", "tokens", "attention", "dense pass", "sparse pass", "speed-up",
                   "block dense, sparse", "attention's share", "limit at this density"), rows)  # fmt: skip


def _planning(lines: Sequence[Line]) -> str:
    latest = {(line["shape"], line["operation"]): line for line in _of(lines, "planning")}
    rows = [(line["shape"], line["operation"], _times(line), _figure(line["share_of_dense"], "{:.2%}"))
            for line in latest.values() if "p50_ms" in line]  # fmt: skip
    return _table(("shape", "operation", "ms: p50 (p20 to p80)", "of dense attention"), rows)


def _tuning(lines: Sequence[Line]) -> str:
    best = {(line["shape"], line["query_block"]): line for line in _of(lines, "tuning") if "fastest_of" in line}
    rows = [(line["architecture"], f"{line['head_dim']}", f"{line['query_block']}",
             line["row"], f"{line['tflops']:.4g}", f"{line['fastest_of']}") for line in best.values()]  # fmt: skip
    return _table(("architecture", "head dim", "query block", "fastest", "TFLOP/s", "of candidates"), rows)


def _pipelines(lines: Sequence[Line]) -> str:
    """What `vidaccel bench model` writes."""
    rows = []
    for line in lines:
        if line["benchmark"] == "pipeline":
            settings, found, times = line["settings"], line["prediction"]["generation"], line["timing"]
            rows.append((
                line["model"]["name"], f"{settings['height']}x{settings['width']}x{settings['num_frames']}",
                f"{settings['num_inference_steps']}", line["method"]["name"],
                f"{line['prediction']['density_all_calls']:.3f}", f"{times['dense_median']:.2f} s",
                f"{times['fast_median']:.2f} s", f"{times['speedup']:.2f}x", f"{found['attention_share']:.0%}",
                f"{found['speedup']:.2f}x",
            ))  # fmt: skip
    return _table(("pipeline", "size", "steps", "method", "density, all calls", "dense", "accelerated", "speed-up",
                   "attention's share", "limit at this density"), rows)  # fmt: skip


def _cpu(lines: Sequence[Line]) -> str:
    """What benchmarks/cpu_attention.py writes. On a busy machine OpenMP's waiting decides the time of short calls."""
    found = [line for line in lines if line["benchmark"] == "cpu_attention"]
    latest = {(line["case"], line.get("omp_wait_policy")): line for line in found}
    rows = [(line["case"], f"{line['tokens']:,}", f"{line['density']:.3f}", f"{line['dense_ms']['median']:.1f} ms",
             f"{line['sparse_ms']['median']:.1f} ms", f"{line['speedup']:.2f}x", f"{line['relative_error']:.1e}",
             str(line.get("omp_wait_policy") or "default"), _figure(line.get("load_before"), "{:.1f}"))
            for line in latest.values()]  # fmt: skip
    return _table(("case", "tokens", "density", "dense", "sparse", "speed-up", "error", "OpenMP waits",
                   "load of the machine"), rows)  # fmt: skip


def _problems(lines: Sequence[Line]) -> str:
    """What has no time, and why."""
    rows = []
    for line in lines:
        for problem in ("red", "failed", "skipped"):
            if problem in line:
                what = [str(line[name]) for name in ("shape", "model", "plan", "operation", "method") if name in line]
                rows.append((" ".join(what), str(line.get("implementation", "")), problem, str(line[problem])))
    return _table(("what", "implementation", "", "why"), dict.fromkeys(rows))


SECTIONS: dict[str, Callable[[Sequence[Line]], str]] = {
    "Dense attention": _dense, "Sparse attention": _sparse, "Whole transformers": _models, "Planning": _planning,
    "Launch parameters": _tuning, "Whole pipelines": _pipelines, "The cpu backend": _cpu, "Not measured": _problems,
}  # fmt: skip


def _of(lines: Sequence[Line], case: str) -> list[Line]:
    return [line for line in lines if line["benchmark"] == "kernels" and line["case"] == case]


def _times(line: Line) -> str:
    return f"{line['p50_ms']:.3g} ({line['p20_ms']:.3g} to {line['p80_ms']:.3g})"


def _figure(value: float | None, pattern: str) -> str:
    return "" if value is None else pattern.format(value)
