"""The measured curves on the pages of methods and cache policies: ``python benchmarks/curves.py`` writes them.

A page has them between its markers: a picture, its numbers and where they are from, all out of benchmarks/results. What
has not been measured says so. tests/test_site.py holds pages and pictures against the results.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidaccel.caching import POLICIES
from vidaccel.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
PICTURES = DOCS / "curves"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
FAMILIES = {"wan": "Wan", "hunyuanvideo": "HunyuanVideo", "cogvideox": "CogVideoX"}
MASKS = ("static_masks", "dynamic_masks")
"""What is in both was measured anew for the second."""
CENTROID, RANDOM, ORACLE, FEWER = "+centroid", "random", "oracle", "fewer-steps"
NEAR = 0.015
"""A realised density that differs by more is shown."""
DENSITIES = "; where the density differs from what was asked, it stands in brackets"
SHARES = ", by what a reused step is given; in brackets the share of the blocks' calls that was computed"
UNMEASURED = "Not measured: there is no run of it in `benchmarks/results`."


@dataclass(frozen=True)
class Curve:
    """What one line of a picture shows.

    Args:
        family, label: of it; the label is a method's, `FEWER`, or a predictor's.
        points: what was asked for, as text, and the share that was computed and the dB that came of it.
        beside: whether it is only for comparison.
    """

    family: str
    label: str
    points: tuple[tuple[str, float, float], ...]
    beside: bool = False


@dataclass(frozen=True)
class Measured:
    """All of a page: curves, the name of their x axis, what they were made with, and the lines of results behind."""

    name: str
    axis: str
    words: str
    curves: tuple[Curve, ...]
    lines: tuple[Mapping[str, Any], ...]

    def digest(self) -> str:
        """Of what a picture shows; it stands in the picture."""
        shown = [(each.family, each.label, each.points) for each in self.curves]
        return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


@functools.cache
def read(name: str) -> list[dict[str, Any]]:
    """The lines of a file of results; none where there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def masks() -> dict[tuple[str, str], dict[float, dict[str, Any]]]:
    """The last line of each method, family and density, of the runs of four prompts."""
    found: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
    for line in (line for name in MASKS for line in read(name)):
        if line["part"] == "quick" and "metric" not in line and line.get("density") and "latent_snr" in line:
            found.setdefault((line["method"], line["family"]), {})[line["density"]] = line
    return found


def of_method(name: str) -> Measured:
    """A method alone and with `centroid`; beside it random blocks, the best ones, dense runs of as much attention."""
    known = masks()
    curves: list[Curve] = []
    lines: list[Mapping[str, Any]] = []
    for family in FAMILIES:
        for label in dict.fromkeys((name, name + CENTROID, RANDOM, ORACLE)):
            rows = known.get((label, family), {})
            own = label in (name, name + CENTROID)
            points = tuple((f"{at:g}", row["video_density"], row["latent_snr"]) for at, row in sorted(rows.items()))
            if points and (name, family) in known:
                curves.append(Curve(family, label, points, not own))
                lines += rows.values() if own else ()
        if (name, family) in known:
            curves.append(Curve(family, FEWER, tuple(_fewer(family)), True))
    return Measured(name, "video density", "16-token blocks", tuple(curves), tuple(lines))


def _fewer(family: str) -> Iterator[tuple[str, float, float]]:
    """Dense runs with as much attention work as a sparse run of each density."""
    runs = {line["steps"]: line for line in read("fewer_steps") if line["family"] == family}
    for density, steps in zip((0.1, 0.2, 0.3, 0.5), sorted(runs), strict=True):
        yield f"{steps} steps", density, runs[steps]["latent_snr"]


def of_policy(name: str) -> Measured:
    """A policy at settings of its own with each predictor, beside dense runs of fewer steps."""
    rows = [line for line in read("caching_curves") if line["latent_snr"] is not None]
    curves: list[Curve] = []
    lines: list[Mapping[str, Any]] = []
    for family in FAMILIES:
        own = [line for line in rows if (line["family"], line["policy"]) == (family, name)]
        for predictor in dict.fromkeys(line["predictor"] for line in own):
            curves.append(Curve(family, predictor, _points(own, predictor)))
        if own:
            beside = [line for line in rows if (line["family"], line["policy"]) == (family, FEWER)]
            curves.append(Curve(family, FEWER, _points(beside, None), True))
        lines += own
    return Measured(f"policies/{name}", "share computed", "96x144 pixels", tuple(curves), tuple(lines))


def _points(lines: Iterable[Mapping[str, Any]], predictor: str | None) -> tuple[tuple[str, float, float], ...]:
    return tuple((f"{line['value']:g}", line["computed"], line["latent_snr"]) for line in lines
                 if line["predictor"] == predictor)  # fmt: skip


def section(measured: Measured) -> str:
    """What stands between the markers of a page."""
    if not measured.curves:
        return UNMEASURED
    picture = f"{'../' * measured.name.count('/')}curves/{Path(measured.name).name}.svg"
    what = f"Signal to noise of the final latents against dense ones, by {measured.axis}"
    policy = measured.name.startswith("policies/")
    table, words = (_of_shares(measured), SHARES) if policy else (_of_densities(measured), DENSITIES)
    names = [name for family, name in FAMILIES.items() if any(curve.family == family for curve in measured.curves)]
    where = f"miniature{'s' if len(names) > 1 else ''} of {', '.join(names)}"
    return "\n".join([f"![{what}: {where}]({picture})", "", f"{what}, in dB{words}:", "", *table, "",
                      _where(measured)])  # fmt: skip


def _of_densities(measured: Measured) -> list[str]:
    """A line for each curve, a column for each density."""
    own = [curve for curve in measured.curves if not curve.beside]
    asked = sorted({word for curve in own for word, *_ in curve.points}, key=float, reverse=True)
    table = [f"| | {' | '.join(asked)} |", "|---" * (len(asked) + 1) + "|"]
    for curve in own:
        cells = {word: f"{snr:.1f}" + (f" ({share:.2f})" if abs(share - float(word)) > NEAR else "")
                 for word, share, snr in curve.points}  # fmt: skip
        method, _, made_up = curve.label.partition("+")
        title = f"{FAMILIES[curve.family]}, `{method}`" + (f" with `{made_up}`" if made_up else "")
        table.append(f"| {title} | {' | '.join(cells.get(word, '') for word in asked)} |")
    return table


def _of_shares(measured: Measured) -> list[str]:
    """A line for each setting, a column for each predictor."""
    own = [curve for curve in measured.curves if not curve.beside]
    labels = list(dict.fromkeys(curve.label for curve in own))
    knob = SETTINGS[Path(measured.name).name]
    table = [f"| | {knob} | {' | '.join(f'`{label}`' for label in labels)} |", "|---" * (len(labels) + 2) + "|"]
    for family in FAMILIES:
        found = {(curve.label, word): f"{snr:.1f} ({share:.2f})" for curve in own if curve.family == family
                 for word, share, snr in curve.points}  # fmt: skip
        for word in dict.fromkeys(word for _, word in found):
            cells = [found.get((label, word), "") for label in labels]
            table.append(f"| {FAMILIES[family]} | {word} | {' | '.join(cells)} |")
    return table


SETTINGS = {
    "block_profile": "`share`", "easycache": "`threshold`", "ertacache": "`computed_steps`, share",
    "first_block": "`threshold`", "magcache": "`threshold`", "rehash": "`threshold`",
    "static": "`computed_steps`, share", "teacache": "`threshold`",
}  # fmt: skip
"""What of a policy is swept."""


def _where(measured: Measured) -> str:
    """Setting, hardware, versions and revisions."""
    first = measured.lines[0]
    versions = " and ".join(sorted({f"torch {line['versions']['torch']}, diffusers {line['versions']['diffusers']}"
                                    for line in measured.lines}))  # fmt: skip
    made = sorted({line["created"][:10] for line in measured.lines})
    made[-1] += f", git {', '.join(sorted({line['git'][:7] for line in measured.lines}))}"
    threads = f"{first['device']['threads']} thread{'s' if first['device']['threads'] > 1 else ''}"
    scripts = sorted({f"`benchmarks/{line['benchmark']}.py`" for line in measured.lines})
    device = f"fp32, {threads} of an {first['device']['name']}"
    return (f"*Means of {first['prompts']} prompts, 20 steps, {measured.words}, {device}; "
            f"{versions}; {' and '.join(made)}; {' and '.join(scripts)}.*")  # fmt: skip


def all_measured() -> dict[Path, Measured]:
    """What belongs on each page."""
    pages = {DOCS / f"{name}.md": of_method(name) for name in METHODS}
    return pages | {DOCS / "policies" / f"{name}.md": of_policy(name) for name in POLICIES}


def shown(page: str, measured: Measured) -> str:
    """A page with what was measured between its markers.

    Raises:
        ValueError: it has not one of each, in order.
    """
    head, begin, rest = page.partition(BEGIN)
    between, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head + tail:
        raise ValueError(f"the page has not one {BEGIN} and after it one {END}")
    return f"{head}{BEGIN}\n{section(measured)}\n{END}{tail}"


def main() -> None:
    """Write all pages and pictures."""
    from curves_picture import picture

    PICTURES.mkdir(exist_ok=True)
    for path, measured in all_measured().items():
        path.write_text(shown(path.read_text(encoding="utf-8"), measured), encoding="utf-8")
        if measured.curves:
            (PICTURES / f"{path.stem}.svg").write_bytes(picture(measured))


if __name__ == "__main__":
    main()
