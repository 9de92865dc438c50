"""Dense generations with fewer steps, against dense ones with all: the baseline of docs/dynamic-masks.md.

    python benchmarks/fewer_steps.py FAMILY --steps 7 8 10 13

Sparse attention that keeps a share s of all calls' pairs (`all_calls` in records) does the attention work of ``20 s``
dense steps, and more work elsewhere. Appends a JSON line for each number of steps to
benchmarks/results/fewer_steps.jsonl: the mean signal to noise of the final latents, in dB, over the first `--prompts`
of the held-out prompts.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from masks import FAMILIES, HERE, PROMPTS

import vidaccel
from vidaccel.eval import env
from vidaccel.eval.record import append_line
from vidaccel.miniature import generation_defaults

RESULTS = HERE / "results" / "fewer_steps.jsonl"
SEED = 0


def latents(pipe: object, prompt: str, **call: object) -> torch.Tensor:
    """The final latents of one generation, fp64."""
    noise = torch.Generator().manual_seed(SEED)
    made: torch.Tensor = pipe(prompt=prompt, generator=noise, output_type="latent", **call).frames  # type: ignore[operator]
    return made.double()


def snr(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Signal to noise in dB."""
    return float(10 * (reference.square().sum() / (reference - found).square().sum()).log10())


def main() -> None:
    """Measure one family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--prompts", type=int, default=4)
    options = parser.parse_args()
    pipe = vidaccel.load_miniature(options.family)
    pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in generation_defaults(options.family).items() if name not in ("fps", "prompt")}
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()[: options.prompts]
    whole = [latents(pipe, prompt, **call) for prompt in prompts]
    for steps in options.steps:
        found = [latents(pipe, prompt, **call | {"num_inference_steps": steps}) for prompt in prompts]
        each = [round(snr(*pair), 2) for pair in zip(whole, found, strict=True)]
        mean = round(statistics.mean(each), 2)
        line = {"benchmark": "fewer_steps", "family": options.family, "steps": steps, "seed": SEED,
                "of": call["num_inference_steps"], "latent_snr": mean, "each": each}  # fmt: skip
        append_line(RESULTS, line | env.provenance())
        print(line, flush=True)


if __name__ == "__main__":
    main()
