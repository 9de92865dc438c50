"""The profile in a miniature's folder: ``python miniatures/training/calibrate.py --model wan --work DIR``.

Calibrates every head on the prompts of benchmarks/prompts/calibration.txt, which show nothing that is held out, for
video densities as such: a CPU's times say little about a GPU's; at both sizes that the miniatures are trained at.
Goes on in DIR after a kill.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import vidaccel
from vidaccel import miniature
from vidaccel.cli.output import progress_bar
from vidaccel.profile import FILE

PROMPTS = Path(__file__).parents[2] / "benchmarks" / "prompts" / "calibration.txt"
DENSITY = 0.3
SMALLER = {"height": 96, "width": 144}


def main() -> None:
    """Calibrate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=miniature.available(), required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    pipe = miniature.load_miniature(options.model)
    call = {name: item for name, item in miniature.generation_defaults(options.model).items() if name != "fps"}
    with progress_bar("loading") as advance:
        profile = vidaccel.calibrate(
            pipe, PROMPTS.read_text(encoding="utf-8").splitlines(), target_density=DENSITY, cost="density",
            work=options.work, progress=advance, generation_kwargs=call, also=[SMALLER],
        )  # fmt: skip
    # A miniature is there to be measured sparse, whether that pays at its size or not.
    profile = dataclasses.replace(profile, min_tokens=0, source="miniatures/training/calibrate.py")
    profile.save(miniature.miniature_path(options.model) / FILE)


if __name__ == "__main__":
    main()
