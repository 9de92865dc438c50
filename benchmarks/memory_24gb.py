"""Memory of Wan 2.1 14B and HunyuanVideo, counted: ``python benchmarks/memory_24gb.py``; see docs/24gb.md.

Real classes at their published sizes run on the "meta" device, where tensors have shapes and no contents. What counts
is every tensor that an operation makes, as long as it lives. An attention call makes its output and nothing else, as
flash kernels and those of vidaccel do. Not counted: the CUDA context, what cuDNN and cuBLAS take inside a call, and
memory that the allocator cannot use in between. Weights are those of the real quantised tensors. GB is 10^9 bytes.
Appends JSON lines to benchmarks/results/memory_24gb.jsonl. It needs torchao: `make` has it in .venv/torchao, for
``PYTHONPATH``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.live import Live  # noqa: E402
from vidaccel import caching  # noqa: E402
from vidaccel.bench.models import MODELS, Model  # noqa: E402
from vidaccel.caching.base import Place  # noqa: E402
from vidaccel.kernels import op  # noqa: E402
from vidaccel.layout import TokenLayout  # noqa: E402
from vidaccel.methods import Method, method  # noqa: E402
from vidaccel.methods.semantic import Semantic  # noqa: E402
from vidaccel.pipelines import family_of  # noqa: E402
from vidaccel.pipelines.base import Call  # noqa: E402
from vidaccel.pipelines.processor import Mode  # noqa: E402
from vidaccel.plan import AttentionPlan  # noqa: E402
from vidaccel.site import Site  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "memory_24gb.jsonl"
GB, META, DTYPE = 1e9, torch.device("meta"), torch.bfloat16
FORMATS = ("bf16", "int8", "Q8_0", "Q4_K")
CARD = 24.0
"""GB to fill of a card of 24 GiB, which are 25.8 GB: the rest is for what is not counted."""
_named = {model.name: model for model in MODELS}
SIZES = (
    dataclasses.replace(_named["wan-14b-720p"], name="wan-14b-480p", latents=(16, 21, 60, 104)),
    _named["wan-14b-720p"],
    dataclasses.replace(_named["hunyuanvideo-720p"], name="hunyuanvideo-544p", latents=(16, 33, 68, 120)),
    _named["hunyuanvideo-720p"],
)
"""480x832 and 720x1280 with 81 frames, 544x960 and 720x1280 with 129."""
CACHES = ("easycache", "first_block")


class Flash(TorchFunctionMode):
    """Attention that makes its output and the log-sum-exp of each row, and no matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query: Tensor = args[0] if args else kwargs["query"]
        torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        return torch.empty_like(query)


def stored(value: Tensor) -> int:
    """Bytes of a tensor, also of one that torchao made of several."""
    if hasattr(value, "__tensor_flatten__"):
        return sum(stored(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()


def size(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(stored(each) for each in (*module.parameters(), *module.buffers()))


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """Blocks in the order in which they run."""
    return family_of(transformer).blocks(transformer)


def quantise(transformer: nn.Module, form: str) -> nn.Module:
    """A transformer whose linear layers have weights of a format, in place; weights of GGUF are without contents.

    With "int8" these are all linear layers, as `TorchAoConfig` has it, and with GGUF those of blocks, as in usual
    files, where a row is of whole blocks of numbers. All else stays what it is.
    """
    wide = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    linear = {name: each for name, each in transformer.named_modules()
              if isinstance(each, nn.Linear) and not wide & set(name.split("."))}  # fmt: skip
    if form == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(transformer, Int8WeightOnlyConfig(), lambda _, name: name in linear)
    elif form != "bf16":
        stacks = tuple(f"{name}." for name in family_of(transformer).stacks)
        _gguf(transformer, {name: each for name, each in linear.items() if name.startswith(stacks)}, form)
    return transformer


def _gguf(transformer: nn.Module, linear: dict[str, nn.Linear], form: str) -> None:
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, GGUFParameter, _replace_with_gguf_linear
    from gguf import GGMLQuantizationType

    kind = GGMLQuantizationType[form]
    numbers, taken = GGML_QUANT_SIZES[kind]
    made = {
        f"{name}.weight": GGUFParameter(
            torch.empty(each.out_features, each.in_features // numbers * taken, dtype=torch.uint8, device=META),
            quant_type=kind,
        )
        for name, each in linear.items() if each.in_features % numbers == 0
    }  # fmt: skip
    bias = {name: each.bias for name, each in linear.items()}
    _replace_with_gguf_linear(transformer, DTYPE, made)
    for name, weight in made.items():
        layer = transformer.get_submodule(name.removesuffix(".weight"))
        layer._parameters.update(weight=weight, bias=bias[name.removesuffix(".weight")])


def weights(transformer: nn.Module) -> dict[str, float]:
    """GB of all weights, and of those on the GPU at once where blocks are offloaded one by one with a stream: two
    neighbouring blocks, one at work and one on its way, and all that is in no block."""
    sizes = [size(block) for block in blocks_of(transformer)]
    whole, pair = size(transformer), max(map(sum, zip(sizes, sizes[1:], strict=False)))
    return {"weights_gb": whole / GB, "offloaded_gb": (whole - sum(sizes) + pair) / GB}


def most(call: Any) -> float:
    """GB of the most that a call holds at once."""
    with Live() as live, Flash(), torch.no_grad():
        call()
    return live.most / GB


def inputs(model: Model) -> dict[str, Tensor]:
    """Arguments of a forward, without contents."""
    return {name: each.to(META) for name, each in model.call(torch.device("cpu"), DTYPE, 0).items()}


def layout_of(model: Model, transformer: nn.Module) -> TokenLayout:
    """Tokens of a forward, text included."""
    return family_of(transformer).layout(transformer, Call((), inputs(model)))


def plan_of(chosen: Method, layout: TokenLayout, layers: int) -> AttentionPlan:
    """A static method's one plan."""
    return chosen.plan(None, None, None, Site(layers // 2, layers, 30, 50, "cond", "transformer", layout), {})


def activations(model: Model, transformer: nn.Module) -> Iterator[tuple[str, float]]:
    """GB of one forward by who attends: diffusers, ours in a dense step, and ours by a static plan."""
    call = inputs(model)
    yield "stock", most(lambda: transformer(**call))
    family = family_of(transformer)
    sites: list[Any] = family.sites(transformer)
    plan = plan_of(method("radial", family.name), layout_of(model, transformer), len(sites)).to(META)
    # The session's handle is not asked: how each layer attends is known.
    handle = torch.zeros(1, dtype=torch.int64)
    for mode in (Mode.DENSE, Mode.STATIC):
        for site in sites:
            stock = getattr(site.processor, "inner", site.processor)
            site.processor = family.processor(stock, handle)
            site.processor.mode, site.processor.plan, site.processor.backend = mode, op.arguments(plan), "triton"
        yield mode.value, most(lambda: transformer(**call))


def kept(cache: Any, transformer: nn.Module, layout: TokenLayout, latents: int, passes: int) -> int:
    """Bytes that a cache keeps.

    Args:
        cache: as `vidaccel.enable` takes it.
        latents: bytes of the latents of one forward.
        passes: of a step.
    """
    made, family, blocks = caching.cache(cache), family_of(transformer), len(blocks_of(transformer))
    per = latents
    if made.place is Place.STACK:
        heads, head_dim = family.heads(transformer)
        tokens = layout.tokens if len(family.streams) > 1 else layout.video_tokens
        per = tokens * heads * head_dim * DTYPE.itemsize * len(made.policy.segments(blocks))
    return per * made.predictor.tensors * passes


def own(model: Model, transformer: nn.Module) -> Iterator[dict[str, Any]]:
    """What vidaccel keeps besides a forward's tensors: of a static plan, of `semantic`, of caches."""
    layout, family = layout_of(model, transformer), family_of(transformer)
    layers, (heads, head_dim) = len(family.sites(transformer)), family.heads(transformer)
    mask = plan_of(method("radial", family.name), layout, layers).mask
    assert mask is not None
    yield {"what": "radial", "kept_gb": mask.nbytes / GB, "scratch_gb": 0.0}
    memory = method("semantic", family.name)
    assert isinstance(memory, Semantic)
    taken = memory.memory(layout, heads, head_dim)
    # Centroids are all passes' own together, and plans each one's.
    state = sum(each * (model.passes if name == "plans" else 1) for name, each in taken.state.items())
    yield {"what": "semantic", "kept_gb": layers * state / GB, "scratch_gb": taken.scratch / GB}
    latents = stored(inputs(model)["hidden_states"])
    for name in CACHES:
        yield {"what": name, "kept_gb": kept(name, transformer, layout, latents, model.passes) / GB, "scratch_gb": 0.0}


def decoding(model: Model) -> Iterator[dict[str, Any]]:
    """GB of the VAE and of decoding a whole clip by it, in bfloat16."""
    import diffusers

    cls = diffusers.AutoencoderKLWan if model.transformer.startswith("Wan") else diffusers.AutoencoderKLHunyuanVideo
    for tiled in (False, True):
        with META:
            vae = cls().eval()
        vae.to(DTYPE)
        if tiled:
            vae.enable_tiling()
        latents = torch.empty((1, *model.latents), dtype=DTYPE, device=META)
        found = most(lambda vae=vae, latents=latents: vae.decode(latents))
        yield {"tiled": tiled, "weights_gb": size(vae) / GB, "activations_gb": found}


def text_encoders(model: Model) -> float:
    """GB of a pipeline's text encoders in bfloat16, of their published configurations."""
    import transformers as hf

    if model.transformer.startswith("Wan"):
        umt5 = hf.UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                             feed_forward_proj="gated-gelu")  # fmt: skip
        build = [lambda: hf.UMT5EncoderModel(umt5)]
    else:
        llama = hf.LlamaConfig(vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                               num_attention_heads=32, num_key_value_heads=8)  # fmt: skip
        clip = hf.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        build = [lambda: hf.LlamaModel(llama), lambda: hf.CLIPTextModel(clip)]
    with META:
        return sum(size(each().to(DTYPE)) for each in build) / GB


def lines(model: Model) -> Iterator[dict[str, Any]]:
    """All that is counted of a model at a size, and whether each way to keep its weights fits."""
    forms: dict[str, dict[str, Any]] = {}
    for form in FORMATS:
        transformer = quantise(model.build(META, DTYPE), form)
        forms[form] = {**weights(transformer), "activations_gb": dict(activations(model, transformer))}
        yield {"part": "denoising", "format": form, "tokens": layout_of(model, transformer).tokens, **forms[form]}
    plain = model.build(META, DTYPE)
    extra = list(own(model, plain))
    yield from ({"part": "vidaccel", **each} for each in extra)
    text, decoded = text_encoders(model), list(decoding(model))
    yield from ({"part": "decoding", **each} for each in decoded)
    yield {"part": "text encoders", "weights_gb": text}
    for what in ("radial", "semantic"):
        added = sum(each["kept_gb"] + each["scratch_gb"] for each in extra if each["what"] in (what, "easycache"))
        for form, found in forms.items():
            work = max(found["activations_gb"].values()) + added
            for where in ("weights_gb", "offloaded_gb"):
                yield {"part": "total", "format": form, "method": what, "cache": "easycache", "weights": where,
                       "denoising_gb": found[where] + work, "fits": found[where] + work <= CARD}  # fmt: skip


def main() -> None:
    """Count everything and record it; names of sizes on the command line choose some."""
    from vidaccel.eval import env
    from vidaccel.eval.record import append_line

    names = [model.name for model in SIZES]
    if unknown := set(sys.argv[1:]) - set(names):
        raise SystemExit(f"unknown size {sorted(unknown)}; choose {', '.join(names)}")
    where = env.provenance()
    for model in SIZES:
        if not sys.argv[1:] or model.name in sys.argv[1:]:
            for line in lines(model):
                append_line(RESULTS, {"benchmark": "memory_24gb", "model": model.name, **line} | where)
                print(model.name, line, flush=True)


if __name__ == "__main__":
    main()
