"""The recipe of docs/24gb.md, each piece and all together, on tiny real pipelines; and what its benchmark counts.

Group offloading is from the CPU to the CPU here, without a stream, which needs a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vidaccel
from tests import tiny
from tests.pipelines.cases import DENSE, METHODS, SPARSE
from tests.pipelines.cases import frames as hunyuan_frames
from vidaccel.caching import memory as cache_memory
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.torchao
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")
TILE = {"tile_sample_min_height": 32, "tile_sample_min_width": 32, "tile_sample_stride_height": 24,
        "tile_sample_stride_width": 24}  # fmt: skip
"""Several tiles of a clip of 64x96."""
EVERY = {"name": "static", "compute": [0, 1, 2, 3], "min_steps": 1, "predictor": "hold"}
HALF = {**EVERY, "compute": [0, 2]}
ORIGINAL = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1", "self_attn": "attn1", "cross_attn": "attn2",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2", ".o.": ".to_out.0.", ".q.": ".to_q.",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1", ".k.": ".to_k.", ".v.": ".to_v.",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
    "time_projection.1": "condition_embedder.time_proj", "head.head": "proj_out", "modulation": "scale_shift_table",
    "norm_swapped": "norm2", "norm2": "norm3", "norm3": "norm_swapped",
}  # fmt: skip
CASES = [("wan", "Q8_0"), ("wan", "Q4_K"), ("wan", "int8"), ("hunyuanvideo", "Q8_0"), ("hunyuanvideo", "int8")]


def pipeline(family: str) -> Any:
    """Tiny, with rows of 256 weights where Q4_K has blocks of so many."""
    return tiny.tiny_wan(heads=4) if family == "wan" else tiny.tiny_hunyuanvideo()


def frames(pipe: Any) -> np.ndarray:
    """Of one call, always the same."""
    if "Wan" in type(pipe).__name__:
        return tiny.generate(pipe)
    return hunyuan_frames(pipe, prompt_template={"template": "{}", "crop_start": 0})


def raw(weight: np.ndarray, form: str) -> np.ndarray:
    """Weights as bytes of a GGUF format; of Q4_K, which the gguf package only reads, some valid ones."""
    if form == "Q8_0":
        return gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)  # type: ignore[no-any-return]
    generator = np.random.default_rng(weight.size)
    blocks = generator.integers(0, 256, (weight.size // 256, 144), dtype=np.uint8)
    # Of each block the scale of its scales and that of its minima, in fp16: values come out below 0.1.
    blocks[:, :4] = np.array([1e-4, 5e-4], np.float16).view(np.uint8)
    return blocks.reshape(len(weight), -1)


def form_of(name: str, layer: Any, form: str, stacks: tuple[str, ...]) -> str | None:
    """The format of a linear layer's weight in a file, None for fp32."""
    if not isinstance(layer, nn.Linear) or not name.startswith(stacks):
        return None
    return form if layer.in_features % (256 if form == "Q4_K" else 32) == 0 else None


def original(name: str) -> str:
    """The name in Wan's own checkpoints, which its GGUF files have, of a weight in diffusers."""
    for theirs, ours in ORIGINAL.items():
        name = name.replace(ours, theirs)
    return "head.modulation" if name == "modulation" else name


def gguf_file(transformer: nn.Module, folder: Path, form: str) -> Path:
    """A file with the linear layers of the blocks quantised; HunyuanVideo's under diffusers' own names.

    diffusers converts the original names of HunyuanVideo for its full size alone.
    """
    stacks = tuple(f"{name}." for name in family_of(transformer).stacks)
    writer, modules = gguf.GGUFWriter(folder / "model.gguf", "test"), dict(transformer.named_modules())
    for name, value in transformer.state_dict().items():
        layer, _, kind = name.rpartition(".")
        chosen = form_of(layer, modules[layer], form, stacks) if kind == "weight" else None
        array = np.ascontiguousarray(value.float().numpy())
        name = original(name) if "Wan" in type(transformer).__name__ else name
        if chosen is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, raw(array, chosen), raw_dtype=gguf.GGMLQuantizationType[chosen])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def quantised(transformer: Any, folder: Path, form: str) -> Any:
    """The same transformer loaded anew in a format, as the recipe loads it."""
    from diffusers import GGUFQuantizationConfig, TorchAoConfig

    transformer.save_pretrained(folder)
    if form == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
        return type(transformer).from_pretrained(folder, quantization_config=config, torch_dtype=torch.float32)
    return type(transformer).from_single_file(
        str(gguf_file(transformer, folder, form)), config=str(folder), torch_dtype=torch.float32,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip


def assembled(family: str, form: str, folder: Path) -> Any:
    """A pipeline with a quantised transformer and a VAE that decodes by tiles."""
    pipe = pipeline(family)
    pipe.transformer = quantised(pipe.transformer, folder, form).eval()
    pipe.vae.enable_tiling(**TILE)
    return pipe


def offload(pipe: Any) -> None:
    """Block by block; parts that have no list of blocks go as a whole."""
    pipe.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)
    blocks = family_of(pipe.transformer).blocks(pipe.transformer)
    assert all(block._diffusers_hook.get_hook("group_offloading") is not None for block in blocks)


def linears(transformer: nn.Module) -> list[str]:
    """Kinds of the weights that the self-attention multiplies by."""
    sites: list[Any] = family_of(transformer).sites(transformer)
    return [type(layer.weight).__name__ for site in sites for layer in (site.to_q, site.to_k, site.to_v)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "form"), CASES)
def test_the_recipe_is_stock_where_dense_and_undone_exactly(family: str, form: str, tmp_path: Path) -> None:
    """Quantised weights, group offloading, tiles, sparse attention and a cache: the order of the last two is free."""
    pipe = assembled(family, form, tmp_path)
    expected = "Int8Tensor" if form == "int8" else "GGUFParameter"
    assert set(linears(pipe.transformer)) == {expected}
    plain = frames(pipe)
    with vidaccel.enable(pipe, **DENSE, cache=EVERY):
        offload(pipe)
        assert np.array_equal(frames(pipe), plain)
    assert set(linears(pipe.transformer)) == {expected}
    with vidaccel.enable(pipe, **DENSE, cache=EVERY) as session:
        assert np.array_equal(frames(pipe), plain)
    assert session.summary().to_dict()["calls"]["sparse"] == 0
    given = {**SPARSE, **METHODS["radial"]}
    with vidaccel.enable(pipe, "radial", **given, cache=HALF) as session:
        fast = frames(pipe)
    told = session.summary().to_dict()
    assert np.isfinite(fast).all() and not np.array_equal(fast, plain)
    assert told["calls"]["dense"] == 0 and told["density"]["video_density"] < 1
    assert told["cache"]["computed_share"] == 0.5
    assert np.array_equal(frames(pipe), plain)


@pytest.mark.parametrize(("family", "form"), [("wan", "Q8_0"), ("hunyuanvideo", "int8")])
@pytest.mark.parametrize("method", ["radial", "semantic"])
def test_offloading_and_sparse_attention_in_either_order(family: str, form: str, method: str, tmp_path: Path) -> None:
    given = {**SPARSE, **(METHODS["radial"] if method == "radial" else {"density": 0.4}), "cache": HALF}
    pipe = assembled(family, form, tmp_path)
    with vidaccel.enable(pipe, method, **given):
        alone = frames(pipe)
        offload(pipe)
        assert np.array_equal(frames(pipe), alone)
    with vidaccel.enable(pipe, method, **given):
        assert np.array_equal(frames(pipe), alone)


@pytest.mark.parametrize("family", ["wan", "hunyuanvideo"])
def test_the_vae_decodes_by_tiles(family: str) -> None:
    """So that the recipe's tiles are none in name only."""
    pipe = pipeline(family)
    whole = frames(pipe)
    pipe.vae.enable_tiling(**TILE)
    assert not np.array_equal(frames(pipe), whole)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory_24gb

    yield memory_24gb
    for name in ("memory_24gb", "memory_24gb_page"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_counted_weights_are_those_of_real_files(family: str, form: str, tmp_path: Path, counting: Any) -> None:
    transformer = pipeline(family).transformer
    counted = counting.quantise(type(transformer).from_config(transformer.config).to("meta"), form)
    assert counting.size(counted) == counting.size(quantised(transformer, tmp_path, form))
    found = counting.weights(counted)
    # As few blocks as these have are a pair; a model of one more holds no more of them at once.
    assert found["offloaded_gb"] == pytest.approx(found["weights_gb"])
    more = type(transformer).from_config({**transformer.config, "num_layers": 3}).to("meta")
    more = counting.weights(counting.quantise(more, form))
    assert more["weights_gb"] > found["weights_gb"] and more["offloaded_gb"] <= found["offloaded_gb"] * 1.3


@pytest.mark.parametrize(
    "cache", [{"name": "easycache"}, {"name": "first_block"}, {"name": "easycache", "reuse": "stack"}], ids=str
)
@pytest.mark.parametrize("family", ["wan", "hunyuanvideo"])
def test_counted_caches_are_what_a_cache_asks_for(
    family: str, cache: dict[str, Any], counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, asked, seen = pipeline(family), [], []
    transformer = pipe.transformer.to(torch.bfloat16)
    monkeypatch.setattr(cache_memory, "check", lambda needed, *_: asked.append(needed))
    transformer.register_forward_pre_hook(lambda _, args, call: seen.append(Call(args, call)), with_kwargs=True)
    with vidaccel.enable(pipe, None, cache={**cache, "min_steps": 1}):
        frames(pipe)
    layout, latents = family_of(transformer).layout(transformer, seen[0]), seen[0].get("hidden_states", 0)
    assert len(asked) == (2 if family == "wan" else 1)
    assert counting.kept(cache, transformer, layout, counting.stored(latents), len(asked)) == sum(asked)


def test_the_page_shows_what_was_counted(counting: Any) -> None:
    """`python benchmarks/memory_24gb_page.py` writes its tables anew."""
    import memory_24gb_page as made

    lines = made.newest()
    page = made.PAGE.read_text(encoding="utf-8")
    assert made.shown(page, lines) == page and made.tables(lines) in page
    for model in counting.SIZES[1::2]:
        found = counting.weights(counting.quantise(model.build(counting.META, counting.DTYPE), "Q4_K"))
        recorded = lines[model.name, "denoising", "Q4_K"]
        assert found == {name: recorded[name] for name in found}, "count anew: python benchmarks/memory_24gb.py"
