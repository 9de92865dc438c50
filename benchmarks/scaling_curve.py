"""Predicted steps on 1 to 64 GPUs: ``python benchmarks/scaling_curve.py`` draws docs/images/parallel-scaling.png.

Wan 2.1 14B and HunyuanVideo at 720p on H100s in nodes of eight, dense and by `radial` at density 0.25, each number of
GPUs shared in the way that takes the least time. Prints the table of docs/parallel.md. Nothing here is measured.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from vidaccel.eval.sizes import ModelSize
from vidaccel.scale import Assumed, Degrees, Dense, Machine, Prediction, choices, predict
from vidaccel.scale.attention import Attention
from vidaccel.scale.chosen import attention_of, model_size

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "parallel-scaling.png"
MODELS = {"wan2.1-t2v-14b": "Wan 2.1 14B, 720p, 81 frames", "hunyuanvideo": "HunyuanVideo, 720p, 129 frames"}
MOST, SHOWN = 64, (1, 2, 4, 8, 16, 24, 32, 48, 64)
DENSITY = 0.25
COLOURS = {"dense": "#c2571a", "sparse": "#2f6ea5"}
MACHINE = Machine.of("h100", None, "infiniband", 8, Assumed())


def best(size: ModelSize, gpus: int, attention: Attention) -> list[Prediction]:
    """The quickest way for exactly so many GPUs to share a step; none where there is no way."""
    able, _ = choices(size, gpus, attention.no_ring)
    found = [predict(size, degrees, MACHINE, attention) for degrees in able]
    return sorted(found, key=lambda each: each.seconds)[:1]


def curves(size: ModelSize) -> dict[str, list[Prediction]]:
    """Dense and sparse: the quickest ways for at most 1, 2, ... GPUs."""
    kinds = {"dense": Dense(), "sparse": attention_of("radial", size, {"density": DENSITY})}
    found: dict[str, list[Prediction]] = {}
    for kind, attention in kinds.items():
        row: list[Prediction] = []
        for gpus in range(1, MOST + 1):
            row.append(min(row[-1:] + best(size, gpus, attention), key=lambda each: each.seconds))
        found[kind] = row
    return found


def picture(drawn: dict[str, dict[str, list[Prediction]]]) -> Figure:
    """Seconds of a step against GPUs, both in powers of two."""
    figure = Figure(figsize=(8.4, 3.3), dpi=80, layout="constrained")
    for axis, (model, rows) in zip(figure.subplots(1, 2, sharey=True), drawn.items(), strict=True):
        for kind, row in rows.items():
            gpus, seconds = range(1, MOST + 1), [each.seconds for each in row]
            axis.step(gpus, seconds, where="post", color=COLOURS[kind], label=kind)
            axis.plot(gpus, [seconds[0] / each for each in gpus], ":", color=COLOURS[kind], linewidth=1,
                      label=f"{kind}, one GPU's time divided")  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
        axis.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16], ["0.25", "0.5", "1", "2", "4", "8", "16"])
        axis.set_title(MODELS[model], fontsize=9)
        axis.set_xlabel("GPUs at most", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds of a step, predicted", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def row(gpus: int, rows: dict[str, list[Prediction]]) -> str:
    """A line of a Markdown table."""
    cells = [str(gpus)]
    for found in rows.values():
        one, at = found[0], found[gpus - 1]
        used = f", uses {at.degrees.gpus}" if at.degrees.gpus < gpus else ""
        cells += [f"{at.seconds:.2f} s", f"{one.seconds / at.seconds:.1f}x", f"{_words(at.degrees)}{used}"]
    return f"| {' | '.join(cells)} |"


def _words(degrees: Degrees) -> str:
    parts = {"guidance": degrees.guidance, "ring": degrees.ring, "Ulysses": degrees.ulysses}
    return " x ".join(f"{name} {count}" for name, count in parts.items() if count > 1) or "-"


def main() -> None:
    """Predict, print and draw."""
    from PIL import Image

    drawn = {name: curves(model_size(name, None)) for name in MODELS}
    for name, rows in drawn.items():
        print(f"\n{MODELS[name]}\n\n| GPUs | dense | | shared | density {DENSITY} | | shared |\n|{'---|' * 7}")
        print("\n".join(row(gpus, rows) for gpus in SHOWN))
    buffer = io.BytesIO()
    picture(drawn).savefig(buffer, format="png", facecolor="white")
    PICTURE.parent.mkdir(exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
