"""What a step cache does where attention turns sparse: with and without knowing of it.

    python benchmarks/caching_switch.py [--method radial] [--density 0.15] [--threshold 0.12]

On the Wan miniature, attention turns sparse at step 5 of 20, in all blocks or in all but the first, whose residual is
what the cache `first_block` goes by. Three tables, of the conditional pass:

- the signals of runs without a cache: from one step to the next, how much the first block's residual changes, which is
  the indicator, and how much that of the other blocks does, which is what would be reused;
- the same two between sparse and dense attention on the latents of the switch;
- the cache's decisions, once as it is ("after") and once without being told the regime of the attention ("before"),
  with the signal to noise of the final latents against the same run without a cache and against dense attention.

Appends a JSON line for each place of the sparse blocks to benchmarks/results/caching_switch.jsonl, with the means over
the first `--prompts` of the held-out prompts; what is printed of single decisions is the first prompt's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewer_steps import SEED, latents, snr
from masks import HERE, PROMPTS
from torch import Tensor

import vidaccel
from vidaccel.caching.changes import relative_change
from vidaccel.caching.log import COMPUTED, Decision
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.miniature import generation_defaults

RESULTS = HERE / "results" / "caching_switch.jsonl"
SWITCH, STEPS, WARMUP = 5, 20, 3
PLACES = {"all blocks": 0, "all but the first": 1}
"""Where attention is sparse, and how many blocks at the start stay dense."""
AROUND = range(SWITCH - 2, SWITCH + 3)
"""Steps that are shown."""
Signals = list[tuple[Tensor, Tensor]]


@contextlib.contextmanager
def signals(transformer: Any) -> Iterator[Signals]:
    """Fills with what the first block adds, and what all others do, for each conditional pass of a run."""
    made: Signals = []
    at: dict[str, Tensor] = {}
    passes = [0]

    def enter(_: Any, args: Any) -> None:
        at["entered"] = args[0]

    def leave(_: Any, __: Any, out: Tensor) -> None:
        at["first"] = out

    def end(_: Any, __: Any, out: Tensor) -> None:
        passes[0] += 1
        if passes[0] % 2:
            made.append((at["first"] - at["entered"], out - at["first"]))

    first, last = transformer.blocks[0], transformer.blocks[-1]
    hooks = [
        first.register_forward_pre_hook(enter),
        first.register_forward_hook(leave),
        last.register_forward_hook(end),
    ]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def changes(made: Signals) -> list[tuple[float, float]]:
    """Of both signals, from each step to the next."""
    return [(relative_change(now[0], then[0]).item(), relative_change(now[1], then[1]).item())
            for then, now in zip(made, made[1:], strict=False)]  # fmt: skip


def uninformed(session: Any) -> None:
    """Have the cache told of one regime throughout, as one is that knows nothing of sparse attention."""
    begin = session._runtime.begin

    def told(arrival: Any, *more: Any) -> None:
        begin(dataclasses.replace(arrival, regime=None), *more)

    session._runtime.begin = told


@dataclasses.dataclass
class Bench:
    """The miniature, and how it is run."""

    options: argparse.Namespace
    pipe: Any
    call: dict[str, Any]

    def sparse(self, dense_layers: int, cache: Any = None) -> Any:
        """A session whose attention is sparse from the switch on."""
        schedule = {"dense_first_steps": SWITCH, "dense_last_steps": 0, "dense_first_layers": dense_layers}
        return vidaccel.enable(self.pipe, self.options.method, density=self.options.density, block=self.options.block,
                               min_tokens=0, schedule=schedule, cache=cache)  # fmt: skip

    def run(self, prompt: str) -> Tensor:
        """Final latents."""
        return latents(self.pipe, prompt, **self.call)

    def watched(self, prompt: str) -> tuple[Tensor, Signals]:
        """The same with the signals; without a cache."""
        with signals(self.pipe.transformer) as made:
            return self.run(prompt), list(made)

    def cached(self, prompt: str, dense_layers: int, informed: bool) -> tuple[Tensor, list[Decision]]:
        """The same with the cache, and what it decided in the conditional pass."""
        # The budget that sparse attention shares is left out: only what the cache knows of the switch shall differ.
        cache = {"name": "first_block", "threshold": self.options.threshold, "first_steps": WARMUP, "sparse_share": 0,
                 "predictor": "hold"}  # fmt: skip
        with self.sparse(dense_layers, cache) as session:
            if not informed:
                uninformed(session)
            found = self.run(prompt)
            return found, [each for each in session._runtime.log.decisions if each.branch == "cond"]

    def one(self, prompt: str, dense_layers: int, dense: tuple[Tensor, Signals]) -> dict[str, Any]:
        """All that is measured with one prompt and one place of the sparse blocks."""
        with self.sparse(dense_layers):
            plain, made = self.watched(prompt)
        # Until the switch the runs are one, so that both have its latents.
        moved = [relative_change(sparse, stock).item()
                 for sparse, stock in zip(made[SWITCH], dense[1][SWITCH], strict=True)]  # fmt: skip
        found = {"changes": changes(made), "at_switch": dict(zip(("indicator", "reused"), moved, strict=True)),
                 "sparse_snr": snr(dense[0], plain)}  # fmt: skip
        for name, informed in (("before", False), ("after", True)):
            out, decisions = self.cached(prompt, dense_layers, informed)
            found[name] = {
                "decisions": "".join("C" if each.what == COMPUTED and not each.forced else each.what[0]
                                     for each in decisions),
                "indicators": [each.indicator for each in decisions], "switch": dataclasses.asdict(decisions[SWITCH]),
                "snr_sparse": snr(plain, out), "snr_dense": snr(dense[0], out),
            }  # fmt: skip
        return found


def row(*cells: Any) -> None:
    """Of a Markdown table."""
    print("| " + " | ".join(f"{each:.3f}" if isinstance(each, float) else str(each) for each in cells) + " |")


def head(*names: str) -> None:
    """Of a Markdown table, the first column words and the others figures."""
    row(*names)
    print("|---|" + "--:|" * (len(names) - 1))


def show(dense: Signals, runs: dict[str, dict[str, Any]]) -> None:
    """The tables of one prompt."""
    ways = {"dense throughout": changes(dense), **{place: run["changes"] for place, run in runs.items()}}
    for title, which in (("indicator", 0), ("other blocks' residual", 1)):
        print(f"\n{title}, change from the step before; attention turns sparse at step {SWITCH}")
        head("sparse", *(f"step {step}" for step in AROUND))
        for place, made in ways.items():
            row(place, *(made[step - 1][which] for step in AROUND))
    print(f"\nsparse against dense attention on the latents of step {SWITCH}")
    head("sparse", "indicator", "other blocks' residual")
    for place, run in runs.items():
        row(place, run["at_switch"]["indicator"], run["at_switch"]["reused"])
    print(f"\ndecisions: C by the indicator, c by the plan, r reused; the switch is the letter at {SWITCH}, from 0")
    head("sparse", "cache", "decisions", "indicator at the switch", "dB against no cache", "dB against dense")
    for place, run in runs.items():
        for name in ("before", "after"):
            each, found = run[name], run[name]["switch"]["indicator"]
            row(place, name, f"`{each['decisions']}`", "none" if found is None else found, each["snr_sparse"],
                each["snr_dense"])  # fmt: skip
        row(place, "none", "", "", "", run["sparse_snr"])


def record(options: argparse.Namespace, place: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one place of the sparse blocks: means over prompts, and each prompt's switch."""
    means = {name: {figure: round(statistics.mean(run[name][figure] for run in runs), 3)
                    for figure in ("snr_sparse", "snr_dense")} for name in ("before", "after")}  # fmt: skip
    at = [{name: round(number, 4) for name, number in run["at_switch"].items()} for run in runs]
    moved = [[[round(number, 4) for number in pair] for pair in run["changes"]] for run in runs]
    kept = {name: [{part: run[name][part] for part in ("decisions", "switch", "indicators")} for run in runs]
            for name in means}  # fmt: skip
    given = {name: getattr(options, name) for name in ("method", "density", "block", "threshold", "prompts")}
    return {"benchmark": "caching_switch", "family": "wan", "sparse": place, "switch": SWITCH, "steps": STEPS,
            "seed": SEED, **given, "sparse_snr_dense": round(statistics.mean(run["sparse_snr"] for run in runs), 3),
            "latent_snr": means, "at_switch": at, "changes": moved, "runs": kept}  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="radial", help="of sparse attention")
    parser.add_argument("--density", type=float, default=0.15)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--threshold", type=float, default=0.12, help="of first_block")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that lines go to")
    return parser.parse_args()


def main() -> None:
    """Run both places of the sparse blocks, print the first prompt's tables, and record."""
    options = parsed()
    pipe = vidaccel.load_miniature("wan")
    pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in generation_defaults("wan").items() if name not in ("fps", "prompt")}
    bench = Bench(options, pipe, {**call, "num_inference_steps": STEPS})
    runs: dict[str, list[dict[str, Any]]] = {place: [] for place in PLACES}
    for number, prompt in enumerate(PROMPTS.read_text(encoding="utf-8").splitlines()[: options.prompts]):
        dense = bench.watched(prompt)
        for place, layers in PLACES.items():
            runs[place].append(bench.one(prompt, layers, dense))
        if number == 0:
            show(dense[1], {place: made[0] for place, made in runs.items()})
    for place, made in runs.items():
        line = record(options, place, made)
        append_line(options.results, line | env.provenance())
        print(f"\n{place}, {options.prompts} prompts: dB {line['latent_snr']}; without a cache against dense "
              f"{line['sparse_snr_dense']}")  # fmt: skip


if __name__ == "__main__":
    main()
