"""The tables of docs/24gb.md: ``python benchmarks/memory_24gb_page.py`` writes them.

They show what benchmarks/memory_24gb.py recorded last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "memory_24gb.jsonl", ROOT / "docs" / "24gb.md"
BEGIN, END = "<!-- memory -->", "<!-- /memory -->"
TITLES = {
    "wan-14b-480p": "Wan 14B, 480x832, 81 frames", "wan-14b-720p": "Wan 14B, 720x1280, 81 frames",
    "hunyuanvideo-544p": "HunyuanVideo, 544x960, 129 frames", "hunyuanvideo-720p": "HunyuanVideo, 720x1280, 129 frames",
}  # fmt: skip
OWN = ("radial", "semantic", "easycache", "first_block")
WHOLE, OFFLOADED = "weights_gb", "offloaded_gb"
APART = ("format", "what", "tiled", "method", "weights")
Key = tuple[Any, ...]


def newest(path: Path = RESULTS) -> dict[Key, dict[str, Any]]:
    """The last line of each thing that was counted, by model, part and what sets it apart there."""
    found = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        apart = [line.get(name) for name in APART]
        found[(line["model"], line["part"], *(each for each in apart if each is not None))] = line
    return found


def work(lines: dict[Key, dict[str, Any]]) -> list[str]:
    """What a forward and vidaccel take, without weights."""
    heads = ["tokens", "forward, diffusers", "ours, dense", "ours, sparse", *(f"`{name}`" for name in OWN)]
    table = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, title in TITLES.items():
        line, own = lines[name, "denoising", "bf16"], {}
        for what in OWN:
            found = lines[name, "vidaccel", what]
            own[what] = found["kept_gb"] + found["scratch_gb"]
        numbers = [*line["activations_gb"].values(), *own.values()]
        cells = ["<0.01" if each < 0.005 else f"{each:.2f}" for each in numbers]
        table.append(f"| {title} | {line['tokens']:,} | {' | '.join(cells)} |")
    return table


def weights(lines: dict[Key, dict[str, Any]]) -> list[str]:
    """Weights by format, and the peak of denoising with `semantic` and `easycache`: bold where it fits."""
    table = ["| | weights | all on the GPU | by blocks | peak, all on the GPU | peak, by blocks |", "|---" * 6 + "|"]
    for (name, part, *rest), line in lines.items():
        if part != "denoising":
            continue
        peaks = []
        for where in (WHOLE, OFFLOADED):
            total = lines[(name, "total", *rest, "semantic", where)]
            peaks.append(f"**{total['denoising_gb']:.1f}**" if total["fits"] else f"{total['denoising_gb']:.1f}")
        cells = [line["format"], f"{line[WHOLE]:.1f}", f"{line[OFFLOADED]:.1f}", *peaks]
        table.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return table


def around(lines: dict[Key, dict[str, Any]]) -> list[str]:
    """What comes before and after denoising."""
    table = ["| | text encoders | VAE | decoding | decoding by tiles |", "|---" * 5 + "|"]
    for name, title in TITLES.items():
        plain, tiled = lines[name, "decoding", False], lines[name, "decoding", True]
        numbers = [lines[name, "text encoders"][WHOLE], plain[WHOLE], plain["activations_gb"], tiled["activations_gb"]]
        table.append(f"| {title} | {' | '.join(f'{each:.1f}' for each in numbers)} |")
    return table


def tables(lines: dict[Key, dict[str, Any]]) -> str:
    """All of the page, in GB."""
    parts = (
        ("What a forward takes, without weights:", work(lines)),
        ("What weights take, and the peak with them, the larger forward, `semantic` and `easycache`:", weights(lines)),
        ("What comes before and after it, in bfloat16:", around(lines)),
    )
    return "\n\n".join("\n".join([title, "", *table]) for title, table in parts)


def shown(page: str, lines: dict[Key, dict[str, Any]]) -> str:
    """A page with the tables between its markers."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{tables(lines)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(shown(PAGE.read_text(encoding="utf-8"), newest()), encoding="utf-8")
