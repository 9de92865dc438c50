"""Measure how uneven a miniature's attention is, beside the same model with random weights.

    python miniatures/training/attention.py --family wan --out docs/attention

Writes FAMILY.json (the mass that the best 25 % and 10 % of 16x16 blocks hold, for every layer and head at three
steps), FAMILY.md (the same as a table) and FAMILY.png (the maps themselves).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import WEIGHTS
from diffusers import DiffusionPipeline
from families import FAMILIES
from families.base import FRAMES, LARGE
from vidaccel.eval.attention import Maps, attention_maps, mass_in_best
from vidaccel.eval.env import provenance
from vidaccel.files import write_text
from vidaccel.layout import TokenLayout
from vidaccel.report.attention import attention_picture

from vidaccel_miniatures import PROMPTS

STEPS, SHARES, BLOCK, SEED = (5, 10, 15), (0.25, 0.10), 16, 0
ENOUGH = 0.75
"""Mass in the best quarter of the blocks from which a head is worth making sparse."""


def layout_of(family: str) -> TokenLayout:
    """The token grid of a large clip."""
    return TokenLayout((FRAMES - 1) // 4 + 1, LARGE[0] // 16, LARGE[1] // 16, **FAMILIES[family].text)


def masses(maps: Maps) -> list[dict[str, Any]]:
    """One row for each step, layer and head."""
    rows = []
    for (step, layer), found in sorted(maps.items()):
        held = [mass_in_best(found, share).tolist() for share in SHARES]
        rows += [{"step": step, "layer": layer, "head": head, **{f"best_{share:.0%}": value for share, value in
                                                               zip(SHARES, values, strict=True)}}
                 for head, values in enumerate(zip(*held, strict=True))]  # fmt: skip
    return rows


def worth(rows: list[dict[str, Any]]) -> float:
    """Share of the heads that hold `ENOUGH` in the best quarter on average over the steps."""
    heads: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        heads.setdefault((row["layer"], row["head"]), []).append(row["best_25%"])
    return sum(sum(values) / len(values) >= ENOUGH for values in heads.values()) / len(heads)


def table(facts: dict[str, Any]) -> str:
    """The masses as a page of Markdown: a row for each layer and head."""
    def cell(rows: list[dict[str, Any]], layer: int, head: int, step: int) -> str:
        row = next(r for r in rows if (r["layer"], r["head"], r["step"]) == (layer, head, step))
        return " / ".join(f"{row[f'best_{share:.0%}']:.2f}" for share in SHARES)

    lines = [
        f"# Attention of the miniature {facts['family']}", "",
        "The share of each head's attention mass between video tokens that its best 25 % / best 10 % of",
        f'{BLOCK}x{BLOCK} blocks hold, at three of 20 steps ("{facts["prompt"]}", seed {facts["seed"]}), and with',
        f"random weights at step {STEPS[1]}. {facts['heads_worth']:.0%} of the heads hold at least {ENOUGH} in the",
        f"best quarter, on average over the steps; with random weights {facts['heads_worth_random']:.0%}. Made by",
        "`miniatures/training/attention.py`.", "",
        f"| layer, head | {' | '.join(f'step {step}' for step in STEPS)} | random weights |", f"|---|{'--:|' * 4}",
    ]  # fmt: skip
    for layer, head in sorted({(row["layer"], row["head"]) for row in facts["trained"]}):
        cells = [cell(facts["trained"], layer, head, step) for step in STEPS]
        lines.append(f"| {layer}, {head} | {' | '.join(cells)} | {cell(facts['random'], layer, head, STEPS[1])} |")
    return "\n".join([*lines, "", f"![Block-averaged attention of every layer and head]({facts['family']}.png)", ""])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--model", type=Path, help="a pipeline's folder; the committed weights by default")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    family = FAMILIES[options.family]
    pipe = DiffusionPipeline.from_pretrained(options.model or WEIGHTS / family.name, torch_dtype=torch.float32)
    call = {key: value for key, value in family.defaults.items() if key != "prompt"}

    def run() -> Maps:
        return attention_maps(pipe, PROMPTS[0], layout_of(family.name), STEPS, block=BLOCK, seed=SEED,
                              generation_kwargs=call)  # fmt: skip

    trained = run()
    torch.manual_seed(SEED)
    pipe.transformer = type(pipe.transformer).from_config(pipe.transformer.config).eval()
    rows, control = masses(trained), masses(run())
    print(f"{family.name}: {worth(rows):.0%} of the heads hold {ENOUGH} in the best quarter (random weights: "
          f"{worth(control):.0%})")  # fmt: skip
    facts = {"family": family.name, "prompt": PROMPTS[0], "seed": SEED, "block": BLOCK, "heads_worth": worth(rows),
             "heads_worth_random": worth(control), "trained": rows, "random": control, **provenance()}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / f"{family.name}.json", json.dumps(facts, indent=1) + "\n")
    write_text(options.out / f"{family.name}.md", table(facts))
    middle = {layer: found for (step, layer), found in trained.items() if step == STEPS[1]}
    words = {layer: [f"{mass:.2f}" for mass in mass_in_best(found, SHARES[0])] for layer, found in middle.items()}
    title = f"{family.name}, step {STEPS[1]} of 20: attention, and the mass in the best quarter of the blocks"
    (options.out / f"{family.name}.png").write_bytes(attention_picture(middle, title, words))


if __name__ == "__main__":
    main()
