"""The page of the evals that tuner.py made, as docs/results.md, its pictures, and one self-contained page.

    python benchmarks/published.py --work DIR      # DIR as of tuner.py: docs/results.md, docs/images, DIR/report.html

Every method and cache policy on the miniatures that DIR has, at their own size and 20 steps, decoded, with the points
that the tuner found and dense runs of fewer steps, beside `vidaccel report`'s provenance.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from masks import FAMILIES, HERE

DOCUMENT, IMAGES = HERE.parent / "docs" / "results.md", HERE.parent / "docs" / "images"


def main() -> None:
    """The page, the document and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the evals")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    evals = [given.work / "eval" / f"{family}-{given.steps}" for family in FAMILIES]
    folders = [str(each) for each in evals if each.exists()]
    if not folders:
        raise SystemExit(f"{given.work} holds no eval: run tuner.py first")
    page = given.work / "report.html"
    subprocess.run([sys.executable, "-m", "vidaccel.cli", "report", *folders, "--out", str(page), "--markdown",
                    str(DOCUMENT), "--images", str(IMAGES)], check=True)  # fmt: skip
    for path in (DOCUMENT, page):
        # Where a folder lay on the machine that measured is nobody's business.
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(rf"{re.escape(str(given.work))}/calibrations/[^/]+/", "", text), encoding="utf-8")


if __name__ == "__main__":
    main()
