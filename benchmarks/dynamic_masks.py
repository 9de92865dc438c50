"""Dynamic masks, static ones and compensation against each other on the miniatures, as in docs/dynamic-masks.md.

    python benchmarks/dynamic_masks.py quick FAMILY --work DIR      # all methods, 4 held-out prompts, latents
    python benchmarks/dynamic_masks.py finalists FAMILY --work DIR  # the best of these: 16 held-out prompts, decoded
    python benchmarks/dynamic_masks.py report --work DIR            # tables, paired bootstraps, JSON lines

Each part is a series of `vidaccel eval` in one folder of DIR, the most important first, and goes on where it was
stopped. ``quick --only semantic oracle+centroid`` runs a method, both alone and with whatever makes up for skipped
keys, and one such pair; ``--density`` limits the densities. The prompts are those of static_masks.py. Beside the
methods stand `random` blocks and `oracle`, the blocks of the most attention, known from all of it. ST-LPIPS needs
``pip install --no-deps stlpips-pytorch``. `report` appends to benchmarks/results/dynamic_masks.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from masks import (
    DENSITIES,
    FAMILIES,
    HERE,
    NEAR,
    PROMPTS,
    STATIC,
    Key,
    Rows,
    against,
    entry,
    evaluate,
    key_of,
    means,
    origin,
    record_rows,
    rows,
    spread,
    table,
)

from vidaccel.eval.record import append_line
from vidaccel.eval.table import RECORDS

RESULTS = HERE / "results" / "dynamic_masks.jsonl"
FLAGSHIP = "semantic+centroid"
KEY = (0.1, 0.2)
"""The flagship at the first density is to beat what is not compensated at the second."""
ORACLE = "oracle"
NO_METHODS = (ORACLE, "random", "fewer-steps")
PORTIONS = (
    (FLAGSHIP,),
    ("semantic", "oracle"),
    ("head_profile", "head_profile+centroid"),
    ("draft", "draft+centroid", "meansim", "meansim+centroid", "antidiagonal", "antidiagonal+centroid"),
    ("nabla", "adaptive", "permuted_blocks", "vmoba", "asa", *STATIC[1:], "random"),
    ("oracle+centroid", "nabla+centroid", "adaptive+centroid", "permuted_blocks+centroid", "vmoba+centroid",
     "asa+centroid", *(f"{name}+centroid" for name in STATIC[1:]), "random+centroid"),
    ("semantic+residual", "head_profile+residual", "draft+residual"),
)  # fmt: skip
"""Of the quick part, by label; each is one eval, and what an eval holds it runs prompt by prompt."""
ASKED = {"residual": {0.5: 0.375, 0.3: 0.125}}
"""By compensation and density what a method is asked for, so that it realises that density.

`residual` computes every fifth sparse step in full, a share of 0.2 that no smaller density has room for.
"""


def asked(label: str, density: float) -> float | None:
    """What a method is asked for in a column; None where the column is out of its reach."""
    by_density = ASKED.get(label.partition("+")[2])
    return density if by_density is None else by_density.get(density)


def entries(labels: Iterable[str], densities: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Of the method axis, each with its density."""
    for label in labels:
        name, _, made_up = label.partition("+")
        more = {"compensation": made_up} if made_up else {}
        for density in densities:
            if (value := asked(label, density)) is not None:
                yield entry(name, density=value, **more)


def quick(family: str, work: Path, densities: Sequence[float], only: Sequence[str] | None) -> None:
    """Every method, alone and compensated; fewer steps at equal time beside the flagship."""
    for labels in PORTIONS:
        wanted = [label for label in labels if only is None or {label, label.partition("+")[0]} & set(only)]
        methods = list(entries(wanted, densities))
        baselines: Any = ["fewer-steps"] if FLAGSHIP in wanted else False
        if methods:
            values = {"method": methods, "prompts_file": str(PROMPTS), "quick": True, "baselines": baselines}
            evaluate(work / "quick" / family, family, values)


def row_of(record: dict[str, Any]) -> Key:
    """The row of a record, with the density that was meant."""
    label, density = key_of(record)
    by_density = ASKED.get(label.partition("+")[2], {})
    return label, next((column for column, value in by_density.items() if value == density), density)


def ranked(found: Rows, density: float, compensated: bool) -> list[str]:
    """Labels of the methods in a column by how near their latents are to dense in the mean, the nearest first.

    Those that realised more than the density are left out, and so is what is no method for use.
    """
    scores: dict[str, float] = {}
    for label, at in found:
        name, _, made_up = label.partition("+")
        if at != density or bool(made_up) != compensated or name in NO_METHODS:
            continue
        values = means(found[label, at])
        if values["video_density"] <= density + NEAR:
            # Without a mean: some latents are identical.
            scores[label] = values.get("latent_snr", math.inf)
    return sorted(scores, key=lambda label: -scores[label])


def chosen(found: Rows, density: float) -> list[str]:
    """Labels of the finalists in a column; the key comparison is the flagship at 0.1 against others at 0.2."""
    alone, compensated = (ranked(found, density, each) for each in (False, True))
    first = [FLAGSHIP] if density == KEY[0] else []
    others = [label for label in compensated if label not in first][:1]
    return [*first, *alone[: 2 if density == KEY[1] else 1], ORACLE, *others]


def finalists(family: str, work: Path, densities: Sequence[float]) -> None:
    """The best of the quick part and the oracle: all held-out prompts, decoded."""
    found = rows(work / "quick" / family, row_of)
    for portion in (KEY, [density for density in DENSITIES if density not in KEY]):
        wanted = [density for density in portion if density in densities]
        methods = [each for density in wanted for each in entries(chosen(found, density), [density])]
        if methods:
            values = {"method": methods, "prompts_file": str(PROMPTS), "baselines": False}
            evaluate(work / "finalists" / family, family, values)


def comparisons(found: Rows) -> Iterator[dict[str, Any]]:
    """Paired differences, each with what both sides realised and computed.

    "key": the flagship at 0.1 against all without compensation at 0.2; "equal": the flagship against all at the same
    density; "compensation": a method with it against the same without.
    """
    for first, second, kind in _pairs(found):
        one, other = (means(found[key]) for key in (first, second))
        shares = {f"{side}_{name}": values.get(name) for side, values in (("first", one), ("against", other))
                  for name in ("video_density", "computed_density")}  # fmt: skip
        for result in against(found, first, second):
            yield {"comparison": kind, **result, "against_density": second[1], **shares}


def _pairs(found: Rows) -> Iterator[tuple[Key, Key, str]]:
    for label, density in found:
        name, _, made_up = label.partition("+")
        if not made_up and density == KEY[1] and label != "fewer-steps" and (FLAGSHIP, KEY[0]) in found:
            yield (FLAGSHIP, KEY[0]), (label, density), "key"
        if label != FLAGSHIP and (FLAGSHIP, density) in found:
            yield (FLAGSHIP, density), (label, density), "equal"
        if made_up and (name, density) in found:
            yield (label, density), (name, density), "compensation"


def report(work: Path) -> None:
    """Record everything that DIR holds, and print it as Markdown."""
    for part, family in itertools.product(("quick", "finalists"), FAMILIES):
        folder = work / part / family
        if not (folder / RECORDS).exists():
            continue
        found, where = rows(folder, row_of), origin(folder)
        shared = {"benchmark": "dynamic_masks", "part": part, "family": family}
        record_rows(RESULTS, shared, found, where)
        print(f"\n### {part}, {family}\n\n{table(found, computed=True)}\n")
        for pair in comparisons(found):
            append_line(RESULTS, shared | pair | where)
            print(f"- {pair['comparison']}: {pair['first']} at {pair['density']} minus {pair['against']} at "
                  f"{pair['against_density']}, {pair['metric']}: {spread(pair)}")  # fmt: skip


def names() -> list[str]:
    """What ``--only`` may name."""
    labels = [label for portion in PORTIONS for label in portion]
    return list(dict.fromkeys([*(label.partition("+")[0] for label in labels), *labels]))


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quick", "finalists", "report"))
    parser.add_argument("family", choices=FAMILIES, nargs="?")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--density", type=float, nargs="+", choices=DENSITIES, default=list(DENSITIES))
    parser.add_argument("--only", nargs="+", choices=names(), metavar="NAME", help="methods of the quick part")
    options = parser.parse_args()
    if options.part == "report":
        report(options.work)
    elif options.family is None:
        parser.error(f"{options.part} needs a family")
    elif options.part == "quick":
        quick(options.family, options.work, options.density, options.only)
    else:
        finalists(options.family, options.work, options.density)


if __name__ == "__main__":
    main()
