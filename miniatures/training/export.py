"""Put what was trained together as a diffusers folder, and draw a grid of samples to look at.

python miniatures/training/export.py --family wan --work RUN --grid samples.png
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from common import WEIGHTS, load_state
from diffusers import DiffusionPipeline
from families import FAMILIES, Family
from families.base import SMALL
from safetensors.torch import load_file
from samples import grid, vae_folder

from vidaccel_miniatures import PROMPTS

# What `enable_sparse_attention()` does on these models: 16-token blocks give their 1,521 tokens as many blocks
# as a real model has.
PROFILE = {
    "format": 1, "method": "radial", "options": {"block": 16}, "min_tokens": 0,
    "source": "16-token blocks, in proportion to the token grid; of the settings tried, the fastest on a CPU",
}  # fmt: skip


def assemble(family: Family, work: Path) -> tuple[Any, dict[str, Any]]:
    """The pipeline of RUN in float16, parts that were not trained there as committed, and the facts of its training."""
    committed = WEIGHTS / family.name
    facts = json.loads((committed / "training.json").read_text()) if (committed / "training.json").exists() else {}
    transformer = family.build_transformer()
    if (found := load_state(work, "dit_average")) is not None:
        transformer.load_state_dict({**transformer.state_dict(), **found[0]})
        facts["transformer"] = [*(facts.get("transformer", []) if found[1]["continued"] else []), found[1]]
    elif (committed / "transformer").exists():
        weights = load_file(committed / "transformer" / "diffusion_pytorch_model.safetensors")
        transformer.load_state_dict({name: p.float() for name, p in weights.items()})
    else:
        raise SystemExit(f"no trained transformer in {work}: run train.py first")
    folder = vae_folder(family, work)
    if folder.parent == work:
        facts["autoencoder"] = json.loads((work / "vae_facts.json").read_text())
    pipeline = family.pipeline(family.load_vae(folder), transformer)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.half()
    return pipeline, facts


def forget_folders(folder: Path) -> None:
    """Take out of the configs where on this machine a part came from."""
    for config in folder.glob("*/config.json"):
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")


def rename_tokenizers(folder: Path) -> None:
    """Name the tokenizers' class as transformers 4 and 5 both know it; 5 alone writes `TokenizersBackend`."""
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    for name in [name for name in content if name.startswith("tokenizer")]:
        content[name] = ["transformers", "PreTrainedTokenizerFast"]
        config = folder / name / "tokenizer_config.json"
        settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        kept = {key: value for key, value in settings.items() if key not in ("backend", "is_local")}
        config.write_text(json.dumps(kept, indent=2) + "\n")
    index.write_text(json.dumps(content, indent=2) + "\n")


def export(family: Family, work: Path, target: Path) -> None:
    """Write the folder beside `target`, then swap it in."""
    pipeline, facts = assemble(family, work)
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    rename_tokenizers(fresh)
    forget_folders(fresh)
    for name, content in (("generation", family.defaults), ("vidaccel", PROFILE), ("training", facts)):
        (fresh / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target.name}: {size / 1e6:.1f} MB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--work", type=Path, help="the folder the training wrote to; without it nothing is exported")
    parser.add_argument("--target", type=Path, help="the folder to write; the committed weights by default")
    parser.add_argument("--grid", type=Path, help="write a picture of samples here")
    parser.add_argument("--small", action="store_true", help="sample at the smaller trained size")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, help="instead of the family's own")
    parser.add_argument("--prompt", action="append", help="instead of the demo prompts; may be repeated")
    options = parser.parse_args()
    family = FAMILIES[options.family]
    target = options.target or WEIGHTS / family.name
    if options.work:
        export(family, options.work / family.name, target)
    if options.grid:
        pipeline = DiffusionPipeline.from_pretrained(target, torch_dtype=torch.float32, local_files_only=True)
        arguments = {**family.defaults, "num_inference_steps": options.steps}
        arguments |= {"guidance_scale": options.guidance} if options.guidance is not None else {}
        arguments |= {"height": SMALL[0], "width": SMALL[1]} if options.small else {}
        grid(pipeline, arguments, options.grid, tuple(options.prompt or PROMPTS))


if __name__ == "__main__":
    main()
