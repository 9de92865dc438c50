"""One clip over several processes by Ulysses: every method and every class makes the clip of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vidaccel
from tests import tiny
from tests.parallel import cases
from tests.parallel.world import World
from tests.pipelines.models import models
from tests.pipelines.settings import setting
from tests.pipelines.support import first_variants
from vidaccel.methods import METHODS
from vidaccel.pipelines import family_of

TOLERANCE = 1e-5
SPARSE: dict[str, Any] = {"min_tokens": 0, "schedule": {"dense_first_steps": 0, "dense_first_layers": 0},
                          "num_inference_steps": 4}  # fmt: skip
STEPS = 2
WAN, HUNYUAN, COG = "WanTransformer3DModel", "HunyuanVideoTransformer3DModel, text", "CogVideoXTransformer3DModel"
CLASSES = (WAN, HUNYUAN, COG)
DENSE = "dense"
FURTHER = {"centroid": {"compensation": "centroid"}, "residual": {"compensation": "residual"},
           "int8": {"precision": "int8", "backend": "reference"}}  # fmt: skip


def build(name: str, heads: int) -> nn.Module:
    """A tiny transformer with so many heads."""
    if name == WAN:
        torch.manual_seed(1)
        return tiny.tiny_wan_transformer(heads=heads, head_dim=32)
    made: Any = models()[name].build
    made = getattr(made, "func", made)
    return made(num_attention_heads=heads)  # type: ignore[no-any-return]


def enabled(transformer: nn.Module, method: str) -> Any:
    """With a method, which leaves pairs out, or with one that is not asked."""
    if method == DENSE:
        return vidaccel.enable(transformer, "radial", **SPARSE | {"schedule": {"dense_first_steps": 1.0}})
    name, _, further = method.partition(" with ")
    chosen, options = setting(name, transformer)
    return vidaccel.enable(transformer, chosen, **SPARSE, **options, **FURTHER.get(further, {}))


def run(
    transformer: nn.Module, call: dict[str, Any], method: str, steps: int = STEPS
) -> tuple[list[Tensor], Any]:  # fmt: skip
    """Some steps, and what was done in them."""
    onwards = 0.1 if family_of(transformer).timesteps_rise else -0.1
    with enabled(transformer, method) as session:
        found = [cases.forward(transformer, call | {"timestep": call["timestep"] * (1 + onwards * step),
                                                    "hidden_states": call["hidden_states"] * (1 - 0.1 * step)})
                 for step in range(steps)]  # fmt: skip
        return found, session.summary().to_dict()


def errors(name: str, methods: list[str], heads: int, ulysses: int, anything: bool = False, cut: Any = None) -> Any:
    """Of each method, the greatest relative error of a step, and summaries of both runs."""
    transformer = build(name, heads)
    call = models()[name].inputs(transformer)
    call = call if cut is None else cut(call)
    alone = {method: run(transformer, call, method) for method in methods}
    cases.parallelised(transformer, ulysses=ulysses, anything=anything)
    found = {}
    for method in methods:
        steps, summary = run(transformer, call, method)
        worst = max(cases.error(*pair) for pair in zip(steps, alone[method][0], strict=True))
        found[method] = worst, alone[method][1], summary
    return found


def check(answers: list[Any], ranks: int) -> None:
    for rank in answers:
        for method, (error, alone, summary) in rank.items():
            assert error < TOLERANCE, f"{method}: {error:.1e}"
            assert summary["calls"] == alone["calls"], method
            assert any(f"one clip is computed by {ranks} processes: Ulysses" in each for each in summary["notes"])
            if method != DENSE:
                assert summary["dense_calls"] == {} and 0 < summary["density"]["video_density"] < 1
    for method in answers[0]:
        if method == DENSE:
            continue
        # Static plans are known of all heads; of others each rank knows its own.
        densities = [rank[method][2]["density"]["video_density"] for rank in answers]
        expected = answers[0][method][1]["density"]["video_density"]
        assert sum(densities) / ranks == pytest.approx(expected), method
        if METHODS[method].static:
            assert densities == [expected] * ranks


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_on_two_processes(name: str, world: World) -> None:
    check(world(errors, name, [DENSE, *METHODS], 4, 2), 2)


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_on_four_processes(name: str, four: World) -> None:
    check(four(errors, name, [DENSE, *METHODS], 8, 4, timeout=800), 4)


def narrow(call: dict[str, Any]) -> dict[str, Any]:
    """A grid of an odd number of tokens: 5 x 3 x 5."""
    return call | {"hidden_states": call["hidden_states"][:, :, :5, :6, :10].contiguous()}


@pytest.mark.parametrize(
    "methods", [[DENSE, "radial", "head_profile"], ["nabla", "semantic", "mixed"]], ids=["static", "other"]
)
def test_unequal_heads_and_unequal_tokens(methods: list[str], world: World) -> None:
    for rank in world(errors, WAN, methods, 3, 2, True, narrow):
        assert max(error for error, *_ in rank.values()) < TOLERANCE
    for rank in world(errors, HUNYUAN, methods, 3, 2, True, narrow):
        assert max(error for error, *_ in rank.values()) < TOLERANCE


def test_compensation_and_precision(world: World) -> None:
    methods = ["semantic with centroid", "nabla with residual", "radial with int8", "nabla with int8"]
    for rank in world(errors, HUNYUAN, methods, 4, 2):
        assert max(error for error, *_ in rank.values()) < TOLERANCE, {name: each[0] for name, each in rank.items()}
        assert all(each[2]["dense_calls"] == {} for each in rank.values())


def test_five_heads_on_four_processes(four: World) -> None:
    for rank in four(errors, WAN, [DENSE, "head_profile", "nabla", "mixed"], 5, 4, True, narrow):
        assert max(error for error, *_ in rank.values()) < TOLERANCE


def classes(names: list[str]) -> dict[str, tuple[float, float]]:
    """Dense and sparse errors of each class."""
    found = {}
    for name in names:
        transformer = models()[name].build()
        call = models()[name].inputs(transformer)
        alone = [run(transformer, call, method, steps=1)[0] for method in (DENSE, "nabla")]
        cases.parallelised(transformer, ulysses=2)
        again = [run(transformer, call, method, steps=1)[0] for method in (DENSE, "nabla")]
        found[name] = (cases.error(again[0][0], alone[0][0]), cases.error(again[1][0], alone[1][0]))
    return found


REFUSED = {"allegro": "rotary", "anyflow": "rotary", "framepack": "history", "helios": "the past", "kandinsky5": "rows",
           "ltx2": "sound", "motif": "twice", "wan_animate": "face"}  # fmt: skip
FIRST_FRAME = "HunyuanVideoTransformer3DModel, image as the first frame"
CONDITIONS = "LTXVideoTransformer3DModel, conditions"


def test_what_cannot_be_split_says_why() -> None:
    for name, model in models().items():
        transformer = model.build()
        family = family_of(transformer).name
        if family in REFUSED or name == FIRST_FRAME:
            with pytest.raises(ValueError, match="cannot be split over processes: .*" + REFUSED.get(family, "first")):
                vidaccel.parallel_plan(transformer)
        else:
            assert vidaccel.parallel_plan(transformer)


def test_every_other_class(world: World, pytestconfig: pytest.Config) -> None:
    names = [name for name, model in models().items() if family_of(model.build()).name not in REFUSED]
    names = [name for name in names if name not in (FIRST_FRAME, CONDITIONS)]
    if not pytestconfig.getoption("--all-variants"):
        names = [name for name in names if name in first_variants() and name not in CLASSES]
    for rank in world(classes, names):
        assert list(rank) == names
        for name, found in rank.items():
            assert max(found) < TOLERANCE, f"{name}: {found}"


def test_conditions_in_the_stream_of_the_video_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="LTX with conditions cannot be split"):
        world(classes, [CONDITIONS])


def clip(name: str, pipe: Any, **overrides: Any) -> Tensor:
    """The latents of a run of four steps."""
    call = dict(models()[name].call) | {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    made: Tensor = pipe(**call | overrides).frames
    return made


def pipelines(name: str, method: str) -> tuple[list[float], dict[str, Any]]:
    """Errors of two generations, with different prompts, of a whole pipeline."""
    pipe = models()[name].pipeline()  # type: ignore[misc]
    chosen, options = setting(method, pipe.transformer)
    given = {**options, "min_tokens": 0, "schedule": {"dense_first_steps": 0.25, "dense_first_layers": 1}}
    prompts = ("a red circle moves left", "a blue square moves right")
    with vidaccel.enable(pipe, chosen, **given):
        alone = [clip(name, pipe, prompt=prompt) for prompt in prompts]
    cases.parallelised(pipe, ulysses=2)
    session = vidaccel.enable(pipe, chosen, **given)
    found = [clip(name, pipe, prompt=prompt) for prompt in prompts]
    return [cases.error(*pair) for pair in zip(found, alone, strict=True)], session.summary().to_dict()


@pytest.mark.parametrize("method", ["head_profile", "svg", "semantic"])
@pytest.mark.parametrize("name", CLASSES)
def test_whole_pipelines_twice(name: str, method: str, world: World) -> None:
    for found, summary in world(pipelines, name, method):
        assert max(found) < TOLERANCE
        assert summary["runs"] == 2 and summary["calls"]["sparse"] > 0 and "in first steps" in summary["dense_calls"]


def two_experts() -> float:
    pipe = tiny.tiny_wan(two_experts=True)
    given = {"block": 16, "min_tokens": 0, "schedule": {"dense_first_steps": 0.25}}
    with vidaccel.enable(pipe, "nabla", **given):
        alone = clip(WAN, pipe)
    cases.parallelised(pipe, ulysses=2)
    vidaccel.enable(pipe, "nabla", **given)
    return cases.error(clip(WAN, pipe), alone)


def test_two_experts(world: World) -> None:
    assert max(world(two_experts)) < TOLERANCE


def fused(name: str) -> float:
    """Error of a split model whose projections were fused before it was enabled."""
    transformer: Any = build(name, 4)
    call = models()[name].inputs(transformer)
    transformer.fuse_qkv_projections()
    alone = run(transformer, call, "nabla")[0][-1]
    cases.parallelised(transformer, ulysses=2)
    return cases.error(run(transformer, call, "nabla")[0][-1], alone)


@pytest.mark.parametrize("name", [WAN, COG])
def test_fused_projections(name: str, world: World) -> None:
    assert max(world(fused, name)) < TOLERANCE


def graphs(name: str) -> tuple[int, int, float]:
    """Graphs of compiled blocks in one process and split, and the error."""
    import torch._dynamo.testing

    def counted(transformer: Any) -> tuple[int, Tensor]:
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        blocks = family_of(transformer).blocks(transformer)
        for block in blocks:
            block.compile(backend=counter)
        found = run(transformer, call, "radial")[0][-1]
        for block in blocks:
            block._compiled_call_impl = None
        return counter.frame_count, found

    transformer = build(name, 4)
    call = models()[name].inputs(transformer)
    before, alone = counted(transformer)
    cases.parallelised(transformer, ulysses=2)
    after, found = counted(transformer)
    return before, after, cases.error(found, alone)


def test_compiled_blocks(world: World) -> None:
    for before, after, error in world(graphs, WAN):
        assert error < TOLERANCE
        # diffusers' hook around the first block ends a graph before it and after it.
        assert before <= after <= before + 2
