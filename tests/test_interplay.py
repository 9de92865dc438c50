"""What users do to their transformers: compile, fuse, LoRA, casting, offload; each equal to the same without us."""

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from peft import LoraConfig

import vidaccel
from tests import tiny

SETTING = {
    "method": "radial",
    "decay": 0.0,
    "block": 16,
    "split": 16,
    "min_tokens": 0,
    "schedule": {"dense_first_steps": 1, "dense_first_layers": 0},
}


@pytest.fixture
def pipe():
    return tiny.tiny_wan()


def sparse(pipe):
    with vidaccel.enable(pipe, **SETTING):
        return tiny.generate(pipe)


def test_compiled_block_is_one_dense_and_one_sparse_graph_for_all_layers_and_steps(pipe):
    expected = sparse(pipe)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    for block in pipe.transformer.blocks:
        block.compile(fullgraph=True, backend=counter)
    with vidaccel.enable(pipe, **SETTING) as session:
        found = tiny.generate(pipe)
    assert counter.frame_count == 2
    assert session.summary().to_dict()["calls"] == {"sparse": 12, "dense": 4}
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_inductor_gives_the_same_video(pipe):
    expected = sparse(pipe)
    torch._dynamo.reset()
    for block in pipe.transformer.blocks:
        block.compile(fullgraph=True)
    np.testing.assert_allclose(sparse(pipe), expected, atol=2e-3)


def test_fused_projections(pipe):
    expected = sparse(pipe)
    pipe.transformer.fuse_qkv_projections()
    np.testing.assert_allclose(sparse(pipe), expected, atol=1e-4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_lora(pipe, when):
    plain = sparse(pipe)
    config = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    if when == "before":
        pipe.transformer.add_adapter(config)
        found = sparse(pipe)
    else:
        with vidaccel.enable(pipe, **SETTING):
            pipe.transformer.add_adapter(config)
            found = tiny.generate(pipe)
    assert not np.array_equal(found, plain)
    assert np.array_equal(found, sparse(pipe))


def test_layerwise_casting(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stock = tiny.generate(pipe)
    with vidaccel.enable(pipe, **SETTING | {"schedule": {"dense_first_steps": 1.0}}):
        assert np.array_equal(tiny.generate(pipe), stock)
    assert not np.array_equal(sparse(pipe), stock)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload(pipe, kind):
    expected = sparse(pipe)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type=kind, **options
    )
    assert np.array_equal(sparse(pipe), expected)


def test_model_offload_enabled_before_and_after(pipe):
    expected = sparse(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(sparse(pipe), expected)


def test_saving_keeps_nothing_of_ours(pipe, tmp_path):
    keys = set(pipe.transformer.state_dict())
    with vidaccel.enable(pipe, **SETTING):
        assert set(pipe.transformer.state_dict()) == keys
        pipe.transformer.save_pretrained(tmp_path)
    loaded = type(pipe.transformer).from_pretrained(tmp_path)
    assert type(loaded.blocks[0].attn1.processor) is type(pipe.transformer.blocks[0].attn1.processor)


def test_attention_backend_of_diffusers_is_passed_on(pipe):
    with vidaccel.enable(pipe, **SETTING):
        pipe.transformer.set_attention_backend("native")
        assert pipe.transformer.blocks[0].attn1.processor.inner._attention_backend is not None
        tiny.generate(pipe)
    pipe.transformer.reset_attention_backend()


def test_whole_transformer_compiled(pipe):
    expected = sparse(pipe)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    pipe.transformer.compile(fullgraph=True, backend=counter)
    with vidaccel.enable(pipe, **SETTING) as session:
        found = tiny.generate(pipe)
        assert np.array_equal(tiny.generate(pipe), expected)
    # Four steps of two guidance passes, the first step dense: one graph for dense calls, one for sparse ones.
    assert counter.frame_count == 2
    assert session.summary().to_dict()["calls"] == {"sparse": 12, "dense": 4}
    assert np.array_equal(found, expected)
