"""The map of a run: what each layer did in each step, of real runs and counted by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

import vidaccel
from tests import tiny
from tests.test_session import SPARSE, Sites
from vidaccel.caching.log import Decision
from vidaccel.step_map import Course
from vidaccel.summary import Summary


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


def told(summary: Summary) -> tuple[list[str], list[list[float | None]]]:
    found = summary.step_map()
    assert found is not None and found["layers"] == 2 and found == json.loads(json.dumps(found))
    assert all(len(step["kinds"]) == len(step["density"]) == 2 for step in found["steps"])
    return [step["kinds"] for step in found["steps"]], [step["density"] for step in found["steps"]]


def test_a_sparse_run(pipe: Any) -> None:
    schedule = {"dense_first_steps": 1, "dense_last_steps": 1, "dense_first_layers": 1}
    with vidaccel.enable(pipe, Sites(dense_layer=0), min_tokens=0, schedule=schedule) as session:
        assert session.summary().step_map() is None
        tiny.generate(pipe, output_type="latent")
        summary = session.summary()
    assert summary.tally.layout is not None
    tokens = summary.tally.layout.tokens
    kept = [[round(16 * (1 + layer + step % 2) / tokens, 4) for step in range(4)] for layer in range(2)]
    # Layer 0 is dense by the schedule.
    assert told(summary) == (["DD", "DS", "DS", "DD"], [[1, 1], [1, kept[1][1]], [1, kept[1][2]], [1, 1]])
    with vidaccel.enable(pipe, Sites(dense_layer=1), **SPARSE) as session:
        tiny.generate(pipe, output_type="latent")
        # Layer 1 is dense as the method plans.
        assert told(session.summary()) == (["SD"] * 4, [[each, 1] for each in kept[0]])


def test_a_cached_run(pipe: Any) -> None:
    cache = {"name": "static", "compute": [0, 2], "min_steps": 1, "predictor": "hold"}
    with vidaccel.enable(pipe, None, cache=cache) as session:
        tiny.generate(pipe, output_type="latent")
        assert told(session.summary()) == (["DD", "RR", "DD", "RR"], [[1, 1], [None, None]] * 2)
    with vidaccel.enable(pipe, Sites(dense_layer=9), **SPARSE, cache={**cache, "predictor": "taylor"}) as session:
        tiny.generate(pipe, output_type="latent")
        kinds, densities = told(session.summary())
    assert kinds == ["SS", "PP", "SS", "PP"] and densities[1] == [None, None] and 0 < densities[0][0] < 1


def test_a_run_too_short_for_its_cache_is_computed(pipe: Any) -> None:
    with vidaccel.enable(pipe, None, cache={"name": "static", "compute": [0, 2], "min_steps": 12}) as session:
        tiny.generate(pipe, output_type="latent")
        assert told(session.summary())[0] == ["DD"] * 4


def test_a_cache_that_passes_by_some_blocks() -> None:
    """Of four blocks the middle two are reused in the second step, of the unconditional pass alone."""
    course = Course()
    for branch in ("cond", "uncond"):
        for step in range(2):
            course.begin(("transformer", branch, step), 4)
            course.run(("transformer", branch, step), range(4) if step == 0 or branch == "cond" else (0, 3))
    made = [Decision(step, "transformer", branch, "reused" if step and branch == "uncond" else "computed", None, False,
                     True) for step in range(2) for branch in ("cond", "uncond")]  # fmt: skip
    densities = {("transformer", "cond", layer, 1): 0.1 * layer for layer in range(4)}
    found = course.step_map(densities, {("transformer", "cond", 3, 1)}, made)
    assert found is not None and [step["kinds"] for step in found["steps"]] == ["DDDD", "MMMD"]
    assert found["steps"][1]["density"] == [0.5, 0.1, 0.2, 1.0]


def test_a_pass_that_goes_by_the_other_is_predicted() -> None:
    course = Course()
    course.begin(("transformer", "uncond", 0), 1)
    made = [Decision(0, "transformer", "uncond", "guidance", None, False, False)]
    assert course.step_map({}, set(), made) == {"layers": 1, "steps": [{"kinds": "P", "density": [None]}]}


def test_steps_without_a_call_stand_on_those_before() -> None:
    course = Course()
    for step in (0, 2):
        course.begin(("transformer", "cond", step), 1)
        course.run(("transformer", "cond", step), [0])
    found = course.step_map({}, set())
    assert found is not None and [step["kinds"] for step in found["steps"]] == ["D", "R", "D"]


def test_experts_follow_one_another_if_they_are_as_deep() -> None:
    pipe = tiny.tiny_wan(two_experts=True)
    with vidaccel.enable(pipe, Sites(dense_layer=1), **SPARSE) as session:
        tiny.generate(pipe, output_type="latent")
        assert told(session.summary())[0] == ["SD"] * 4
    course = Course()
    course.begin(("transformer", "cond", 0), 2)
    course.begin(("transformer_2", "cond", 1), 3)
    assert course.step_map({}, set()) is None
