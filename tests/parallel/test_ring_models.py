"""One clip over a ring of processes is that of one process; what a ring cannot do is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing

import vidaccel
from tests import tiny
from tests.parallel import cases
from tests.parallel.world import World
from tests.pipelines import test_cogvideox, test_hunyuanvideo
from tests.pipelines.cases import NEVER_DENSE
from tests.pipelines.models import models
from vidaccel.heads import HeadOption, HeadTable
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern, density_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.simple import Dense
from vidaccel.pipelines import family_of

NEAR = 1e-5
MODELS = {
    "wan": "WanTransformer3DModel",
    "hunyuanvideo": "HunyuanVideoTransformer3DModel, text",
    "cogvideox": "CogVideoXTransformer3DModel",
}
ODD = 9, 10, 10
"""Of latents: 225 tokens."""
SETTINGS: dict[str, dict[str, Any]] = {
    "radial": {"decay": 0.0, "split": 32, "sink": False, "block": 16},
    "random": {"density": 0.5, "block": 16},
    "head_profile": {},
    "dense": {"schedule": {"dense_first_steps": 1}},
}


def profile(layers: int, layout: TokenLayout, *bands: tuple[Pattern, ...]) -> vidaccel.Profile:
    """In each band of steps, heads of all layers have its patterns in turns."""
    patterns = (*dict.fromkeys(each for band in bands for each in band if each != Dense()), Dense())
    dense = HeadOption(len(patterns) - 1, 0.0, 1.0, 1.0)

    def head(pattern: Pattern) -> tuple[HeadOption, ...]:
        own = density_of(pattern, layout, 16)
        return (dense,) if pattern == Dense() else (HeadOption(patterns.index(pattern), 1e-9, own, own), dense)

    heads = tuple(
        tuple(tuple(head(band[(layer + at) % len(band)]) for at in range(2)) for layer in range(layers))
        for band in bands
    )
    ends = tuple((index + 1) / len(bands) for index in range(len(bands)))
    table = HeadTable(16, patterns, ends, {"transformer": heads})
    return vidaccel.Profile("head_profile", {"max_error": 0.01}, NEVER_DENSE, 0, heads=table)


def setting(name: str, transformer: Any, layout: TokenLayout) -> dict[str, Any]:
    """Arguments of `enable`."""
    method: Any = "radial" if name == "dense" else name
    if name == "head_profile":
        layers = len(family_of(transformer).sites(transformer))
        method = profile(layers, layout, (Band(0.2), Dense(), Band(0.05)))
    return {"method": method, "min_tokens": 0, "schedule": NEVER_DENSE} | SETTINGS[name]


def _inputs(name: str, transformer: Any, odd: bool) -> dict[str, Any]:
    """One forward's, of the model's own grid or an odd number of tokens."""
    if not odd:
        return models()[MODELS[name]].inputs(transformer)
    if name == "wan":
        call = models()[MODELS[name]].inputs(transformer)
        return call | {"hidden_states": torch.randn(*call["hidden_states"].shape[:2], *ODD)}
    module = test_hunyuanvideo if name == "hunyuanvideo" else test_cogvideox
    return module.inputs(transformer, grid=ODD)


def _told(summary: dict[str, Any]) -> dict[str, Any]:
    """What a summary says of a run that does not depend on how it was split."""
    return {name: summary[name] for name in ("calls", "dense_calls", "density", "densities")}


def _compare(name: str, degrees: dict[str, Any], odd: bool) -> dict[str, float]:
    """How far each setting's output is from that of one process, and a second call's from the first."""
    found = {}
    for chosen in SETTINGS:
        model = models()[MODELS[name]].build()
        call = _inputs(name, model, odd)
        layout = TokenLayout(9, 5, 5) if odd else models()[MODELS[name]].layout
        options = setting(chosen, model, layout)
        with vidaccel.enable(model, **options) as session:
            alone = [cases.forward(model, call) for _ in range(2)][0]
        before = session.summary().to_dict()
        assert chosen == "dense" or before["density"]["video_density"] < 0.95, chosen
        first = chosen in ("radial", "dense")
        if first:
            vidaccel.enable(model, **options)
        cases.parallelised(model, **degrees)
        if not first:
            vidaccel.enable(model, **options)
        out, again = cases.forward(model, call), cases.forward(model, call)
        after = vidaccel.summary(model).to_dict()
        assert torch.equal(out, again) and _told(after) == _told(before), chosen
        found[chosen] = cases.error(out, alone)
    return found


@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
@pytest.mark.parametrize("name", MODELS)
def test_two_processes(world: World, name: str, odd: bool) -> None:
    for found in world(_compare, name, {"ring": 2, "anything": odd}, odd):
        assert set(found) == set(SETTINGS) and max(found.values()) < NEAR, found


@pytest.mark.parametrize("degrees", [{"ring": 4}, {"ring": 2, "ulysses": 2}], ids=["ring 4", "ring 2 x Ulysses 2"])
@pytest.mark.parametrize("name", MODELS)
def test_four_processes(four: World, name: str, degrees: dict[str, int]) -> None:
    for found in four(_compare, name, degrees, False):
        assert set(found) == set(SETTINGS) and max(found.values()) < NEAR, found


@pytest.mark.parametrize("name", MODELS)
def test_four_processes_of_an_odd_length(four: World, name: str) -> None:
    for found in four(_compare, name, {"ring": 4, "anything": True}, True):
        assert set(found) == set(SETTINGS) and max(found.values()) < NEAR, found


CALL: dict[str, Any] = {"prompt": "a red circle moves left", "num_frames": 17, "height": 64, "width": 96,
                        "num_inference_steps": 4, "max_sequence_length": 16, "output_type": "latent"}  # fmt: skip
TEMPLATE = {"prompt_template": {"template": "{}", "crop_start": 0}}
RADIAL = {"method": "radial", "min_tokens": 0} | SETTINGS["radial"]
CACHE = {"name": "easycache", "threshold": 10.0, "min_steps": 1, "first_steps": 1, "last_steps": 1}
RUNS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "wan, a dense step, two generations": (tiny.tiny_wan, RADIAL | {"schedule": {"dense_first_steps": 1}}, {}),
    "wan, cached": (tiny.tiny_wan, RADIAL | {"schedule": NEVER_DENSE, "cache": CACHE}, {}),
    "hunyuanvideo, cached only": (tiny.tiny_hunyuanvideo, {"method": None, "cache": CACHE}, TEMPLATE),
}
"""Pipelines, arguments of `enable`, and of the call."""


def _latents(pipe: Any, more: dict[str, Any]) -> torch.Tensor:
    made: torch.Tensor = pipe(**CALL | more, generator=torch.Generator().manual_seed(0)).frames
    return made


def _run(name: str) -> tuple[float, bool, Any, Any]:
    make, options, more = RUNS[name]
    pipe = make()
    vidaccel.enable(pipe, **options)
    alone, before = _latents(pipe, more), vidaccel.summary(pipe).to_dict()
    cases.parallelised(pipe, ring=2)
    found = [_latents(pipe, more) for _ in range(2)]
    after = vidaccel.summary(pipe).to_dict()
    assert any("ring over 2 processes" in note for note in after["notes"])
    assert "cache" not in options or after["calls"]["spared"] > 0
    return cases.error(found[0], alone), torch.equal(*found), _told(before), _told(after)


@pytest.mark.parametrize("name", RUNS)
def test_whole_runs(world: World, name: str) -> None:
    for error, same, before, after in world(_run, name):
        assert error < NEAR and same and before == after


def _refused(options: dict[str, Any], permuted: bool = False) -> tuple[str, int]:
    """What a run in a ring says, and how many blocks ran."""
    pipe, blocks = tiny.tiny_wan(), []
    cases.parallelised(pipe, ring=2)
    pipe.transformer.blocks[0].register_forward_pre_hook(lambda *_: blocks.append(1))
    if permuted:
        # In the natural order at first: what comes later in a run is looked at, too.
        options = {"method": profile(2, TokenLayout(5, 4, 6), (Band(0.2),), (Band(0.2), Band(0.2, "HWF")))}
    vidaccel.enable(pipe, **{"min_tokens": 0, "schedule": {"dense_first_steps": 1}} | options)
    with pytest.raises(ValueError) as error:
        _latents(pipe, {})
    return str(error.value), len(blocks)


DYNAMIC = sorted(name for name, each in vidaccel.METHODS.items() if not each.static and name not in ("mixed", "oracle"))


@pytest.mark.parametrize("method", DYNAMIC)
def test_methods_that_read_queries_and_keys_are_refused(world: World, method: str) -> None:
    for said, blocks in world(_refused, {"method": method}):
        assert said.startswith(f"{method} plans from queries and keys, of which no process of a ring has all")
        assert "use ulysses_degree in place of ring_degree" in said and blocks == 0


def test_permuted_heads_are_refused(world: World) -> None:
    for said, blocks in world(_refused, {}, True):
        assert "cannot compute head_profile in layer 1 of transformer at step 2: it permutes the tokens" in said
        assert "Use ulysses_degree in place of ring_degree, or patterns in the natural order" in said and blocks == 0


@pytest.mark.parametrize("compensation", ["centroid", "residual"])
def test_compensation_is_refused(world: World, compensation: str) -> None:
    options = {"method": "random", "density": 0.5, "block": 16, "compensation": compensation}
    for said, blocks in world(_refused, options):
        assert "a compensation needs the keys of the whole sequence" in said and blocks == 0


def test_odd_lengths_are_refused_with_the_way_out(world: World) -> None:
    for said in world(_indivisible):
        assert "225 video tokens cannot be split evenly over 2 processes" in said and "ring_anything=True" in said


def _indivisible() -> str:
    model = models()[MODELS["wan"]].build()
    cases.parallelised(model, ring=2)
    vidaccel.enable(model, **setting("radial", model, TokenLayout(9, 5, 5)))
    with pytest.raises(ValueError) as error:
        cases.forward(model, _inputs("wan", model, odd=True))
    return str(error.value)


def _compiled() -> tuple[int, bool, float]:
    model = models()[MODELS["wan"]].build()
    call = _inputs("wan", model, odd=False)
    cases.parallelised(model, ring=2)
    vidaccel.enable(model, **setting("radial", model, models()[MODELS["wan"]].layout))
    plain, counter = cases.forward(model, call), torch._dynamo.testing.CompileCounter()
    model.blocks[1].compile(fullgraph=True, backend=counter)
    found = [cases.forward(model, call) for _ in range(2)]
    return counter.frame_count, torch.equal(*found), cases.error(found[0], plain)


def test_a_compiled_block_is_one_graph(world: World) -> None:
    for graphs, same, error in world(_compiled):
        assert graphs == 1 and same and error < NEAR
