"""Every method and cache policy on the miniatures: the evals and their report, as docs/results.md and one page.

    python benchmarks/published.py run FAMILY --work DIR         # evals, gone on with if they were stopped
    python benchmarks/published.py report --work DIR             # docs/results.md, docs/images and DIR/report.html

An eval has the first prompts of benchmarks/prompts/held_out.txt at the model's own size and 20 steps, decoded: each
method at two densities, each policy at about half of a run with the best predictor that it takes, head profiles with
a cache, and dense with as many steps as take each one's time. `report` is ``vidaccel report`` over all families that
DIR has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from caching_curves import LADDERS, TEACACHE
from caching_tuning import COUNTED, HALF, Place, counted, goes_with, swept_cache
from masks import FAMILIES, HERE, PROMPTS, STATIC, entry, evaluate

METHODS = (*STATIC, "semantic", "draft", "meansim", "antidiagonal", "nabla", "adaptive", "permuted_blocks", "vmoba",
           "asa")  # fmt: skip
DENSITIES = (0.5, 0.3)
STEPS = 20
BASELINES = ["dense", "fewer-steps"]
DOCUMENT, IMAGES = HERE.parent / "docs" / "results.md", HERE.parent / "docs" / "images"


def caches(place: Place) -> list[dict[str, Any]]:
    """Each policy, told what computes about half of a run."""
    made = []
    for policy, ladder in {**LADDERS, "teacache": TEACACHE[place.family]}.items():
        made.append(swept_cache(policy, _predictor(policy), ladder[2], place))
    return made + [counted(policy, _predictor(policy), HALF, place) for policy in COUNTED if policy != "even"]


def run(place: Place, prompts: int) -> None:
    """The evals of a family, in one folder."""
    texts = [line for line in PROMPTS.read_text(encoding="utf-8").splitlines() if line.strip()][:prompts]
    shared: dict[str, Any] = {"prompt": texts, "steps": STEPS, "breakdown": True, "baselines": BASELINES}
    folder = place.work / place.family
    evaluate(folder, place.family, {**shared, "method": "dense", "cache": caches(place)})
    evaluate(folder, place.family, {**shared, "method": [entry(name) for name in METHODS], "density": list(DENSITIES)})
    both = {"method": entry("head_profile", density=DENSITIES[-1]), "cache": ["easycache", caches(place)[0]]}
    evaluate(folder, place.family, {**shared, **both})


def report(work: Path) -> None:
    """The page, the document and its pictures."""
    folders = [str(work / family) for family in FAMILIES if (work / family).exists()]
    if not folders:
        raise SystemExit(f"{work} holds no eval: run one first")
    subprocess.run([sys.executable, "-m", "vidaccel.cli", "report", *folders, "--out", str(work / "report.html"),
                    "--markdown", str(DOCUMENT), "--images", str(IMAGES)], check=True)  # fmt: skip


def _predictor(policy: str) -> str:
    return "fitted" if goes_with(policy, "fitted") else "taylor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("family", nargs="*", choices=[*FAMILIES, []], help="which, all by default")
    parser.add_argument("--work", type=Path, required=True, help="folder of the evals")
    parser.add_argument("--prompts", type=int, default=4, help="held-out prompts, 4 by default, 16 at most")
    given = parser.parse_args()
    if given.part == "report":
        report(given.work)
        return
    for family in given.family or FAMILIES:
        run(Place(family, STEPS, given.work), given.prompts)


if __name__ == "__main__":
    main()
