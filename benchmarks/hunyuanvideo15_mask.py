"""Memory of one HunyuanVideo 1.5 attention call, stock and ours dense: ``python benchmarks/hunyuanvideo15_mask.py``.

diffusers' processor makes a mask of all queries by all keys in each layer; ours hides keys by their number. One real
attention module with few heads runs once; each case in a process of its own, so that its peak of resident memory is its
own. The tokens end in 1,985 text tokens, most of them padding, as real prompts leave it. Also computes what the mask
takes at 720p with 121 frames. Appends JSON lines to benchmarks/results/hunyuanvideo15_mask.jsonl.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "hunyuanvideo15_mask.jsonl"
CASES = ("stock", "dense")
SEED, HEADS, HEAD_DIM, TEXT, VALID = 0, 2, 64, 1985, 300
REAL = {"frames": 31, "height": 45, "width": 80}
"""Grid of 720x1280 with 121 frames."""
GIB = 2**30


def measure(case: str, tokens: int) -> dict:
    """Of one call: MiB of memory beyond what inputs and model had taken, and seconds."""
    import time

    import torch
    from diffusers import HunyuanVideo15Transformer3DModel

    from vidaccel.kernels import op
    from vidaccel.pipelines.hunyuanvideo15 import HunyuanVideo15Processor
    from vidaccel.pipelines.processor import Mode

    class Nobody:
        def attend(self, *given: object) -> None:
            raise AssertionError("a dense call asks nobody")

    torch.manual_seed(SEED)
    model = HunyuanVideo15Transformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, num_layers=1, num_refiner_layers=1, mlp_ratio=1.0,
        rope_axes_dim=(24, 20, 20),
    ).eval()  # fmt: skip
    attn = model.transformer_blocks[0].attn
    nobody = Nobody()
    if case == "dense":
        processor = HunyuanVideo15Processor(attn.processor, op.handle(nobody))
        processor.mode = Mode.DENSE
        attn.processor = processor

    def call(video: int) -> float:
        states, text = (torch.randn(1, length, HEADS * HEAD_DIM) for length in (video, TEXT))
        angles = torch.rand(video, HEAD_DIM)
        mask = torch.arange(TEXT)[None] < VALID
        start = time.perf_counter()
        with torch.no_grad():
            attn(states, text, attention_mask=mask, image_rotary_emb=(angles.cos(), angles.sin()))
        return time.perf_counter() - start

    call(64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = call(tokens - TEXT)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"benchmark": "hunyuanvideo15_mask", "case": case, "tokens": tokens, "text": TEXT, "valid_text": VALID,
            "heads": HEADS, "head_dim": HEAD_DIM, "dtype": "float32", "seed": SEED, "extra_mib": extra,
            "seconds": seconds}  # fmt: skip


def computed() -> dict:
    """GiB of one stock mask at 720p with 121 frames, by arithmetic; it makes two, and torch an additive one of them."""
    tokens = REAL["frames"] * REAL["height"] * REAL["width"] + TEXT
    return {"benchmark": "hunyuanvideo15_mask", "case": "computed", "tokens": tokens, "stock_bool_gib": tokens**2 / GIB,
            "stock_additive_bf16_gib": 2 * tokens**2 / GIB, "dense_bool_gib": tokens / GIB}  # fmt: skip


def main() -> None:
    """Measure both cases and record them, with what follows for real sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--tokens", type=int, default=20_000)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.tokens)))
        return
    from vidaccel.eval import env
    from vidaccel.eval.record import append_line

    where = env.provenance()
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--tokens", str(options.tokens)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        line = json.loads(run.stdout.splitlines()[-1]) | where
        append_line(RESULTS, line)
        print(case, line["tokens"], f"{line['extra_mib']:.0f} MiB, {line['seconds']:.1f} s")
    append_line(RESULTS, computed() | where)
    print(json.dumps(computed()))


if __name__ == "__main__":
    main()
