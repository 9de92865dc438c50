"""MagCache against the authors' loop, written out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

import vidaccel
from tests import tiny
from tests.caching.cases import run
from tests.caching.made import computed_by, made, turn
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.caching.magcache import MagCache
from vidaccel.caching.published_ratios import COND, FIRST, MAGCACHE, SECOND, UNCOND


def loop(
    gammas: Sequence[float], threshold: float, max_skips: int, retention: float, forced: Sequence[int] = (0,)
) -> list[int]:  # fmt: skip
    """The computed steps of one expert and branch, as the paper has them."""
    product, error, skipped, computed = 1.0, 0.0, 0, []
    for step, gamma in enumerate(gammas):
        reuse = False
        if step >= int(len(gammas) * retention) and step not in forced:
            product, skipped = product * gamma, skipped + 1
            error += abs(1 - product)
            reuse = error < threshold and skipped <= max_skips
        if not reuse:
            product, error, skipped = 1.0, 0.0, 0
            computed.append(step)
    return computed


def ratios(calibration: CacheCalibration, expert: str, branch: str) -> tuple[float, ...]:
    return calibration.track(expert, branch).ratio


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("threshold", "max_skips", "retention"), [(0.12, 4, 0.2), (0.03, 2, 0.0), (9.0, 3, 0.45)])
def test_steps_are_the_papers(seed: int, threshold: float, max_skips: int, retention: float) -> None:
    calibration = made(30, seed=seed)
    policy = MagCache(calibration, threshold, max_skips, retention)
    for branch in ("cond", "uncond"):
        for forced in ((0, 29), (0, 11, 12, 29)):
            expected = loop(ratios(calibration, "transformer", branch), threshold, max_skips, retention, forced)
            assert computed_by(policy, 30, forced=forced, branch=branch) == expected
            assert 3 < len(expected) < 30


def test_branches_have_tables_of_their_own() -> None:
    policy = MagCache(made(30), 0.06, 4)
    assert not policy.leads
    assert computed_by(policy, 30, branch="cond") != computed_by(policy, 30, branch="uncond")
    with pytest.raises(ValueError, match="no guidance branch 'pass2'"):
        policy.decide(turn(9, 1, 30, branch="pass2"), None, {})  # type: ignore[arg-type]


def test_each_expert_begins_anew() -> None:
    calibration = made(40, switch=24)
    policy = MagCache(calibration, 9.0, 9, 0.25)
    computed = computed_by(policy, 40, switch=24)
    first = loop(ratios(calibration, "transformer", "cond"), 9.0, 9, 0.25)
    second = loop(ratios(calibration, "transformer_2", "cond"), 9.0, 9, 0.25)
    assert computed == first + [24 + step for step in second]
    assert computed[:6] == [0, 1, 2, 3, 4, 5] and [each for each in computed if each > 23][:4] == [24, 25, 26, 27]


@pytest.mark.parametrize("steps", [1, 2, 15, 30, 47, 60])
def test_other_numbers_of_steps_take_the_nearest_entries(steps: int) -> None:
    """Each step's place in the run, from 0 to 1, and the entry whose place is nearest; index 0 for step 0 alone."""
    calibration = made(30)
    table = ratios(calibration, "transformer", "cond")
    gammas = [table[0]]
    for step in range(1, steps):
        place = step / (steps - 1)
        # The later of two as near.
        gammas.append(table[min(range(29, 0, -1), key=lambda entry: round(abs(entry / 29 - place), 9))])
    expected = loop(gammas, 0.12, 4, 0.2)
    assert computed_by(MagCache(calibration), steps) == expected
    assert MagCache.any_steps


def test_what_was_dropped_is_computed() -> None:
    policy = MagCache(made(30), 9.0, 9)
    assert policy.decide(turn(20, 2, 30), None, {}).reuse  # type: ignore[arg-type]
    assert not policy.decide(turn(20, 0, 30), None, {}).reuse  # type: ignore[arg-type]


def test_threshold_shrinks_with_the_allowance() -> None:
    policy = MagCache(made(30))
    full = policy.decide(turn(20, 1, 30), None, {})  # type: ignore[arg-type]
    assert full.reuse and full.indicator is not None
    assert full.indicator == pytest.approx(abs(1 - ratios(made(30), "transformer", "cond")[20]))
    share = full.indicator / 0.12
    assert not policy.decide(turn(20, 1, 30, allowance=share), None, {}).reuse  # type: ignore[arg-type]
    assert policy.decide(turn(20, 1, 30, allowance=share * 1.01), None, {}).reuse  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"file": None}, "needs a calibration.* or a model .*wan2.1-t2v-14b"),
     ({"threshold": 0}, "threshold"), ({"threshold": True}, "threshold"),
     ({"max_skips": 0}, "max_skips"), ({"max_skips": 2.0}, "max_skips"), ({"retention": 1.0}, "retention"),
     ({"retention": -0.1}, "retention"), ({"retention": "x"}, "retention"), ({"file": 3}, "path of a JSON file"),
     ({"model": "hunyuanvideo"}, "leave out file, or model 'hunyuanvideo'"),
     ({"file": None, "model": "cogvideox-5b"}, "'cogvideox-5b'; choose wan2.1-t2v-1.3b, .* or calibrate"),
     ({"file": None, "model": "hunyuanvideo", "threshold": 0}, "threshold 0 is not"),
     ({"file": None, "model": "hunyuanvideo", "retention": 1}, "retention 1 is not")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MagCache(**({"file": made()} | options))


def test_steps_must_be_known() -> None:
    with pytest.raises(ValueError, match="give num_inference_steps"):
        MagCache(made()).decide(turn(3, 1, None), None, {})  # type: ignore[arg-type]


def parts(model: str) -> list[tuple[int, int, str]]:
    """First step, the one after the last, and name of each expert of a published model."""
    switch, steps = MAGCACHE[model].switch, MAGCACHE[model].steps
    return [(0, steps, FIRST)] if switch is None else [(0, switch, FIRST), (switch, steps, SECOND)]


@pytest.mark.parametrize("model", MAGCACHE)
def test_published_ratios(model: str) -> None:
    known, policy = MAGCACHE[model], MagCache(model=model)
    assert known.steps == (40 if "i2v-14b" in model or "a14b" in model else 50)
    assert (policy.threshold, policy.max_skips, policy.retention) == (*known.slow, known.retention)
    assert policy.calibration is None and known.slow <= known.fast
    for place, branch in enumerate(known.branches):
        # As the authors lay them out: a 1 for each pass, and then the passes in turn.
        gammas = ([1.0] * len(known.branches) + list(known.ratios))[place :: len(known.branches)]
        computed = computed_by(policy, known.steps, switch=known.switch, branch=branch)
        expected: list[int] = []
        for start, end, expert in parts(model):
            ran = loop(gammas[start:end], *known.slow, 1 if expert in known.computed else known.retention)
            expected += [start + step for step in ran]
        assert computed == expected
    again = MagCache(**json.loads(json.dumps(policy.to_dict()))["options"])
    assert again == policy and hash(again) == hash(policy)


@pytest.mark.parametrize("model", MAGCACHE)
def test_published_ratios_are_whole(model: str) -> None:
    """Both passes' are nearly the same, and two experts' runs dip where the second takes over: a number that is
    missing or doubled would show."""
    known = MAGCACHE[model]
    assert len(known.ratios) == len(known.branches) * (known.steps - 1)
    tables = [known.of(expert, branch) for _, _, expert in parts(model) for branch in known.branches]
    assert {each.steps for each in tables} == {known.steps}
    for _, _, expert in parts(model):
        both = [known.of(expert, branch).ratio for branch in known.branches]
        assert all(abs(left - right) < 0.01 for left, right in zip(both[0], both[-1], strict=True))
    if known.switch is not None:
        dip = known.of(SECOND, COND).ratio[0]
        assert dip < min(known.of(FIRST, COND).ratio) and dip < min(known.of(SECOND, COND).ratio[1:10])


@pytest.mark.parametrize(
    ("model", "which", "minutes"),
    [
        ("wan2.1-t2v-14b", "fast", (60.07, 21.67)), ("wan2.2-t2v-a14b", "slow", (27.15, 18.17)),
        ("wan2.2-i2v-a14b", "slow", (26.72, 20.08)), ("wan2.2-ti2v-5b", "slow", (10.65, 5.4)),
        ("hunyuanvideo", "slow", (54.08, 23.83)), ("hunyuanvideo", "fast", (54.08, 19.55)),
        ("hunyuanvideo-540p", "slow", (20.17, 8.83)), ("hunyuanvideo-540p", "fast", (20.17, 7.28)),
    ],
)  # fmt: skip
def test_as_many_steps_are_computed_as_the_authors_timings_say(
    model: str, which: str, minutes: tuple[float, float]
) -> None:
    """Without a cache and with it, from their READMEs. Those of Wan 2.1 1.3B and from images are nearer to the square
    roots that the paper takes of the ratios."""
    known = MAGCACHE[model]
    threshold, max_skips = getattr(known, which)
    computed = computed_by(MagCache(None, threshold, max_skips, model=model), known.steps, switch=known.switch)
    assert known.steps / len(computed) == pytest.approx(minutes[0] / minutes[1], rel=0.06)


def test_options_beside_a_model_win() -> None:
    given = MagCache(model="wan2.1-t2v-14b", threshold=0.1, max_skips=3, retention=0.0)
    assert (given.threshold, given.max_skips, given.retention) == (0.1, 3, 0.0)
    measured = MagCache(made())
    assert (measured.threshold, measured.max_skips, measured.retention, measured.published) == (0.12, 4, 0.2, None)


@pytest.mark.parametrize("steps", [20, 30, 50, 80])
def test_published_ratios_for_other_numbers_of_steps(steps: int) -> None:
    known = MAGCACHE["wan2.1-i2v-14b-480p"]
    table = (1.0, *known.ratios[1::2])
    nearest = [table[0]] + [table[int(step * 39 / (steps - 1) + 0.5) or 1] for step in range(1, steps)]
    policy = MagCache(model="wan2.1-i2v-14b-480p")
    assert computed_by(policy, steps, branch=UNCOND) == loop(nearest, 0.12, 4, 0.2)


@pytest.mark.parametrize(("switch", "steps"), [(10, 20), (13, 20), (15, 40), (30, 40)])
def test_a_switch_elsewhere_keeps_to_the_experts_own_entries(switch: int, steps: int) -> None:
    """With another shift or number of steps: the dip at the authors' switch counts for no step."""
    policy = MagCache(model="wan2.2-t2v-a14b", threshold=9.0, max_skips=99, retention=0.0)
    assert computed_by(policy, steps, switch=switch) == [0, switch]
    first, second = (MAGCACHE["wan2.2-t2v-a14b"].of(expert, COND).ratio for expert in (FIRST, SECOND))
    for step in range(1, steps):
        late = step > switch
        now = turn(step, 1, steps, expert=SECOND if late else FIRST, expert_step=switch if late else 0)
        found = policy.decide(now, None, {}).indicator  # type: ignore[arg-type]
        assert found in [pytest.approx(abs(1 - each)) for each in (second if late else first)[1:]]


def test_published_ratios_know_their_passes_and_experts() -> None:
    with pytest.raises(ValueError, match="branch cond, not 'uncond'"):
        MagCache(model="hunyuanvideo").decide(turn(0, 0, 50, branch=UNCOND), None, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of transformer, and this is transformer_2"):
        MagCache(model="wan2.1-t2v-14b").decide(turn(0, 0, 50, expert=SECOND), None, {})  # type: ignore[arg-type]


def test_runs_with_published_ratios() -> None:
    pipe = tiny.tiny_wan()
    for wrong in ("wan2.2-t2v-a14b", "hunyuanvideo"):
        with pytest.raises(ValueError, match=f"ratios of '{wrong}' are for a .*, not for a WanTransformer3DModel"):
            vidaccel.enable(pipe, None, cache={"name": "magcache", "model": wrong})
    cache = {"name": "magcache", "model": "wan2.1-t2v-1.3b", "min_steps": 1}
    with vidaccel.enable(pipe, None, cache=cache) as session:
        run("wan", pipe, num_inference_steps=12)
        made = session.summary().to_dict()["cache"]
    policy = MagCache(model="wan2.1-t2v-1.3b")
    computed = computed_by(policy, 12, forced=(0, 11))
    found = [each["step"] for each in made["decisions"] if each["branch"] == COND and each["what"] == "computed"]
    assert found == computed and 4 < len(computed) < 12
