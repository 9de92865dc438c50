"""The cache at work on real pipelines: what runs, what is reused, and that nothing of it stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vidaccel
from tests import tiny
from tests.caching.cases import FAMILIES, STEPS, Told, ToldOutput, block_calls, by_hooks, run
from vidaccel.caching import Cache, CachePolicy, Place
from vidaccel.caching.predictors import Hold
from vidaccel.pipelines import experts, family_of

ONE_EXPERT = [name for name in FAMILIES if name != "wan2.2"]


def only(policy: CachePolicy, **limits: Any) -> Any:
    """Options of a session that only caches."""
    return {"method": None, "cache": Cache(policy, **{"predictor": Hold(), "min_steps": 1, **limits})}


def stop(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
    if step == 2:
        raise KeyboardInterrupt
    return {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [Told(), ToldOutput()], ids=["stack", "output"])
def test_all_computed_is_stock(family: str, policy: CachePolicy) -> None:
    """Two generations in a row, one aborted before; and what `disable` leaves."""
    pipe = FAMILIES[family][0]()
    stock = run(family, pipe)
    before = {name: dict(module.__dict__) for name, module in experts(pipe).items()}
    with vidaccel.enable(pipe, **only(policy)):
        with pytest.raises(KeyboardInterrupt):
            run(family, pipe, prompt="a blue square", callback_on_step_end=stop)
        assert np.array_equal(run(family, pipe), stock) and np.array_equal(run(family, pipe), stock)
    for name, module in experts(pipe).items():
        assert module.__dict__.keys() == before[name].keys() and not module._forward_hooks
    assert np.array_equal(run(family, pipe), stock)


@pytest.mark.parametrize("family", ONE_EXPERT)
@pytest.mark.parametrize("policy", [Told, ToldOutput])
@pytest.mark.parametrize("reuse", [None, "stack", "output", "prediction"])
def test_reuse_is_the_slow_cache(family: str, policy: Any, reuse: str | None) -> None:
    """Whatever the policy goes by, what is reused is as asked."""
    steps = (2, 4)
    cache = Cache(policy(steps), Hold(), reuse=reuse, min_steps=1)
    pipe = FAMILIES[family][0]()
    stock = run(family, pipe)
    with by_hooks(pipe, steps, cache.place):
        expected = run(family, pipe)
    assert np.abs(expected - stock).max() > 1e-4
    with vidaccel.enable(pipe, None, cache=cache) as session:
        np.testing.assert_allclose(run(family, pipe), expected, atol=1e-5)
        # After an aborted generation, too.
        with pytest.raises(KeyboardInterrupt):
            run(family, pipe, prompt="a blue square", callback_on_step_end=stop)
        np.testing.assert_allclose(run(family, pipe), expected, atol=1e-5)
        made = session.summary().to_dict()["cache"]
    passes = len(made["decisions"]) // STEPS
    assert [each["step"] for each in made["decisions"] if each["what"] == "reused"] == sorted(steps * passes)
    assert made["computed_share"] == (STEPS - 2) / STEPS and made["decisions"][-1]["forced"]


def test_blocks_of_reused_steps_do_not_run() -> None:
    pipe = tiny.tiny_wan(two_experts=True)
    with vidaccel.enable(pipe, **only(Told((1, 2, 3, 4)))):
        calls, end = block_calls(pipe)
        run("wan2.2", pipe)
        end()
    # Two passes; the first and the last step, and the step in which the second expert takes over.
    by_expert = {name: sum(expert == name for expert, _ in calls) for name in ("transformer", "transformer_2")}
    assert by_expert == {"transformer": 2 * 2, "transformer_2": 2 * 2 * 2}


@pytest.mark.parametrize("family", ONE_EXPERT)
def test_state_dies_with_the_last_step(family: str) -> None:
    """Decoding needs the room."""
    pipe = FAMILIES[family][0]()
    with vidaccel.enable(pipe, **only(Told((2,)))) as session:
        run(family, pipe)
        assert session._runtime is not None and not session._runtime._branches


def test_sparse_switch_is_an_event() -> None:
    """A policy that would reuse everything computes where sparse attention begins and ends."""
    pipe = tiny.tiny_wan()
    schedule = {"dense_first_steps": 2, "dense_last_steps": 2, "dense_first_layers": 0}
    with vidaccel.enable(pipe, "radial", min_tokens=0, schedule=schedule,
                         cache=Cache(Told(tuple(range(8))), min_steps=1, last_steps=0)) as session:  # fmt: skip
        run("wan", pipe, num_inference_steps=8)
        made = session.summary().to_dict()
    computed = {each["step"] for each in made["cache"]["decisions"] if each["what"] == "computed"}
    assert computed == {0, 2, 6}
    assert {each["step"] for each in made["cache"]["decisions"] if each["sparse"]} == {2, 3, 4, 5}
    # Two layers, two passes: step 2 sparse, steps 0 and 6 dense, the other five spared.
    assert made["calls"] == {"sparse": 4, "dense": 8, "spared": 20}


@pytest.mark.parametrize("reuse", ["stack", "output", "prediction"])
def test_guidance_interval(reuse: str) -> None:
    """Between steps that compute both passes, the unconditional one has the conditional one's residual and the last
    difference, which for a model without differences between them is exact."""
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, **only(Told(), guidance_interval=2, reuse=reuse)) as session:
        run("wan", pipe)
        made = session.summary().to_dict()["cache"]["decisions"]
    assert [each["step"] for each in made if each["what"] == "guidance"] == [1, 3]
    stock = run("wan", pipe, negative_prompt="a red circle", prompt="a red circle")
    with vidaccel.enable(pipe, **only(Told(), guidance_interval=2, reuse=reuse)):
        np.testing.assert_allclose(run("wan", pipe, negative_prompt="a red circle", prompt="a red circle"), stock,
                                   atol=1e-5)  # fmt: skip


def test_guidance_that_cannot_be_left_out() -> None:
    """Both passes in one call are refused; a run of one pass a step is told."""
    with pytest.raises(ValueError, match="guidance_interval 2 leaves out unconditional calls"):
        vidaccel.enable(FAMILIES["cogvideox"][0](), **only(Told(), guidance_interval=2))
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, **only(Told(), guidance_interval=2)) as session:
        run("wan", pipe, guidance_scale=1.0)
        assert "note: guidance_interval 2 had nothing to leave out" in str(session.summary())


def test_few_steps_are_computed() -> None:
    pipe = tiny.tiny_wan()
    stock = run("wan", pipe)
    with vidaccel.enable(pipe, None, cache=Told((1, 2, 3, 4))) as session:
        assert np.array_equal(run("wan", pipe), stock)
        assert "fewer than min_steps=12" in str(session.summary())


def test_batch_and_sizes_in_turn() -> None:
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, **only(Told((2, 4)))):
        one = run("wan", pipe, prompt="a red circle")
        two = run("wan", pipe, prompt=["a red circle", "a blue square"], negative_prompt=["", ""],
                  generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)])  # fmt: skip
        small = run("wan", pipe, height=48, width=64)
        assert small.shape != one.shape and len(two) == 2
        assert np.array_equal(run("wan", pipe, prompt="a red circle"), one)


def test_refusals() -> None:
    pipe = tiny.tiny_wan()
    with pytest.raises(ValueError, match="nothing would be enabled"):
        vidaccel.enable(pipe, None)
    with pytest.raises(ValueError, match="has no options, got density"):
        vidaccel.enable(pipe, None, cache=Told(), density=0.5)
    with pytest.raises(ValueError, match="unknown cache policy 'told'; choose "):
        vidaccel.enable(pipe, cache="told")
    with pytest.raises(ValueError, match="pass num_inference_steps"):
        vidaccel.enable(pipe.transformer, None, cache=Told())
    small = vidaccel.enable(pipe, **only(Told((2,)), max_memory=1e-9))
    with small, pytest.raises(ValueError, match=r"would keep .* GB on cpu .* max_memory allows 0.00 GB"):
        run("wan", pipe)
    bare = pipe.transformer
    pipe.transformer = torch.compile(bare)
    with pytest.raises(ValueError, match="WanTransformer3DModel is compiled as a whole"):
        vidaccel.enable(pipe, None, cache=Told())
    pipe.transformer = bare
    pipe.transformer.compile()
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        vidaccel.enable(pipe, None, cache=Told())
    assert "blocks" not in pipe.transformer.__dict__


@pytest.mark.parametrize("field", [{"first_steps": -1}, {"last_steps": 1.5}, {"most_reused": 0}, {"min_steps": True},
                                   {"guidance_interval": 0}, {"sparse_share": 1}, {"max_memory": 0}])  # fmt: skip
def test_limits_are_checked(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(ValueError, match=name):
        Cache(Told(), **field)


def test_blocks_stay_children() -> None:
    """Weights, devices and adapters see the same modules as before, also while a forward is on its way."""
    pipe = tiny.tiny_wan()
    names = list(pipe.transformer.state_dict())
    with vidaccel.enable(pipe, **only(Told((2,)))):
        assert list(pipe.transformer.state_dict()) == names
        stand_in, blocks = pipe.transformer.blocks, pipe.transformer._modules["blocks"]
        assert len(stand_in) == 2 and stand_in[0] is blocks[0] and list(stand_in) == list(blocks)
        assert family_of(pipe.transformer).sites(pipe.transformer)
    assert Told().place is Place.STACK
