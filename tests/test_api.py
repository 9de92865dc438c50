"""What cannot be done is said in one line, before anything changes."""

from types import SimpleNamespace

import pytest
from diffusers import DiffusionPipeline, UNet2DModel

import vidaccel
from tests import tiny
from vidaccel.profile import Profile


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_wan()


def refused(target, *args, **options):
    with pytest.raises(ValueError) as caught:
        vidaccel.enable(target, *args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_methods_of_every_pipeline_class():
    assert DiffusionPipeline.enable_sparse_attention is vidaccel.enable
    from diffusers import ModularPipeline

    assert ModularPipeline.disable_sparse_attention is vidaccel.disable


def test_unknown_things_are_named_with_what_is_allowed(pipe):
    assert "'radical'" in refused(pipe, "radical") and "radial" in refused(pipe, "radical")
    assert "'sparsity'" in refused(pipe, "radial", sparsity=0.5) and "density" in refused(pipe, "radial", sparsity=0.5)
    assert "'cuda'" in refused(pipe, backend="cuda") and "reference" in refused(pipe, backend="cuda")
    assert "1.5" in refused(pipe, density=1.5)
    assert "min_tokens=-1" in refused(pipe, min_tokens=-1)
    assert "'warmup'" in refused(pipe, schedule={"warmup": 3})
    assert "no profile" in refused(pipe, "absent.json")
    assert "neither a name" in refused(pipe, 7)
    assert "go with a method's name" in refused(pipe, vidaccel.METHODS["radial"](), density=0.5)
    assert not hasattr(pipe.transformer, "_vidaccel_session")


def test_unsupported_models(pipe):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(32,), **blocks)
    assert "UNet2DModel" in refused(unet) and "WanTransformer3DModel" in refused(unet)
    assert "object" in refused(object())


def test_backend_that_cannot_run(pipe):
    assert "triton" in refused(pipe, backend="triton")
    assert "triton" in refused(tiny.tiny_wan(), backend="triton", block=16)


def test_foreign_processor_is_refused_and_everything_put_back(pipe):
    class Other:
        pass

    blocks = pipe.transformer.blocks
    stock = [block.attn1.processor for block in blocks]
    blocks[1].attn1.processor = Other()
    try:
        assert "Other" in refused(pipe, "radial")
        assert blocks[0].attn1.processor is stock[0]
    finally:
        blocks[1].attn1.processor = stock[1]


def test_profile_sets_everything_and_options_override(pipe, tmp_path):
    profile = Profile("radial", {"decay": 0.5, "block": 32}, {"dense_first_steps": 3}, 77)
    profile.save(tmp_path / "p.json")
    for given in (profile, str(tmp_path / "p.json"), tmp_path / "p.json"):
        with vidaccel.enable(pipe, given, block=16) as session:
            assert session.setting.method == vidaccel.METHODS["radial"](decay=0.5, block=16)
            assert session.setting.min_tokens == 77
            assert session.setting.schedule == vidaccel.Schedule(dense_first_steps=3)


def test_a_density_replaces_a_profiles_decay(pipe):
    with vidaccel.enable(pipe, Profile("radial", {"decay": 0.5, "block": 32}), density=0.4) as session:
        assert session.setting.method == vidaccel.METHODS["radial"](density=0.4, block=32)


def test_bare_call_takes_radial_with_the_familys_defaults_and_i2v_its_own_schedule(pipe):
    with vidaccel.enable(pipe) as session:
        assert session.setting.method == vidaccel.METHODS["radial"](decay=0.2)
        assert session.setting.schedule.dense_first_steps == 0.25
    for image in (tiny.tiny_wan(image=True, clip=True), tiny.tiny_wan(image=True, expand_timesteps=True)):
        with vidaccel.enable(image) as session:
            assert session.setting.schedule.dense_first_steps == 0.35


def test_the_stock_processors_hear_of_a_split_while_enabled(pipe):
    stock, config = pipe.transformer.blocks[0].attn1.processor, object()
    with vidaccel.enable(pipe):
        processor = pipe.transformer.blocks[0].attn1.processor
        assert processor is not stock
        processor._parallel_config = config
    assert stock._parallel_config is config


def test_a_split_by_weights_is_refused(pipe):
    pipe.transformer._parallel_config = SimpleNamespace(context_parallel_config=None, tensor_parallel_config=object())
    vidaccel.enable(pipe)
    with pytest.raises(ValueError, match="tensor parallelism"):
        tiny.generate(pipe)
