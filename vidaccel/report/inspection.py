"""An inspection as a page, or as a section of another: each head's attention map beside its mask and its numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vidaccel.files import write_text
from vidaccel.layout import TokenLayout
from vidaccel.report import heat
from vidaccel.report.html import render_page
from vidaccel.report.view import plain

LEAST_CELLS = 2
"""Cells of a frame under which lines between frames would hide the map."""
MOST_CELLS = 128


def section(values: Mapping[str, Any]) -> Markup:
    """An HTML section without scripts and ids, headed by ``h3``; its style is in ``report.css``.

    Args:
        values: of the record, as in ``inspection.json``; see `vidaccel.eval.inspection.Inspection`.

    Raises:
        ValueError: a record that is no inspection, or of which something is missing or not what it should be.
    """
    return Markup(render_page("inspection.html.j2", styles=(), scripts=(), **_view(values), headed=True))


def write_page(values: Mapping[str, Any], out: str | os.PathLike[str]) -> Path:
    """Write an inspection as one self-contained HTML file without scripts, whole or not at all.

    Raises:
        ValueError: as `section`.
        OSError: the file cannot be written.
    """
    view = _view(values)
    page = render_page("inspection_page.html.j2", styles=["report.css"], scripts=(), **view, headed=False,
                       groups=_groups(values))  # fmt: skip
    return write_text(out, page)


def _view(values: Mapping[str, Any]) -> dict[str, Any]:
    """All that the templates show."""
    if not isinstance(values, Mapping) or values.get("kind") != "inspection":
        kind = values.get("kind") if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(f"this is no inspection, as `vidaccel inspect` writes it, but {kind!r}")
    try:
        method = str(values["method"]["name"])
        return {
            "title": f"Attention of {values['model']['name']}, {method}", "method": method,
            "facts": _facts(values), "prompt": str(values["prompt"]),
            "calls": [_call(each) for each in values["calls"]], "notes": [str(each) for each in values["notes"]],
            "sparse": any(not each["dense"] for each in values["calls"]), "map_ramp": heat.ramp_uri(heat.MAP),
            "mask_ramp": heat.ramp_uri(heat.MASK), "power": f"{1 / values['scale']['exponent']:g}",
        }  # fmt: skip
    except (KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"the inspection is not whole: {type(error).__name__} {error}") from error


def _facts(values: Mapping[str, Any]) -> list[str]:
    settings = values["settings"]
    size = [settings.get(name) for name in ("width", "height", "num_frames")]
    facts = [f"{size[0]} × {size[1]}, {size[2]} frames"] if all(size) else []
    facts += [f"{settings['num_inference_steps']} steps"] if settings.get("num_inference_steps") else []
    return [*facts, str(settings["dtype"]), f"seed {values['seed']}"]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """One layer at one step."""
    cells = len(call["edges"]) - 1
    if not 1 <= cells <= MOST_CELLS:
        raise ValueError(f"a call of {cells} cells is none of 1 to {MOST_CELLS}")
    layout = TokenLayout(**call["layout"])
    where = f"step {call['step']}, layer {call['layer']}"
    expert = "" if call["expert"] == "transformer" else f" of {call['expert']}"
    return {
        "title": f"Step {call['step']}, layer {call['layer']}{expert}", "cells": cells,
        "how": str(call["how"]).replace("torch.", ""),
        "grid": f"{layout.frames} × {layout.height} × {layout.width} video tokens{_text(layout, call['tokens'])}",
        "mean": _mean(call), "dense": bool(call["dense"]), "lines": _lines(call["edges"], call["video"], layout),
        "heads": [_head(each, cells, where) for each in call["heads"]],
    }  # fmt: skip


def _text(layout: TokenLayout, tokens: int) -> str:
    before, after = layout.text_before, tokens - layout.video_end
    return f", {before} of text before them" * bool(before) + f", {after} of text after them" * bool(after)


def _mean(call: Mapping[str, Any]) -> str | None:
    """The heads of a sparse call in a sentence."""
    if call["dense"]:
        return None
    heads = call["heads"]
    kept = {head["head"]: head["kept_mass"]["mean"] for head in heads}
    worst, density = min(kept, key=lambda head: kept[head]), sum(head["video_density"] for head in heads) / len(heads)
    return (f"On average these heads keep {_share(sum(kept.values()) / len(kept))} of their attention in "
            f"{_share(density)} of the video's pairs; head {worst} keeps least, {_share(kept[worst])}.")  # fmt: skip


def _head(head: Mapping[str, Any], cells: int, where: str) -> dict[str, Any]:
    """One head: pictures, what they show in words, and numbers."""
    name, mask = f"head {head['head']}, {where}", head["mask"]
    most, quarter = float(head["map"]["most"]), _share(head["best_cells"]["0.25"])
    return {
        "title": f"Head {head['head']}",
        "map": heat.heat_uri(heat.square(head["map"]["bytes"], cells), cells, heat.MAP),
        "map_text": f"Attention map of {name}: the strongest cell has {most:.3g} times even attention, and the best "
                    f"quarter of the cells holds {quarter} of it.",
        "mask": None if mask is None else heat.heat_uri(heat.square(mask["bytes"], cells), cells, heat.MASK),
        "mask_text": f"Mask of {name}: {_share(head['video_density'])} of the video's pairs are kept.",
        "numbers": list(_numbers(head)), "pattern": _pattern(head["pattern"]), "order": _order(head["order"]),
    }  # fmt: skip


def _numbers(head: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values, those of the mask first."""
    if head["kept_mass"] is not None:
        kept = head["kept_mass"]
        yield "kept mass", _share(kept["mean"])
        yield "best blocks would keep", _share(head["best_mass"])
        yield "worst 1% of rows", _share(kept["worst_hundredth"])
        yield "worst row", _share(kept["least"])
        yield "video density", f"{head['video_density']:.3f}"
        yield "density", f"{head['density']:.3f}"
    for share, mass in head["best_cells"].items():
        yield f"in the best {float(share):.0%} of cells", _share(mass)
    if head["mass_on_text"] > 0:
        yield "on text", _share(head["mass_on_text"])
    yield "darkest, × even", f"{float(head['map']['most']):.3g}"


def _pattern(pattern: Mapping[str, Any] | None) -> str | None:
    """What the method chose for a head, and what a calibration knows of it."""
    if pattern is None:
        return None
    rest = {name: item for name, item in pattern.items() if name not in ("name", "calibrated")}
    words = [str(pattern["name"]), *(f"{name.replace('_', ' ')} {plain(item)}" for name, item in rest.items())]
    measured = pattern.get("calibrated")
    if measured:
        words.append(f"calibrated: error {measured['error']:.2g}, density {measured['density']:.3g}, "
                     f"cost {measured['cost']:.3g}")  # fmt: skip
    return ", ".join(words)


def _order(order: Mapping[str, Any] | None) -> str | None:
    """How the method reorders tokens, which the pictures undo."""
    if order is None:
        return None
    groups = order["groups"]
    if order["queries_moved"] == order["keys_moved"] == 0:
        return "In the tokens' own order."
    grouped = "" if groups is None else f", {groups['count']} groups of {groups['least']:,} to {groups['most']:,} keys"
    return (f"Computed in another order: {order['queries_moved']:.0%} of queries and {order['keys_moved']:.0%} of keys "
            f"moved{grouped}.")  # fmt: skip


def _lines(edges: Sequence[int], video: Sequence[int], layout: TokenLayout) -> str:
    """An SVG path along frames and text, in cells; none along frames that have hardly any."""
    places = [float(each) for each in dict.fromkeys(video) if 0 < each < len(edges) - 1]
    size = edges[video[0] + 1] - edges[video[0]]
    if layout.frame_tokens >= LEAST_CELLS * size:
        tokens = range(layout.frame_tokens, layout.video_tokens, layout.frame_tokens)
        places += [video[0] + token / size for token in tokens]
    end = len(edges) - 1
    return "".join(f"M0 {place:.2f}H{end}M{place:.2f} 0V{end}" for place in places)


def _groups(values: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, hardware and versions."""
    run = {name: values.get(name) for name in ("created", "vidaccel", "git", "seed", "negative_prompt", "backend")}
    method = values["method"]
    groups = (("Run", run), ("Model", values["model"]), ("Generation", values["settings"]),
              ("Method", {"name": method["name"], **method.get("options", {})}), ("Schedule", values["schedule"] or {}),
              ("Device", values["device"]), ("Versions", values["versions"]))  # fmt: skip
    return [(title, [(name.replace("_", " "), plain(item)) for name, item in items.items()])
            for title, items in groups if items]  # fmt: skip


def _share(value: float) -> str:
    return f"{value:.1%}"
