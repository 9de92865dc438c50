"""Leaving out the unconditional pass, against a slow, obvious model of it that runs every block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.caching.cases import FAMILIES, Told, ToldOutput, run
from tests.caching.turns import Waits
from vidaccel.caching import Cache, Place
from vidaccel.caching.passes import OUTPUT, Difference
from vidaccel.caching.predictors import PREDICTORS, Hold, Taylor

STEPS = 10
LAST = STEPS - 1


@dataclass
class Slow:
    """What a run is to be, step by step, from lists of all that was computed.

    Args:
        reused: steps that both passes reuse.
        interval, limit: `Cache.guidance_interval` and `Cache.guidance_change`.
        order: of the Taylor series, 0 to hold.
    """

    reused: tuple[int, ...]
    interval: int
    limit: float | None
    order: int
    own: tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]] = field(default_factory=lambda: ([], []))
    differences: list[tuple[int, Tensor]] = field(default_factory=list)
    changes: dict[int, float | None] = field(default_factory=dict)
    whats: list[str] = field(default_factory=list)
    in_a_row: int = 0

    def ahead(self, made: list[tuple[int, Tensor]], step: int) -> Tensor:
        last, value = made[-1]
        if self.order == 0 or len(made) < 2:
            return value
        before, former = made[-2]
        return value + (value - former) / (last - before) * (step - last)

    def change(self) -> float | None:
        """Relative L1 between the last two differences, for each step between them."""
        if len(self.differences) < 2:
            return None
        (before, former), (last, value) = self.differences[-2:]
        return float((value - former).abs().sum() / former.abs().sum()) / (last - before)

    def guides(self, step: int) -> bool:
        if step == LAST or not self.differences or self.in_a_row >= self.interval - 1:
            return False
        self.changes[step] = change = None if self.limit is None else self.change()
        return self.limit is None or (change is not None and change < self.limit)

    def residual(self, step: int, number: int, computed: Tensor) -> Tensor:
        """What a pass (0 the conditional one) has in a step that would compute this residual."""
        own = self.own[number]
        if step in self.reused and own:
            self.whats.append("reused")
            return self.ahead(own, step)
        value, what = computed, "computed"
        if number == 1 and self.guides(step):
            value, what = self.own[0][-1][1] + self.ahead(self.differences, step), "guidance"
            self.in_a_row += 1
        elif number == 1:
            self.differences.append((step, computed - self.own[0][-1][1]))
            self.in_a_row = 0
        self.whats.append(what)
        own.append((step, value))
        return value


@contextmanager
def slowly(pipe: Any, slow: Slow, place: Place) -> Iterator[None]:
    """A generation of Wan in which every block runs, and the residuals are then what `slow` has for them."""
    transformer, call, entered = pipe.transformer, [-1], []

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        call[0] += 1
        entered[:] = [kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]]

    def leave(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        given = entered[0] if place is not Place.PREDICTION else torch.zeros_like(entered[0])
        value = out[0] if isinstance(out, tuple) else out
        new = given + slow.residual(call[0] // 2, call[0] % 2, value - given)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    watched = (transformer.blocks[0], transformer.blocks[-1]) if place is Place.STACK else (transformer, transformer)
    hooks = [watched[0].register_forward_pre_hook(enter, with_kwargs=True),
             watched[1].register_forward_hook(leave, with_kwargs=True)]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def slow_run(pipe: Any, place: Place, slow: Slow) -> tuple[np.ndarray, Slow]:
    with slowly(pipe, slow, place):
        return run("wan", pipe, num_inference_steps=STEPS), slow


def decided(session: Any, branch: str | None = None) -> list[dict[str, Any]]:
    made = session.summary().to_dict()["cache"]["decisions"]
    return [each for each in made if branch in (None, each["branch"])]


def middle(pipe: Any, place: Place, reused: tuple[int, ...]) -> float:
    """A limit that some steps of a run are below, and some not."""
    _, slow = slow_run(pipe, place, Slow(reused, interval=2, limit=1e-9, order=0))
    return float(np.median([each for each in slow.changes.values() if each is not None]))


@pytest.mark.parametrize("place", list(Place))
@pytest.mark.parametrize("reused", [(), (3, 6, 7)], ids=["all computed", "some reused"])
@pytest.mark.parametrize(("interval", "order", "limited"),
                         [(2, 0, False), (3, 1, False), (2, 0, True), (4, 1, True)])  # fmt: skip
def test_is_the_slow_one(place: Place, reused: tuple[int, ...], interval: int, order: int, limited: bool) -> None:
    """Clips, what became of each call, and the number by which it did."""
    pipe = tiny.tiny_wan()
    limit = middle(pipe, place, reused) if limited else None
    expected, slow = slow_run(pipe, place, Slow(reused, interval, limit, order))
    cache = Cache(Told(reused), Taylor(start=0, trend=1) if order else Hold(), reuse=place.value, min_steps=1,
                  guidance_interval=interval, guidance_change=limit)  # fmt: skip
    with vidaccel.enable(pipe, None, cache=cache) as session:
        found = run("wan", pipe, num_inference_steps=STEPS)
        made = decided(session)
    whats = [{"predicted": "reused"}.get(each["what"], each["what"]) for each in made]
    assert whats == slow.whats and "guidance" in whats
    shown = {each["step"]: each["guidance_change"] for each in made if each["branch"] == "uncond"}
    for step in range(STEPS):
        assert shown[step] == (slow.changes.get(step) and pytest.approx(slow.changes[step], rel=1e-3))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected - run("wan", pipe, num_inference_steps=STEPS)).max() > 1e-4


@pytest.mark.parametrize("place", list(Place))
def test_equal_passes_are_exact(place: Place) -> None:
    """Where the prompts are the same, no step changes the difference, and nothing is lost."""
    pipe, same = tiny.tiny_wan(), {"prompt": "a red circle", "negative_prompt": "a red circle"}
    stock = run("wan", pipe, num_inference_steps=STEPS, **same)
    cache = Cache(Told(), Taylor(start=0, trend=1), reuse=place.value, min_steps=1, guidance_change=1e-3)
    with vidaccel.enable(pipe, None, cache=cache) as session:
        np.testing.assert_allclose(run("wan", pipe, num_inference_steps=STEPS, **same), stock, atol=1e-5)
        made = decided(session, "uncond")
        assert "guidance change 0 to 0" in str(session.summary())
    # Two steps that compute both, then every other one: by default at most one in a row goes by it.
    assert [each["step"] for each in made if each["what"] == "guidance"] == [2, 4, 6, 8]
    assert not any(each["forced"] for each in made[1:LAST]) and made[LAST]["forced"]


def test_one_wait_for_each_measured_step() -> None:
    pipe = tiny.tiny_wan()

    def waits(**limits: Any) -> tuple[int, list[dict[str, Any]]]:
        with vidaccel.enable(pipe, None, cache=Cache(Told(), min_steps=1, **limits)) as session:
            with Waits() as counted:
                run("wan", pipe, num_inference_steps=STEPS)
            return counted.count, decided(session, "uncond")

    plain, _ = waits()
    assert waits(guidance_interval=3)[0] == plain
    # Nothing is below of it: each step from the third on, but for the last, reads what the one before it measured.
    more, made = waits(guidance_change=1e-9)
    assert more == plain + STEPS - 3 and not any(each["what"] == "guidance" for each in made)
    # Everything is: each second step.
    more, made = waits(guidance_change=1e9, guidance_interval=3)
    both = [each["step"] for each in made if each["what"] == "computed"]
    assert both == [0, 1, 4, 7, 9] and more == plain + 3


def test_differences_do_not_outlive_a_regime() -> None:
    """Two steps of a regime compute both passes before any is left out."""
    pipe = tiny.tiny_wan()
    schedule = {"dense_first_steps": 4, "dense_last_steps": 2, "dense_first_layers": 0}
    cache = Cache(Told(), min_steps=1, guidance_change=1e9, sparse_share=0.0)
    with vidaccel.enable(pipe, "radial", min_tokens=0, schedule=schedule, cache=cache) as session:
        run("wan", pipe, num_inference_steps=STEPS)
        made = decided(session, "uncond")
    assert {each["step"] for each in made if each["sparse"]} == {4, 5, 6, 7}
    assert [each["step"] for each in made if each["what"] == "guidance"] == [2, 6]


def test_differences_do_not_outlive_an_expert() -> None:
    pipe = tiny.tiny_wan(two_experts=True)
    with vidaccel.enable(pipe, None, cache=Cache(Told(), min_steps=1, guidance_change=1e9, last_steps=0)) as session:
        run("wan2.2", pipe, num_inference_steps=STEPS)
        made = decided(session, "uncond")
    second = next(each["step"] for each in made if each["expert"] == "transformer_2")
    guided = [each["step"] for each in made if each["what"] == "guidance"]
    assert second > 2 and {2, second + 2} <= {*guided} and not {0, 1, second, second + 1} & {*guided}


def test_a_sparse_step_spends_less() -> None:
    """The limit is a threshold as any other: sparse attention leaves less of it."""
    pipe = tiny.tiny_wan()
    options = {"min_tokens": 0, "decay": 0.0, "block": 16, "split": 16,
               "schedule": {"dense_first_steps": 0, "dense_last_steps": 0, "dense_first_layers": 0}}  # fmt: skip

    def step_2(share: float, limit: float) -> tuple[str, float]:
        """What became of the first step that could go by the difference: nothing before it depends on the limit."""
        cache = Cache(Told(), min_steps=1, guidance_change=limit, sparse_share=share)
        with vidaccel.enable(pipe, "radial", **options, cache=cache) as session:
            run("wan", pipe)
            made = decided(session, "uncond")[2]
        assert made["sparse"]
        return made["what"], made["guidance_change"]

    what, change = step_2(0.0, 1e-9)
    assert what == "computed"
    assert step_2(0.0, change * 1.001) == ("guidance", change)
    assert step_2(0.99, change * 1.001) == ("computed", change)


def test_a_step_of_one_pass_measures_nothing() -> None:
    """A pass that was computed alone has no difference, and what the last one was grows no younger by it."""
    difference = Difference()
    assert difference.change() is None
    old, new = torch.randn(2, 1, 5, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    difference.measure(Hold(), OUTPUT, 2, old)
    assert difference.change() is None
    difference.guided = 1
    difference.measure(Hold(), OUTPUT, 5, new)
    assert difference.guided == 0
    assert difference.change() == pytest.approx(float((new - old).abs().sum() / old.abs().sum() / 3))
    # Another stream of the step is kept, and says nothing.
    said = difference.change()
    difference.measure(Hold(), (0, 1), 5, old)
    difference.measure(Hold(), (0, 1), 7, new)
    assert difference.change() == said and difference.kept[0, 1].step == 7


def test_what_is_not_a_number_is_not_steady() -> None:
    difference = Difference()
    difference.measure(Hold(), OUTPUT, 0, torch.ones(1, 2, 3))
    difference.measure(Hold(), OUTPUT, 1, torch.full((1, 2, 3), torch.nan))
    change = difference.change()
    assert change is not None and not change < 1e9


@dataclass(frozen=True)
class Corrected(ToldOutput):
    """One with measured corrections."""

    name = "corrected"
    corrects = True

    def correction(self, turn: Any, kept_step: int) -> tuple[float, float] | None:
        return 0.5, 0.1


def test_corrections_are_of_reused_steps() -> None:
    """What goes by the conditional pass is not what the policy measured the error of."""
    pipe = tiny.tiny_wan()

    def clip(policy: Any, predictor: str) -> np.ndarray:
        cache = Cache(policy, PREDICTORS[predictor](), min_steps=1, guidance_interval=2)
        with vidaccel.enable(pipe, None, cache=cache):
            return run("wan", pipe, num_inference_steps=STEPS)

    assert np.array_equal(clip(Corrected(), "affine"), clip(Corrected(), "hold"))
    assert not np.array_equal(clip(Corrected((3,)), "affine"), clip(Corrected((3,)), "hold"))


def test_room_for_differences() -> None:
    """The later pass keeps as much of its difference as of itself."""
    pipe = tiny.tiny_wan()
    for predictor, tensors in ((Hold(), 1), (Taylor(), 2), (Taylor(order=2), 3)):
        with vidaccel.enable(pipe, None, cache=Cache(Told(), predictor, min_steps=1, guidance_interval=2)) as session:
            held: list[int] = []

            def look(pipe: Any, step: int, timestep: Any, kwargs: Any, session: Any = session,
                     held: list[int] = held) -> dict[str, Any]:  # fmt: skip
                for (_, name), branch in session._runtime._branches.items():
                    kept = [*branch.kept.values(), *branch.difference.kept.values()]
                    if step == STEPS - 2:
                        held.append(sum(part.nbytes for each in kept for part in each.parts))
                        assert (name == "uncond") == bool(branch.difference.kept)
                return {}

            run("wan", pipe, num_inference_steps=STEPS, callback_on_step_end=look)
        one = held[0] // tensors
        assert held == [one * tensors, 2 * one * tensors]
        for room, fits in ((held[1] + 0.5, True), (held[1] - 0.5, False)):
            cache = Cache(Told(), predictor, min_steps=1, guidance_interval=2, max_memory=room / 1e9)
            with vidaccel.enable(pipe, None, cache=cache):
                if fits:
                    run("wan", pipe, num_inference_steps=STEPS)
                else:
                    with pytest.raises(ValueError, match="the cache would keep"):
                        run("wan", pipe, num_inference_steps=STEPS)


def test_limits() -> None:
    assert Cache(Told()).guided_steps == 0 and Cache(Told(), guidance_interval=1).guided_steps == 0
    assert Cache(Told(), guidance_interval=3).guided_steps == 2
    assert Cache(Told(), guidance_change=0.1).guided_steps == 1
    limited = Cache(Told(), guidance_change=0.1, guidance_interval=4)
    assert limited.guided_steps == 3 and json.loads(json.dumps(limited.to_dict()))["limits"]["guidance_change"] == 0.1
    for bad in (0, -1.0, True, float("nan"), "0.1"):
        with pytest.raises(ValueError, match="guidance_change"):
            Cache(Told(), guidance_change=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guidance_change 0.1 says when .* guidance_interval 1 leaves out none"):
        Cache(Told(), guidance_change=0.1, guidance_interval=1)


def test_where_there_is_nothing_to_leave_out() -> None:
    with pytest.raises(ValueError, match="guidance_change 0.1 leaves out unconditional calls, and in CogVideoX"):
        vidaccel.enable(FAMILIES["cogvideox"][0](), None, cache=Cache(Told(), guidance_change=0.1))
    pipe = tiny.tiny_wan()
    with vidaccel.enable(pipe, None, cache=Cache(Told(), min_steps=1, guidance_change=0.1)) as session:
        run("wan", pipe, guidance_scale=1.0)
        assert "note: guidance_change 0.1 had nothing to leave out" in str(session.summary())
