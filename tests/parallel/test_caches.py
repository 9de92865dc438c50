"""Step caching where one clip is split over two processes: the decisions and the clip of one process."""

from __future__ import annotations

import functools
import re
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.caching.cases import FAMILIES, Told, run
from tests.caching.made import made, random_track
from tests.parallel import cases
from tests.parallel.world import World
from vidaccel import api
from vidaccel.architecture import describe
from vidaccel.caching import Cache, memory
from vidaccel.caching.calibration import shift_of
from vidaccel.caching.predictors import Hold
from vidaccel.caching.signals import Seen
from vidaccel.methods.drift import drifted
from vidaccel.parallel.split import Split
from vidaccel.pipelines import experts, family_of
from vidaccel.site import Dealt

STEPS = 8
PIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    **FAMILIES, "wan ti2v": (lambda: tiny.tiny_wan(expand_timesteps=True), {}),
    "wan of 4 heads": (lambda: tiny.tiny_wan(heads=4), {}),
}  # fmt: skip
SPARSE: dict[str, Any] = {"method": "radial", "decay": 0.0, "block": 16, "split": 16, "min_tokens": 0,
                          "schedule": {"dense_first_steps": 2, "dense_first_layers": 0}}  # fmt: skip
SPLITS: dict[str, dict[str, Any]] = {
    "even": {"ulysses": 2}, "anything": {"ulysses": 2, "anything": True}, "four": {"ulysses": 4},
    "both": {"ulysses": 2, "ring": 2},
}  # fmt: skip
CALIBRATED = "calibrated"
CACHES: dict[str, dict[str, Any]] = {
    "static": {"name": "static", "compute": (0, 1, 3, 6)},
    "teacache": {"name": "teacache", "threshold": 1.7, "coefficients": (1.0, 0.0)},
    "teacache of inputs": {"name": "teacache", "threshold": 0.25, "coefficients": (1.0, 0.0), "signal": "input"},
    "magcache": {"name": "magcache", "file": CALIBRATED},
    "easycache": {"name": "easycache", "threshold": 0.4},
    "easycache of residuals": {"name": "easycache", "threshold": 0.4, "reuse": "output", "predictor": "hold"},
    "first_block": {"name": "first_block", "threshold": 0.4},
    "first_block, narrow": {"name": "first_block", "threshold": 0.13},
    "ertacache": {"name": "ertacache", "file": CALIBRATED, "computed_steps": 5, "predictor": "affine"},
    "block_profile": {"name": "block_profile", "file": CALIBRATED, "warmup": 0.2, "most": 3},
    "rehash": {"name": "rehash", "threshold": 1.0},
    "fitted": {"name": "ertacache", "file": CALIBRATED, "computed_steps": 5, "predictor": {"name": "fitted"}},
    "taylor of order 2": {"name": "static", "compute": (0, 1, 2, 5), "predictor": {"name": "taylor", "order": 2}},
    "guidance": {"name": "static", "compute": tuple(range(STEPS)), "guidance_change": 0.5},
}  # fmt: skip
"""Each reuses some steps and computes some, on each family."""


def calibration(pipe: Any, attention: str) -> Any:
    """Random numbers for the runs of a pipeline."""
    models, rng = experts(pipe), np.random.default_rng(0)
    family = family_of(next(iter(models.values())))
    blocks = len(family.blocks(next(iter(models.values()))))
    tracks = {name: {branch: random_track(0, STEPS, rng, blocks) for branch in family.branches} for name in models}
    return made(STEPS, model=describe({name: api.facts(each) for name, each in models.items()}), tracks=tracks,
                scheduler=type(pipe.scheduler).__name__, shift=shift_of(pipe.scheduler), guidance=3.0,
                attention=attention)  # fmt: skip


@functools.cache
def pipeline(family: str, split: str) -> Any:
    """One for many tests: whatever is enabled on it is disabled after each."""
    pipe = PIPES[family][0]()
    return cases.parallelised(pipe, **SPLITS[split]) if split else pipe


def clip(
    family: str, name: str, split: str, attention: dict[str, Any], call: dict[str, Any]
) -> tuple[Tensor, Any, list[float], int]:
    """Latents, what became of each call, the numbers that decided it, and the calls of blocks that were spared."""
    pipe = pipeline(family, split)
    cache = {"min_steps": 1, **CACHES[name]}
    if cache.get("file") == CALIBRATED:
        with vidaccel.enable(pipe, **attention) as session:
            cache["file"] = calibration(pipe, session.setting.attention)
    own = PIPES[family][1] | {"num_inference_steps": STEPS, "guidance_scale": 3.0} | call
    with vidaccel.enable(pipe, **attention, cache=cache) as session:
        found = torch.from_numpy(tiny.generate(pipe, output_type="latent", **own))
        decided = session.summary().to_dict()["cache"]["decisions"]
    numbers = [each[name] or 0.0 for each in decided for name in ("indicator", "guidance_change")]
    return found, [[each[name] for name in ("step", "expert", "branch", "what", "forced")] for each in decided], \
        numbers, session.summary().to_dict()["cache"]["computed_share"]  # fmt: skip


def check(world: World, family: str, name: str, split: str = "even", attention: Any = None, **call: Any) -> None:
    attention = SPARSE if attention is None else attention
    expected, decided, numbers, share = clip(family, name, "", attention, call)
    assert 0 < share < 1, "it shows nothing"
    for found, became, of, _ in world(clip, family, name, split, attention, call):
        assert became == decided
        np.testing.assert_allclose(of, numbers, rtol=2e-3, atol=1e-6)
        assert cases.error(found, expected) < 1e-5


@pytest.mark.parametrize("name", sorted(CACHES.keys() - {"teacache of inputs"}))
def test_wan(name: str, world: World) -> None:
    check(world, "wan", name)


# The narrow threshold is one of another model's changes: on this one nothing stays below it.
@pytest.mark.parametrize("name", sorted(CACHES.keys() - {"teacache of inputs", "first_block, narrow"}))
def test_four_processes(name: str, four: World) -> None:
    check(four, "wan of 4 heads", name, "four")


@pytest.mark.parametrize("family", ["wan", "hunyuanvideo", "cogvideox"])
@pytest.mark.parametrize("name", ["first_block", "easycache"])
def test_rings_of_two_pairs(name: str, family: str, four: World) -> None:
    check(four, family, name, "both")


@pytest.mark.parametrize("name", ["teacache of inputs", "easycache", "first_block", "rehash", "block_profile",
                                  "taylor of order 2"])  # fmt: skip
def test_hunyuanvideo(name: str, world: World) -> None:
    check(world, "hunyuanvideo", name)


@pytest.mark.parametrize("name", ["teacache", "easycache of residuals", "first_block", "rehash", "magcache"])
def test_cogvideox(name: str, world: World) -> None:
    check(world, "cogvideox", name)


@pytest.mark.parametrize("name", ["first_block", "rehash", "easycache"])
def test_unequal_shares(name: str, world: World) -> None:
    """75 video tokens: 38 and 37."""
    check(world, "wan", name, "anything", height=48, width=80)


@pytest.mark.parametrize(("family", "name"), [("wan2.2", "static"), ("wan ti2v", "first_block")])
def test_kinds_of_wan(family: str, name: str, world: World) -> None:
    check(world, family, name)


def test_without_sparse_attention(world: World) -> None:
    """The stock processors, and diffusers' own exchange."""
    check(world, "wan", "first_block", attention={"method": None})


def enabled_first() -> list[bool]:
    """The clip of a model that is split after it is enabled, and again after it is disabled, as that of one before."""
    pipe, options = tiny.tiny_wan(), {**SPARSE, "cache": CACHES["first_block"] | {"min_steps": 1}}
    with vidaccel.enable(pipeline("wan", "even"), **options):
        expected = run("wan", pipeline("wan", "even"))
    found = []
    with vidaccel.enable(pipe, **options):
        whole = run("wan", pipe)
        cases.split(pipe.transformer, cases.config(2))
        found.append(np.array_equal(run("wan", pipe), expected))
    with vidaccel.enable(pipe, **options):
        found.append(np.array_equal(run("wan", pipe), expected))
    return [*found, bool(np.allclose(whole, expected, rtol=0, atol=1e-5))]


def test_either_order(world: World) -> None:
    assert world(enabled_first) == [[True] * 3] * 2


def nothing_reused() -> bool:
    """Whether a clip of a cache that computes all is the clip without it, bit for bit, before, with and after it."""
    pipe = pipeline("wan", "even")
    stock = run("wan", pipe)
    with vidaccel.enable(pipe, None, cache=Cache(Told(), Hold(), min_steps=1)):
        same = [np.array_equal(run("wan", pipe), stock) for _ in range(2)]
    return all(same) and np.array_equal(run("wan", pipe), stock)


def test_what_is_computed_is_stock(world: World) -> None:
    assert world(nothing_reused) == [True, True]


def too_little_room() -> str:
    """On one process alone."""
    pipe = pipeline("wan", "even")
    free = 10**12 if torch.distributed.get_rank() == 0 else 1000
    with vidaccel.enable(pipe, None, cache=Cache(Told((2,)), Hold(), min_steps=1)), \
            mock.patch.object(memory, "free", return_value=free):  # fmt: skip
        try:
            run("wan", pipe)
        except ValueError as error:
            return str(error)
    return ""


def test_all_refuse_what_one_has_no_room_for(world: World) -> None:
    first, second = world(too_little_room)
    assert "the cache would keep" in first and "there are 0.00 GB" in first and first == second


def begun(**different: Any) -> str:
    """What a clip says that the processes begin with what is given for each."""
    pipe, rank = pipeline("wan", "even"), torch.distributed.get_rank()
    options: dict[str, Any] = {"method": None, "cache": Cache(Told((2,)), Hold(), min_steps=1)}
    call = {name: each[rank] for name, each in different.items() if name not in options}
    with vidaccel.enable(pipe, **options | {name: different[name][rank] for name in options if name in different}):
        try:
            run("wan", pipe, **call)
        except ValueError as error:
            return str(error)
    return ""


def begun_with_other(what: str) -> str:
    return begun(**OTHERS[what][0])


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "noise": ({"seed": (0, 1)}, "other hidden_states.*a generator with the same seed"),
    "prompts": ({"prompt": ("a red circle moves left", "blue square")}, "other encoder_hidden_states.*same prompts"),
    "steps": ({"num_inference_steps": (6, 7)}, r"other steps, timesteps: give them the same; this one has [67]"),
    "sizes": ({"width": (96, 64)}, "other shapes of inputs"),
    "cache": ({"cache": tuple(Cache(Told((2,)), Hold(), min_steps=1, most_reused=most) for most in (1, 2))},
              "other cache"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_a_clip_that_is_begun_differently_is_refused_by_all(what: str, world: World) -> None:
    for said in world(begun_with_other, what):
        assert re.search(OTHERS[what][1], said), said


def signals() -> list[float]:
    """Means over 5 and 3 tokens, and what each process computed of the same."""
    rank = torch.distributed.get_rank()
    every = Split.of(_set_up()).every
    values = torch.arange(8.0).square().reshape(1, 8, 1)
    seen = Seen(None, torch.nn.Identity(), None, 0.0, every)  # type: ignore[arg-type]
    mine = values[:, :5] if rank == 0 else values[:, 5:]
    agreed = seen.agreed(torch.tensor([1.0, 2.0]) + 1e-7 * rank)
    half = seen.mean(mine.half())
    return [seen.mean(mine).item(), seen.mean(values).item(), *agreed.tolist(), half.item(), float(half.element_size())]


def _set_up() -> Any:
    config = cases.config(2)
    config.setup(torch.distributed.get_rank(), 2, torch.device("cpu"), config.mesh)
    return config


def test_signals_are_the_same_on_all(world: World) -> None:
    first, second = world(signals)
    assert first == second and first[:2] == [17.5, 17.5] and first[4:] == [17.5, 2.0]
    assert first[2:4] == pytest.approx([1.0, 2.0])


def moved(deal: Any) -> list[bool]:
    """Of three heads, dealt to two processes; all here without a deal."""
    generator, state, found = torch.Generator().manual_seed(0), {}, []  # type: ignore[var-annotated]
    heads = None
    if deal is not None:
        split = Split.of(_set_up())
        heads = Dealt(deal, split.ulysses.rank, split.ulysses, split.every)
    keys = torch.randn(1, 512, 3, 16, generator=generator)
    for step in range(12):
        # The first head alone changes, by far.
        keys[:, :, 0] += 0.1 * (step % 4) * torch.randn(1, 512, 16, generator=generator).mean(1, keepdim=True)
        here = keys if heads is None else keys[:, :, list(heads.own)]
        found.append(drifted(0.02, here, state, renew=step == 0, heads=heads))
    return found


def test_drift_is_that_of_all_heads(world: World) -> None:
    expected = moved(None)
    assert 0 < sum(expected) < 11
    assert world(moved, ((0, 2), (1,))) == [expected, expected]


def calibrated() -> str:
    try:
        vidaccel.calibrate_cache(pipeline("wan", "even"), ["a red circle"], num_inference_steps=4)
    except ValueError as error:
        return str(error)
    return ""


def test_calibration_wants_whole_clips(world: World) -> None:
    assert all("split over 2 processes" in said for said in world(calibrated))
