"""Step caches side by side on a miniature: diffusers' own, cache-dit's and vidaccel's.

    pip install --no-deps --target DIR cache-dit==1.5.3
    python benchmarks/caching_peers.py FAMILY --work WORK [--cache-dit DIR]

Every peer runs at several settings on the first held-out prompts, and its final latents are compared with those of the
run without a cache from the same noise: signal to noise in dB. What it saves is counted, not timed: `computed_share` is
the work of what ran inside the transformer's blocks, in matrix products and attention, as a share of the uncached
run's; `block_share` counts executions of blocks. Both are counted inside the blocks' forwards, below the hooks of a
peer that leaves a block out. `seconds` are those of the transformer calls.

A line for each run goes to WORK/FAMILY.jsonl, and what is there is not run again; a peer that refuses or fails has its
reason there. Then a table is printed, with the best signal to noise at shares of 0.5 and 0.67, interpolated between a
peer's settings, and a line for each peer goes to benchmarks/results/caching_peers.jsonl; ``--report`` does only that.
cache-dit runs in a process of its own, the only one that has DIR in its path. The settings of a peer are compared on
the prompts that they are reported for.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fewer_steps import SEED, latents
from masks import FAMILIES, HERE, PROMPTS
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

import vidaccel
from vidaccel.eval import env
from vidaccel.eval.metrics.latents import latent_snr
from vidaccel.eval.record import append_line
from vidaccel.miniature import generation_defaults
from vidaccel.pipelines import family_of

RESULTS = HERE / "results" / "caching_peers.jsonl"
TUNING = HERE / "prompts" / "calibration.txt"
BUDGETS = (0.5, 0.67)
ATTENTION = r"(blocks|transformer_blocks|single_transformer_blocks)\.\d+\.attn\d?"
FEED_FORWARD = r"(blocks|transformer_blocks|single_transformer_blocks)\.\d+\.(ff|ffn|ff_context|proj_mlp|proj_out)"
"""diffusers' own patterns match no module of Wan and CogVideoX, whose attention is called attn1 and attn2."""
Options = dict[str, Any]
TAYLORSEER: Options = {"config": "TaylorSeerCacheConfig", "max_order": 1}
Enter = Callable[[Any, Options, int], contextlib.AbstractContextManager[Any]]
# torch knows the work of the GPU's attention, not of the CPU's.
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
                 lambda query, key, value, *_, **__: sdpa_flop(query, key, value)}  # fmt: skip


@contextlib.contextmanager
def by_diffusers(pipe: Any, options: Options, steps: int) -> Iterator[None]:
    """One of diffusers' caches: `config` names its class, the rest are its fields."""
    import diffusers

    given = dict(options)
    kind = given.pop("config")
    if kind == "MagCacheConfig":
        given |= {"num_inference_steps": steps, "mag_ratios": ratios(pipe, steps)}
    if kind == "TaylorSeerCacheConfig":
        # The default, bfloat16, would round what a model in fp32 computes.
        given["taylor_factors_dtype"] = torch.float32
    pipe.transformer.enable_cache(getattr(diffusers, kind)(**given))
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@functools.cache
def _printed_ratios(family: str, steps: int) -> tuple[float, ...]:
    """Of the first guidance pass, as diffusers prints them after a run."""
    from diffusers import MagCacheConfig

    pipe, call = loaded(family), arguments(family, steps)
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=steps))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        latents(pipe, TUNING.read_text(encoding="utf-8").splitlines()[0], **call)
    first = next(line for line in printed.getvalue().splitlines() if line.startswith("[") and "MagCache" not in line)
    return tuple(json.loads(first))


def ratios(pipe: Any, steps: int) -> list[float]:
    """MagCache's ratios for the model, by its own calibration on a prompt that is not held out."""
    return list(_printed_ratios(family_of(pipe.transformer).name, steps))


@contextlib.contextmanager
def by_cache_dit(pipe: Any, options: Options, steps: int) -> Iterator[None]:
    """cache-dit's DBCache; `taylorseer` adds its calibrator, of that order."""
    import cache_dit

    given = dict(options)
    order = given.pop("taylorseer", None)
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(num_inference_steps=steps, **given),
                           calibrator_config=calibrator)  # fmt: skip
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)


def by_vidaccel(pipe: Any, options: Options, steps: int) -> contextlib.AbstractContextManager[Any]:
    """One of vidaccel's, on dense attention."""
    given = dict(options)
    if (kept := given.pop("every", None)) is not None:
        first = given.pop("first", steps // 4)
        given["compute"] = sorted({*range(first), *range(first + kept - 1, steps, kept)})
    if "computed_steps" in given:
        given["file"] = f"miniature:{family_of(pipe.transformer).name}/cache-{steps}.json"
    session: contextlib.AbstractContextManager[Any] = vidaccel.enable(pipe, None, cache=given)
    return session


def by_steps(pipe: Any, options: Options, steps: int) -> contextlib.AbstractContextManager[None]:
    """No cache, but fewer steps, see `measure`."""
    return contextlib.nullcontext()


def _each(fixed: Options, name: str, values: Any) -> list[Options]:
    return [{**fixed, name: value} for value in values]


def _dit(first: int, last: int, thresholds: Any, **more: Any) -> list[Options]:
    # Its own 8 steps of warming up would leave little of 20.
    fixed = {"Fn_compute_blocks": first, "Bn_compute_blocks": last, "max_warmup_steps": 3, **more}
    return _each(fixed, "residual_diff_threshold", thresholds)


def _taylorseer(intervals: Any, **more: Any) -> list[Options]:
    # Once with a later start, for between what intervals can: they are whole.
    later = {**TAYLORSEER, **more, "cache_interval": 2, "disable_cache_before_step": 7}
    return [*_each({**TAYLORSEER, **more}, "cache_interval", intervals), later]


KEY = ("peer", "options", "prompt", "steps", "seed")
PEERS: dict[str, tuple[Enter, list[Options]]] = {
    "fewer steps, no cache": (by_steps, _each({}, "of_steps", (0.5, 0.65, 0.8))),
    "diffusers FirstBlockCache": (by_diffusers, _each({"config": "FirstBlockCacheConfig"}, "threshold",
                                                      (0.1, 0.15, 0.25, 0.4))),
    "diffusers MagCache": (by_diffusers, _each({"config": "MagCacheConfig"}, "threshold",
                                             (0.01, 0.02, 0.03, 0.06, 0.12))),
    "diffusers SeaCache": (by_diffusers, _each({"config": "SeaCacheConfig"}, "threshold",
                                             (0.15, 0.2, 0.25, 0.4, 0.6))),
    "diffusers TaylorSeer, as shipped": (by_diffusers, [{**TAYLORSEER, "cache_interval": 3}]),
    "diffusers TaylorSeer, lite": (by_diffusers, _taylorseer((2, 3), use_lite_mode=True)),
    "diffusers TaylorSeer, attention": (by_diffusers, _taylorseer((2, 4), cache_identifiers=[ATTENTION])),
    "diffusers TaylorSeer, attention and feed-forward": (
        by_diffusers, _taylorseer((2, 3, 4), cache_identifiers=[ATTENTION, FEED_FORWARD])),
    "cache-dit DBCache F1B0": (by_cache_dit, _dit(1, 0, (0.12, 0.16, 0.2, 0.35, 0.7))),
    "cache-dit DBCache F1B0, TaylorSeer": (by_cache_dit, _dit(1, 0, (0.12, 0.16, 0.2, 0.35, 0.7), taylorseer=1)),
    "cache-dit DBCache F2B0": (by_cache_dit, _dit(2, 0, (0.2, 0.35, 0.7))),
    "cache-dit DBCache F1B1": (by_cache_dit, _dit(1, 1, (0.2, 0.35, 0.7))),
    "cache-dit DBCache F8B0, its default": (by_cache_dit, _dit(8, 0, (0.08,))),
    "vidaccel easycache, hold": (by_vidaccel, _each({"name": "easycache", "predictor": "hold"}, "threshold",
                                                    (0.05, 0.1, 0.2))),
    "vidaccel easycache": (by_vidaccel, _each({"name": "easycache"}, "threshold", (0.05, 0.08, 0.1, 0.13))),
    "vidaccel first_block": (by_vidaccel, _each({"name": "first_block", "first_steps": 3}, "threshold",
                                                (0.12, 0.16, 0.2, 0.35, 0.7))),
    "vidaccel static, by hand, hold": (by_vidaccel, _each({"name": "static", "predictor": "hold"}, "every", (2, 3, 4))),
    "vidaccel static, by hand": (by_vidaccel, [
        *_each({"name": "static"}, "every", (2, 3, 4)),
        # The steps of TaylorSeer's later start.
        {"name": "static", "first": 7, "every": 2},
    ]),
    # A share of steps that is asked for, with what the miniature brings along.
    "vidaccel static, calibrated": (by_vidaccel, _each({"name": "static"}, "computed_steps", (0.4, 0.5, 0.66))),
}  # fmt: skip


def loaded(family: str) -> Any:
    """A miniature of its own for each run of settings, so that nothing of one peer is left for another."""
    pipe = vidaccel.load_miniature(family)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(family: str, steps: int) -> dict[str, Any]:
    """Of the pipeline's call."""
    defaults = {name: value for name, value in generation_defaults(family).items() if name not in ("fps", "prompt")}
    return {**defaults, "num_inference_steps": steps}


class Work:
    """What runs inside the blocks of a transformer, counted under whatever a peer puts around them."""

    def __init__(self, transformer: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.seconds = 0.0
        self.blocks = [f"{stack}.{index}" for stack in family_of(transformer).stacks
                       for index in range(len(getattr(transformer, stack)))]  # fmt: skip
        self.parts = {block: [f"{block}.{name}" for name, _ in transformer.get_submodule(block).named_children()]
                      for block in self.blocks}  # fmt: skip
        for path in (*self.blocks, *(part for parts in self.parts.values() for part in parts)):
            module = transformer.get_submodule(path)
            module.forward = self._counted(path, module.forward)

    def _counted(self, path: str, forward: Any) -> Any:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[path] += 1
            return forward(*args, **kwargs)

        return call

    @contextlib.contextmanager
    def during(self, transformer: Any) -> Iterator[None]:
        """Count and time from nothing; after a peer has come, so that what it does in hooks is timed, too."""
        self.calls.clear()
        self.seconds, begun = 0.0, [0.0]

        def begin(*_: Any) -> None:
            begun[0] = time.perf_counter()

        def end(*_: Any) -> None:
            self.seconds += time.perf_counter() - begun[0]

        hooks = [transformer.register_forward_pre_hook(begin, prepend=True), transformer.register_forward_hook(end)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def executed(self) -> int:
        """Executions of blocks."""
        return sum(self.calls[block] for block in self.blocks)

    def total(self, costs: dict[str, float]) -> float:
        """Work in all, from the `costs` of one execution: of a block, what its parts leave of it."""
        return sum(count * costs[path] for path, count in self.calls.items())


def costs(family: str) -> tuple[dict[str, float], int]:
    """Work of one execution of each block without its parts and of each part, and transformer calls in a step."""
    pipe = loaded(family)
    work = Work(pipe.transformer)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, work.during(pipe.transformer):
        latents(pipe, "a red circle", **arguments(family, 2))
    name, counted = type(pipe.transformer).__name__, counter.get_flop_counts()
    flops = {path: sum(counted.get(f"{name}.{path}", {}).values()) / max(1, work.calls[path])
             for path in (*work.blocks, *(part for parts in work.parts.values() for part in parts))}  # fmt: skip
    own = {block: flops[block] - sum(flops[part] for part in work.parts[block] if work.calls[part])
           for block in work.blocks}  # fmt: skip
    return {**flops, **own}, work.calls[work.blocks[0]] // 2


def reference(folder: Path, family: str, prompt: int, steps: int) -> np.ndarray:
    """Latents without a cache; made once."""
    file = folder / f"{family}-{steps}-{prompt}.npy"
    if not file.exists():
        np.save(file, latents(loaded(family), prompts()[prompt], **arguments(family, steps)).numpy())
    made: np.ndarray = np.load(file)
    return made


def prompts() -> list[str]:
    """The held-out ones."""
    return PROMPTS.read_text(encoding="utf-8").splitlines()


def measure(folder: Path, family: str, key: Options, enter: Enter, whole: tuple[dict[str, float], int]) -> Options:
    """One run; a peer that cannot has the reason under "failed"."""
    expected = reference(folder, family, key["prompt"], key["steps"])
    own, calls = whole
    pipe = loaded(family)
    work = Work(pipe.transformer)
    call = arguments(family, round(key["steps"] * key["options"].get("of_steps", 1)))
    try:
        with enter(pipe, key["options"], key["steps"]), work.during(pipe.transformer):
            found = latents(pipe, prompts()[key["prompt"]], **call).numpy()
    except Exception as error:
        return {**key, "failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]}
    uncached, blocks = calls * key["steps"], len(work.blocks)
    once = sum(own[path] for path in own)
    snr, same = latent_snr(expected, found).value, bool((expected == found).all())
    return {**key, "computed_share": round(work.total(own) / (once * uncached), 4),
            "block_share": round(work.executed() / (blocks * uncached), 4), "seconds": round(work.seconds, 3),
            "latent_snr": None if snr is None else round(snr, 3), "identical": same}  # fmt: skip


def run(options: argparse.Namespace, peers: dict[str, tuple[Enter, list[Options]]]) -> None:
    """Run what is missing of some peers."""
    file, whole = options.work / f"{options.family}.jsonl", costs(options.family)
    known = [{name: line[name] for name in KEY} for line in read(file)]
    for peer, (enter, settings) in peers.items():
        for setting, prompt in ((setting, prompt) for setting in settings for prompt in range(options.prompts)):
            key = {"peer": peer, "options": setting, "prompt": prompt, "steps": options.steps, "seed": SEED}
            if key not in known:
                line = measure(options.work, options.family, key, enter, whole)
                append_line(file, line)
                print(json.dumps(line), flush=True)


def read(file: Path) -> list[Options]:
    """Lines of a file; none where there is none."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def points(lines: list[Options]) -> list[tuple[float, float]]:
    """(computed share, dB), a mean over prompts for each setting; those of no error have no dB, and are left out."""
    by_setting: dict[str, list[Options]] = {}
    for line in lines:
        by_setting.setdefault(json.dumps(line["options"]), []).append(line)
    usable = [each for each in by_setting.values() if all(line.get("latent_snr") is not None for line in each)]
    return sorted((statistics.mean(line["computed_share"] for line in each),
                   statistics.mean(line["latent_snr"] for line in each)) for each in usable)  # fmt: skip


def best_at(found: list[tuple[float, float]], budget: float) -> float | None:
    """The best signal to noise at a share of at most `budget`: of a setting, or between two; None if none is so low."""
    within = [snr for share, snr in found if share <= budget]
    between = [low[1] + (high[1] - low[1]) * (budget - low[0]) / (high[0] - low[0])
               for low, high in itertools.pairwise(found) if low[0] <= budget < high[0]]  # fmt: skip
    return max(within + between, default=None) if within else None


def verdict(lines: list[Options]) -> str:
    """What there is to say of a peer beside its numbers."""
    failed = [line["failed"] for line in lines if "failed" in line]
    if len(failed) == len(lines):
        return f"fails: {failed[0]}"
    ran = [line for line in lines if "failed" not in line]
    words = [f"fails in {len(failed)} of {len(lines)} runs: {failed[0]}"] if failed else []
    if all(line["identical"] for line in ran):
        words.append("leaves nothing out at any setting")
    elif min(line["computed_share"] for line in ran) > BUDGETS[-1]:
        words.append("every setting computes more")
    return "; ".join(words)


def report(options: argparse.Namespace) -> None:
    """Print the table of all that was run with so many steps, and record it."""
    lines = [line for line in read(options.work / f"{options.family}.jsonl") if line["steps"] == options.steps]
    lines = [line for line in lines if line["prompt"] < options.prompts]
    print("| peer | settings | computed share | " + " | ".join(f"dB at {each}" for each in BUDGETS) + " | |")
    print("|---|--:|--:|" + "--:|" * len(BUDGETS) + "---|")
    for peer in dict.fromkeys(line["peer"] for line in lines):
        own = [line for line in lines if line["peer"] == peer]
        found, words = points(own), verdict(own)
        settings = [json.loads(each) for each in dict.fromkeys(json.dumps(line["options"]) for line in own)]
        best = {str(budget): best_at(found, budget) for budget in BUDGETS}
        figures = " | ".join("–" if each is None else f"{each:.1f}" for each in best.values())
        shares = f"{found[0][0]:.2f} to {found[-1][0]:.2f}" if found else "–"
        print(f"| {peer} | {len(settings)} | {shares} | {figures} | {words} |")
        append_line(options.results, {
            "benchmark": "caching_peers", "family": options.family, "peer": peer, "seed": SEED, "steps": options.steps,
            "prompts": options.prompts, "latent_snr_at": best, "words": words, "settings": settings,
            "points": [[round(number, 4) for number in each] for each in found],
            "cache_dit": version(options.cache_dit), **env.provenance(),
        })  # fmt: skip


def version(folder: Path | None) -> str | None:
    """Of the cache-dit in a folder."""
    found = importlib.metadata.distributions(name="cache-dit", path=[str(folder)]) if folder else ()
    return next((each.version for each in found), None)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs' lines and latents")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peers", nargs="+", help="names, or beginnings of them; all by default")
    parser.add_argument("--cache-dit", type=Path, help="folder that it was installed to")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that the report's lines go to")
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, then report."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    peers = {peer: each for peer, each in PEERS.items() if peer.startswith(tuple(options.peers or ("",)))}
    theirs = {peer: each for peer, each in peers.items() if each[0] is by_cache_dit}
    inside = importlib.util.find_spec("cache_dit") is not None
    if not options.report:
        run(options, theirs if inside else {peer: peers[peer] for peer in peers if peer not in theirs})
    if inside:
        return
    if theirs and options.cache_dit and not options.report:
        path = os.pathsep.join(filter(None, (str(options.cache_dit), os.environ.get("PYTHONPATH"))))
        quiet = {"PYTHONPATH": path, "CACHE_DIT_LOG_LEVEL": "error"}
        subprocess.run([sys.executable, *sys.argv], env={**os.environ, **quiet}, check=True)
    elif theirs and not options.report:
        print("cache-dit is left out: give the folder that it was installed to as --cache-dit", file=sys.stderr)
    report(options)


if __name__ == "__main__":
    main()
