"""Where the time goes: what is counted for what, that the parts add up, and that nothing stays behind.

Seconds are counted, not measured: each of the watched calls puts a clock forward by an amount of its own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import vidaccel
from tests.tiny import tiny_cogvideox, tiny_hunyuanvideo, tiny_wan, tiny_wan_transformer
from vidaccel import kernels
from vidaccel.eval import breakdown
from vidaccel.eval.breakdown import PARTS, Stopwatch, parts_of
from vidaccel.eval.runner import Run, Runner
from vidaccel.eval.stand_in import stand_in
from vidaccel.kernels import compose, cpu
from vidaccel.methods import METHODS
from vidaccel.pipelines import processor
from vidaccel.session import Session

PROMPT = "a red circle moves left"
CALL: dict[str, Any] = {"num_inference_steps": 4, "height": 64, "width": 96, "num_frames": 17, "guidance_scale": 3.0,
                        "negative_prompt": "blurry", "max_sequence_length": 16}  # fmt: skip
SPARSE: dict[str, Any] = {"min_tokens": 0, "backend": "cpu",
                          "schedule": {"dense_first_steps": 1, "dense_first_layers": 0}}  # fmt: skip
CALLS = 2 * 2 * 4
"""Layers, guidance passes, steps."""


class Clock:
    """A clock that stands still but for what ticks."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.calls, self._patch = 0.0, Counter[str](), patch
        patch.setattr(breakdown, "_clock", lambda: self.now)

    def ticks(self, owner: Any, name: str, seconds: float, called: str | None = None) -> None:
        """Each call of a function takes so long."""

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def ticking(*args: Any, **kwargs: Any) -> Any:
                self.now += seconds
                self.calls[called or name] += 1
                return original(*args, **kwargs)

            return ticking

        self._patch.setattr(owner, name, wrap(getattr(owner, name)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def pipe() -> Any:
    return tiny_wan()


@contextlib.contextmanager
def enabled(pipe: Any, *args: Any, **kwargs: Any) -> Iterator[Session]:
    with vidaccel.enable(pipe, *args, **kwargs) as session:
        yield session


def whole(pipe: Any, clock: Clock, before: float = 0.0) -> Callable[[], Run]:
    """A generation whose seconds are the clock's, and `before` more."""

    def run() -> Run:
        start = clock.now
        Runner(pipe, CALL).run("run", PROMPT, 0)
        return Run(None, clock.now - start + before, None)

    return run


def watched(pipe: Any, clock: Clock) -> None:
    clock.ticks(pipe.text_encoder, "forward", 1)
    clock.ticks(pipe.vae, "decode", 10)
    clock.ticks(pipe.scheduler, "step", 0.25)


def test_a_dense_run(pipe: Any, clock: Clock) -> None:
    watched(pipe, clock)
    clock.ticks(processor, "dispatch_attention_fn", 100)
    parts = parts_of(pipe, None, whole(pipe, clock, before=7))
    assert list(parts) == list(PARTS) and clock.calls["dispatch_attention_fn"] == CALLS
    assert parts == {"text": 2, "plan": 0, "permute": 0, "attention": 100 * CALLS, "rest": 1 + 7, "vae": 10}


def test_a_sparse_run_whose_tokens_are_permuted(pipe: Any, clock: Clock) -> None:
    with enabled(pipe, "semantic", query_clusters=4, key_clusters=6, **SPARSE) as session:
        watched(pipe, clock)
        clock.ticks(processor, "dispatch_attention_fn", 100)
        clock.ticks(cpu, "_attention", 1000)
        for name in ("permuted", "restored"):
            clock.ticks(compose, name, 0.125)
        clock.ticks(METHODS["semantic"], "plan", 0.5)
        parts = parts_of(pipe, session, whole(pipe, clock))
    sparse = CALLS * 3 // 4
    # Query, key and value go into the plan's order, and the output comes back.
    assert parts == {"text": 2, "plan": 0.5 * sparse, "permute": 0.125 * 4 * sparse,
                     "attention": 100 * (CALLS - sparse) + 1000 * sparse, "rest": 1, "vae": 10}  # fmt: skip


def test_a_static_method_plans_before_each_forward(pipe: Any, clock: Clock) -> None:
    with enabled(pipe, "random", block=16, density=0.5, **SPARSE) as session:
        clock.ticks(METHODS["random"], "plan", 0.5)
        clock.ticks(cpu, "_attention", 1000)
        parts = parts_of(pipe, session, whole(pipe, clock))
    assert parts["plan"] == 0.5 * clock.calls["plan"] > 0
    assert parts["attention"] == 1000 * CALLS * 3 // 4 and parts["rest"] == 0


def test_compensation_is_part_of_attention(pipe: Any, clock: Clock) -> None:
    from vidaccel.compensation import COMPENSATIONS

    with enabled(pipe, "random", block=16, density=0.5, compensation="residual", **SPARSE) as session:
        clock.ticks(COMPENSATIONS["residual"], "attend", 3)
        parts = parts_of(pipe, session, whole(pipe, clock))
    assert parts["attention"] == 3 * clock.calls["attend"] == 3 * CALLS * 3 // 4


def test_a_run_that_is_cached_and_dense(pipe: Any, clock: Clock) -> None:
    with enabled(pipe, None, cache={"name": "static", "compute": [0, 2], "min_steps": 1}) as session:
        clock.ticks(processor, "dispatch_attention_fn", 100)
        parts = parts_of(pipe, session, whole(pipe, clock))
    assert parts["attention"] == 100 * CALLS / 2


def test_parts_inside_parts_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0, 5.0, 9.0, 9.0, 10.0])
    watch = Stopwatch(lambda: next(times))
    with watch.part("plan"):
        with watch.part("attention"):
            pass
        with contextlib.suppress(ZeroDivisionError), watch.part("attention"):
            _ = 1 / 0
    assert watch.seconds == {"text": 0, "plan": 1 + 4 + 1, "permute": 0, "attention": 3, "vae": 0}


def held(pipe: Any) -> list[Any]:
    """All that a measured run replaces."""
    owners = [pipe, *pipe.components.values(), kernels, compose]
    blocks = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
    return [*({name: item for name, item in owner.__dict__.items() if callable(item)} for owner in owners
              if hasattr(owner, "__dict__")), *blocks]  # fmt: skip


@pytest.mark.parametrize("make", [tiny_wan, tiny_hunyuanvideo, tiny_cogvideox])
def test_the_clip_is_the_same_and_nothing_stays(make: Callable[[], Any], clock: Clock) -> None:
    pipe, made = make(), []
    call = {**CALL, "prompt_template": {"template": "{}", "crop_start": 0}} if make is tiny_hunyuanvideo else CALL
    runner = Runner(pipe, {name: item for name, item in call.items() if name != "negative_prompt"})
    before, usual = held(pipe), runner.run("run", PROMPT, 0).clip
    assert np.isfinite(usual).all()

    def run() -> Run:
        made.append(runner.run("run", PROMPT, 0))
        return made[-1]

    parts_of(pipe, None, run)
    assert held(pipe) == before and np.array_equal(made[-1].clip, usual)
    with enabled(pipe, "random", block=16, density=0.5, **SPARSE) as session:
        sparse = runner.run("run", PROMPT, 0).clip
        parts_of(pipe, session, run)
        assert not {"begin", "_prepare"} & set(session.__dict__) and "_sparse" not in session.calls.__dict__
    assert held(pipe) == before and np.array_equal(made[-1].clip, sparse)


def test_an_interrupted_run_leaves_nothing(pipe: Any, clock: Clock) -> None:
    before = held(pipe)
    with pytest.raises(KeyboardInterrupt):
        parts_of(pipe, None, interrupted)
    assert held(pipe) == before


def interrupted() -> Run:
    raise KeyboardInterrupt


def test_what_cannot_be_taken_apart_is_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        """A processor of somebody else's."""

    stock = pipe.transformer.blocks[1].attn1.processor
    pipe.transformer.blocks[1].attn1.processor = Foreign()
    first = pipe.transformer.blocks[0].attn1.processor
    with pytest.raises(ValueError, match="processor Foreign, which is not diffusers' own"):
        parts_of(pipe, None, lambda: pytest.fail("it ran"))
    assert pipe.transformer.blocks[0].attn1.processor is first
    pipe.transformer.blocks[1].attn1.processor = stock
    pipe.transformer.blocks[0].compile()
    with pytest.raises(ValueError, match="WanPipeline is compiled, so that its time cannot be told"):
        parts_of(pipe, None, lambda: pytest.fail("it ran"))


def test_measured_seconds_add_up(pipe: Any) -> None:
    runner = Runner(pipe, CALL)
    taken: list[Run] = []

    def run() -> Run:
        taken.append(runner.run("run", PROMPT, 0))
        return taken[-1]

    parts = parts_of(pipe, None, run)
    assert sum(parts.values()) == pytest.approx(taken[-1].seconds)
    assert all(parts[name] > 0 for name in ("text", "attention", "rest", "vae")) and parts["permute"] == 0


def test_notes_say_where_permuting_is() -> None:
    assert "permuting is in it" in breakdown.note("triton") and "permuting" not in breakdown.note("cpu")


def test_stand_ins_give_back_what_was_there() -> None:
    module = tiny_wan_transformer()
    with stand_in(module, "forward", lambda original: lambda: original):
        assert module.forward() == type(module).forward.__get__(module) and "forward" in module.__dict__
    assert "forward" not in module.__dict__
    module.__dict__["forward"] = len  # as offloading does
    with stand_in(module, "forward", lambda original: lambda: original):
        assert module.forward() is len
    assert module.__dict__["forward"] is len
