"""examples/comfyui_node.py under a small model, patcher and sampler that call it as ComfyUI's do; see its docstring."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import vidaccel
from tests.test_tensors import head_profile
from vidaccel import AttentionPlan, BlockMask, TokenLayout
from vidaccel.methods import method
from vidaccel.site import Site

PATH = Path(__file__).resolve().parent.parent / "examples" / "comfyui_node.py"
GRID, HEADS, DIM, STEPS = TokenLayout(5, 4, 6), 2, 128, 4
OVERRIDE = "optimized_attention_override"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("comfyui_node", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def attention(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
    """What a host's function computes."""
    assert kwargs["_inside_attn_wrapper"]
    if not skip_reshape:
        q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=kwargs.get("scale"))
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def optimized_attention(*args: Any, **kwargs: Any) -> Tensor:
    """A host's function behind its dispatcher, which knows of the override."""
    kwargs["_inside_attn_wrapper"] = True
    override = (kwargs.get("transformer_options") or {}).get(OVERRIDE)
    return attention(*args, **kwargs) if override is None else override(attention, *args, **kwargs)


class Block(nn.Module):
    """Self-attention, then cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.mine = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))
        self.others = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
        q, k, v = (layer(x) for layer in self.mine)
        x = x + optimized_attention(q, k, v, heads=HEADS, transformer_options=options)
        q, k, v = (layer(each) for layer, each in zip(self.others, (x, text, text), strict=True))
        return x + optimized_attention(q, k, v, heads=HEADS, transformer_options=options)


class Model(nn.Module):
    """Three blocks; `control` has one that stands beside the second, and `reference` tokens before the grid's."""

    def __init__(self, control: bool = False, reference: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.control = Block() if control else None
        self.reference = reference

    def forward(self, x: Tensor, text: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        options = transformer_options
        options["grid_sizes"] = torch.Size((GRID.frames, GRID.height, GRID.width))
        options["total_blocks"], options["block_type"] = len(self.blocks), "double"
        x = torch.cat([x[:, : self.reference], x], dim=1)
        for index, block in enumerate(self.blocks):
            options["block_index"] = index
            x = block(x, text, options)
            if index == 1 and self.control is not None:
                x = x + self.control(x, text, options)
        return x[:, self.reference :]


class Patcher:
    """As much of a ``ModelPatcher`` as nodes use."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Callable[..., Any]]]] = {}

    def clone(self) -> Patcher:
        made = Patcher(self.model)
        made.model_options = {"transformer_options": dict(self.model_options["transformer_options"])}
        made.wrappers = {kind: {key: [*each] for key, each in of.items()} for kind, of in self.wrappers.items()}
        return made

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)


def sigmas(steps: int = STEPS) -> Tensor:
    return torch.linspace(1.0, 0.0, steps + 1)


def sample(patcher: Patcher, seed: int = 0, together: bool = True, schedule: Tensor | None = None,
           looks: Callable[[Tensor, int], list[Tensor]] | None = None, **more: Any) -> Tensor:  # fmt: skip
    """A sampling with guidance, both passes in one batch or one by one.

    Args:
        looks: the sigmas at which a step evaluates the model; its own by default.
    """
    schedule = sigmas() if schedule is None else schedule
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, GRID.tokens, DIM, generator=generator)
    texts = torch.randn(2, 7, DIM, generator=generator)

    def outer_sample(x: Tensor, schedule: Tensor) -> Tensor:
        for step in range(len(schedule) - 1):
            for sigma in looks(schedule, step) if looks else [schedule[step]]:
                timestep = sigma * torch.ones(1)
                both = [evaluate(x, timestep, schedule, passes) for passes in ([[1, 0]] if together else [[0], [1]])]
                uncond, cond = both[0].chunk(2) if together else both[::-1]
                x = x - (uncond + 3 * (cond - uncond)) * 0.05
        return x

    def evaluate(x: Tensor, timestep: Tensor, schedule: Tensor, passes: list[int]) -> Tensor:
        options = {**patcher.model_options["transformer_options"], "sample_sigmas": schedule, "sigmas": timestep,
                   "cond_or_uncond": passes, "uuids": [f"uuid{index}" for index in passes], **more}  # fmt: skip
        return patcher.model(x.repeat(len(passes), 1, 1), texts[passes], transformer_options=options)

    run: Callable[..., Any] = outer_sample
    for wrapper in patcher.wrappers.get("outer_sample", {}).get("vidaccel", []):
        run = functools.partial(wrapper, run)
    with torch.inference_mode():
        return run(x, schedule)


@dataclass(frozen=True)
class Recorder(vidaccel.Method):
    """Keeps all, and writes down where it was asked."""

    name: ClassVar[str] = "recorder"
    log: list = field(default_factory=list)

    def plan(self, query, key, value, site, state):
        self.log.append(dataclasses.replace(site))
        assert query.shape[1:] == (GRID.tokens, HEADS, DIM // HEADS)
        return AttentionPlan(BlockMask.full(GRID.tokens, GRID.tokens, 16, 16))


def patched(example, model: Patcher, chosen: Any = "radial", first_steps: float = 0.25, layers: int = 1, **more: Any):
    """The model behind the node; grids of a test are too short for the cost model, and for blocks of 128."""
    offered = chosen if isinstance(chosen, str) else "radial"
    (made,) = example.VidaccelSparseAttention().patch(model, offered, 0.6, first_steps, layers)
    setting = override_of(made).setting
    setting |= {"min_tokens": 0, **({"block": 16} if isinstance(chosen, str) else {"method": chosen}), **more}
    if not isinstance(chosen, str):
        del setting["density"]
    return made


@pytest.fixture
def model() -> Patcher:
    return Patcher(Model().eval())


def override_of(patcher: Patcher) -> Any:
    return patcher.model_options["transformer_options"][OVERRIDE]


@pytest.mark.parametrize("together", [True, False])
def test_masks_where_the_schedule_is_sparse_and_stock_elsewhere(example, model, together):
    plan = method("radial", "wan", block=16, density=0.6).plan(None, None, None, Site(0, 1, 0, 4, "", "", GRID), {})
    keep = plan.mask.to_dense()
    assert 0.4 < keep.float().mean() < 0.8

    def expected(func, *args, mask=None, **kwargs):
        options = kwargs["transformer_options"]
        own = args[0].shape == args[1].shape
        sparse = own and options["sigmas"] < 1 and options["block_index"] >= 1
        return func(*args, mask=keep if sparse else mask, **kwargs)

    by_hand = model.clone()
    by_hand.model_options["transformer_options"][OVERRIDE] = expected
    stock = sample(model, together=together)
    out = sample(patched(example, model), together=together)
    torch.testing.assert_close(out, sample(by_hand, together=together), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, stock, rtol=1e-3, atol=1e-3)
    assert torch.equal(sample(patched(example, model, layers=3), together=together), stock)
    assert model.model_options == {"transformer_options": {}} and not model.wrappers


@pytest.mark.parametrize("together", [True, False])
def test_every_call_has_its_place(example, model, together):
    recorder = Recorder()
    sample(patched(example, model, recorder), together=together)
    passes = ["uncond+cond uuid1 uuid0"] if together else ["cond uuid0", "uncond uuid1"]
    assert recorder.log == [
        Site(layer, 3, step, STEPS, name, "transformer", GRID)
        for step in range(1, STEPS)
        for name in passes
        for layer in (1, 2)
    ]


def test_samplers_that_look_between_steps(example, model):
    """Between two sigmas it is the step before; at the next one it is the next. Noise added again starts anew."""
    recorder = Recorder()
    made = patched(example, model, recorder, first_steps=0.0, layers=2)

    def looks(schedule, step):
        return [schedule[step], (schedule[step] + schedule[step + 1]) / 2, schedule[step + 1]]

    sample(made, looks=looks)
    assert [site.step for site in recorder.log] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    recorder.log.clear()
    sample(made, looks=lambda schedule, step: [schedule[1] * 1.02] if step == 3 else [schedule[step]])
    assert [site.step for site in recorder.log] == [0, 1, 2, 0] and override_of(made).state.runs == 3


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("split_out", [False, True])
@pytest.mark.parametrize("step", [0, 2])
def test_every_shape_that_is_asked_for(example, model, split, split_out, step):
    override = override_of(patched(example, model))
    q, k, v = (torch.randn(2, GRID.tokens, DIM) for _ in range(3))
    options = {"grid_sizes": (5, 4, 6), "block_index": 1, "total_blocks": 3, "sample_sigmas": sigmas(),
               "sigmas": sigmas()[step : step + 1]}  # fmt: skip
    given = {"_inside_attn_wrapper": True}
    with torch.inference_mode():
        plain = override(attention, q, k, v, HEADS, transformer_options=dict(options), **given)
        if split:
            q, k, v = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in (q, k, v))
        out = override(attention, q, k, v, HEADS, None, skip_reshape=split, skip_output_reshape=split_out,
                       transformer_options=dict(options), **given)  # fmt: skip
    assert plain.shape == (2, GRID.tokens, DIM)
    assert torch.equal(out.transpose(1, 2).flatten(2) if split_out else out, plain)
    assert override.state.summary().to_dict()["calls"] == {"sparse": 2 * (step > 0), "dense": 2 * (step == 0)}


@pytest.mark.parametrize("given", [{"mask": torch.zeros(120, 120)}, {"scale": 0.1}, {"enable_gqa": True}], ids=str)
def test_what_is_not_plain_self_attention_is_left_alone(example, model, given):
    override = override_of(patched(example, model, first_steps=0.0, layers=0))
    q, k, v = (torch.randn(1, GRID.tokens, DIM) for _ in range(3))
    with torch.inference_mode():
        out = override(attention, q, k, v, HEADS, transformer_options={}, _inside_attn_wrapper=True, **given)
        assert torch.equal(out, attention(q, k, v, HEADS, _inside_attn_wrapper=True, **given))
    assert override.state.runs == 0


def test_control_blocks_and_an_override_that_was_there(example):
    seen = []

    def earlier(func, *args, **kwargs):
        seen.append((args[0].shape == args[1].shape, kwargs["transformer_options"]["block_index"]))
        return func(*args, **kwargs)

    model = Patcher(Model(control=True).eval())
    model.model_options["transformer_options"][OVERRIDE] = earlier
    recorder = Recorder()
    sample(patched(example, model, recorder))
    assert [site.layer for site in recorder.log] == [1, 2] * 3
    # In the first step all are dense; later the first layer and the control block, which is called block 1 too.
    assert seen.count((True, 0)) == STEPS and seen.count((True, 1)) == 2 + 3 and seen.count((True, 2)) == 1
    assert sum(not own for own, _ in seen) == 4 * STEPS


def test_generations_are_alike_and_told_of(example, model, caplog):
    made = patched(example, model, "draft", refresh=2)
    with caplog.at_level(logging.INFO):
        first = sample(made)
    assert "draft(" in caplog.text and "4 steps, 6 sparse calls, 6 dense" in caplog.text
    assert not override_of(made).state._calls.state
    assert not torch.equal(sample(made, seed=1), first) and torch.equal(sample(made), first)
    assert torch.equal(sample(patched(example, model, "draft", refresh=2)), first)


def test_windows_of_a_longer_clip_have_memories_of_their_own(example, model):
    @dataclass
    class Window:
        index_list: list[int]

    recorder = Recorder()
    sample(patched(example, model, recorder), context_window=Window([8, 9, 10]))
    assert {site.branch for site in recorder.log} == {"uncond+cond uuid1 uuid0 from 8"}


def test_a_profile_says_all(example, model, tmp_path):
    path = tmp_path / "made.json"
    head_profile(layers=3).save(path)
    (made,) = example.VidaccelSparseAttention().patch(model, "radial", 0.1, 0.0, 0, profile=str(path))
    sample(made)
    summary = override_of(made).state.summary()
    assert summary.method == "head_profile" and summary.to_dict()["dense_calls"] == {"in first steps": 3}
    head_profile(layers=2).save(path)
    (made,) = example.VidaccelSparseAttention().patch(model, "radial", 0.1, 0.0, 0, profile=str(path))
    with pytest.raises(ValueError, match="2 layers of 2 heads for transformer, the call says 3 of 2"):
        sample(made)


def test_models_that_it_is_not_for(example, model, caplog):
    with pytest.raises(ValueError, match="120 .* 130|130 .* 120"):
        sample(patched(example, Patcher(Model(reference=10).eval())))
    override = override_of(patched(example, model))
    q = torch.randn(1, GRID.tokens, DIM)
    with pytest.raises(ValueError, match="without grid_sizes, total_blocks, sample_sigmas in transformer_options"):
        override(attention, q, q, q, HEADS, transformer_options={"block_index": 0, "sigmas": torch.ones(1)})
    made = patched(example, Patcher(nn.Identity()))
    made.model.forward = lambda x, *args, **kwargs: x
    sample(made)
    assert "no self-attention of this sampling came to the node" in caplog.text


def test_what_comfyui_reads_of_the_node(example):
    node = example.NODE_CLASS_MAPPINGS["VidaccelSparseAttention"]
    inputs = node.INPUT_TYPES()
    assert node.RETURN_TYPES == ("MODEL",) and hasattr(node, node.FUNCTION)
    assert set(example.NODE_DISPLAY_NAME_MAPPINGS) == set(example.NODE_CLASS_MAPPINGS)
    offered, default = inputs["required"]["method"]
    assert {"radial", "semantic", "draft", "svg"} <= set(offered) and default["default"] in offered
    for name in offered:
        assert vidaccel.METHODS[name].for_family("wan", density=0.5).density == 0.5
