"""The last measurements: which candidates, on how many prompts, and what their points say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.tune.cases import FakeLab
from vidaccel.target import Target
from vidaccel.tune.candidate import key, settings
from vidaccel.tune.final import CLIP, IDENTICAL, Final, digest, spread_of
from vidaccel.tune.front import front
from vidaccel.tune.run import _refined

HELD_OUT = [f"prompt {index}" for index in range(6)]


class FakeFinal(Final):
    """Decodes nothing: PSNR is that of the latents and a little more, by prompt."""

    def __init__(self, lab: FakeLab, target: str, decoding: float = 0.2) -> None:
        self.lab, self.prompts, self.seed, self.target = lab, HELD_OUT, 0, Target.of(target)
        self.tell, self.runner, self._here = lambda _: None, None, {"git": None}
        self.decoding, self.order = decoding, []

    def _run(self, prompt: str) -> Any:
        self.lab.clock.now += 1 + self.decoding
        self.order.append(("dense", prompt))
        return SimpleNamespace(denoising=1.0, seconds=1 + self.decoding)

    def _one(self, candidate: dict, prompt: str, dense: Any) -> None:
        snr, time = self.lab.judge(candidate, 0)
        self.lab.clock.now += time + self.decoding
        self.order.append((key(candidate), prompt))
        psnr = snr + 5 + 0.5 * HELD_OUT.index(prompt)
        self.lab.journal.add(CLIP, self.lab.budget.spent, candidate=key(candidate), settings=candidate, prompt=prompt,
                             dense=dense.denoising, fast=1.1 * time, metrics={"psnr": psnr, "ssim": 0.9},
                             decoding=self.decoding)  # fmt: skip


def judge(candidate: dict, index: int) -> tuple[float, float]:
    steps = len(candidate["cache"]["compute"])
    return 10.0 + 1.5 * steps, steps / 20


def lab(total: float = 1000.0, path=None) -> FakeLab:
    """One that has searched: all numbers of steps from 4 to 20."""
    made = FakeLab(judge, total=total, path=path)
    reference = {"model": "sha256:0", "dtype": "float32"}
    made.cells = [SimpleNamespace(prompt="p", seed=0, call={"guidance_scale": 3.0, "height": 64}, reference=reference)]
    made.runner = SimpleNamespace(steps=20)  # type: ignore[assignment]
    for steps in range(4, 21):
        made.attempt(settings(cache={"name": "static", "compute": list(range(steps))}), 0)
    return made


def steps_of(point: Any) -> int:
    return len(point.settings["cache"]["compute"])


def test_rounds_are_in_turns_with_dense_and_points_say_what_they_saw():
    made = FakeFinal(lab(), "speedup>=100")
    made.run(1000)
    assert made.order[0] == ("dense", HELD_OUT[0]) and made.order[9] == ("dense", HELD_OUT[1])
    found = made.points()
    assert {steps_of(each) for each in found} >= {4, 19} and max(map(steps_of, found)) < 20, "as slow as dense"
    point = next(each for each in found if steps_of(each) == 4)
    assert point.speedup == pytest.approx(1 / (1.1 * 4 / 20), rel=1e-3)
    assert point.metrics["psnr"]["mean"] == pytest.approx(10 + 6 + 5 + 1.25)
    assert point.metrics["psnr"]["low"] < point.metrics["psnr"]["mean"] < point.metrics["psnr"]["high"]
    evidence = point.evidence
    assert evidence["steps"] == 20 and evidence["guidance"] == 3.0 and evidence["call"]["height"] == 64
    assert evidence["prompts"] == {"count": 6, "sha256": digest(HELD_OUT)}
    assert evidence["seconds"]["dense"] == [1.0] * 6 and evidence["searched"]["same_prompts"] is False
    assert evidence["searched"]["speedup"] == pytest.approx(5)


def true(steps: int) -> dict[str, float]:
    """What a candidate of `judge` has, as a target sees it."""
    psnr = spread_of([10 + 1.5 * steps + 5 + 0.5 * index for index in range(6)])["low"]
    return {"psnr": psnr, "speedup": 1 / (1.1 * steps / 20)}


@pytest.mark.parametrize("target", ["psnr>=30", "speedup>=1.5", "speedup>=1.3 and psnr>=32", "speedup>=1.1"])
def test_it_closes_in_on_the_target(target):
    made = FakeFinal(lab(), target)
    made.run(1000)
    fit = [steps for steps in range(4, 20) if Target.of(target).met(true(steps).get)]
    best = made.best()
    assert best is not None and steps_of(best) == (min(fit) if "psnr" in target else max(fit))
    # What does not serve the target comes after what does.
    order = list(dict.fromkeys(own for own, _ in made.order if own != "dense"))
    assert order.index(key(dict(best.settings))) < 11, "it closes in, and does not try them all"


def test_what_cannot_be_reached_ends_with_what_comes_nearest():
    for target, steps in (("psnr>=99", 19), ("speedup>=99", 4), ("speedup>=1.2 and psnr>=99", 19)):
        made = FakeFinal(lab(), target)
        made.run(1000)
        assert made.best() is None and steps_of(made.nearest()) == steps


def test_it_ends_in_time_and_goes_on(tmp_path):
    first = lab(total=1000, path=tmp_path)
    began = first.clock.now
    made = FakeFinal(first, "psnr>=30")
    made.run(began + 20)
    assert first.clock.now <= began + 20 and 2 <= len(made.points()) < 12
    again = lab(total=1000, path=tmp_path)
    further = FakeFinal(again, "psnr>=30")
    further.run(1000)
    assert not set(made.order) & {each for each in further.order if each[0] != "dense"}
    assert len(further.points()) > len(made.points()) or further.order


@pytest.mark.parametrize("seconds, most", [(1.0, 0), (4.5, 1), (9.0, 3)])
def test_with_little_time_there_are_fewer_points(seconds, most):
    made = FakeFinal(lab(), "psnr>=30")
    began = made.lab.clock.now
    made.run(began + seconds)
    assert len(made.points()) <= most and made.lab.clock.now <= began + seconds
    assert bool(made.points()) is bool(most)


def test_identical_clips_have_a_value():
    made = Final.__new__(Final)
    import numpy as np

    from vidaccel.eval.clip import Clip

    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    clip = Clip(frames, np.ones((1, 4), np.float32))
    values = made._metrics(clip, clip)
    assert values["psnr"] == values["latent_snr"] == IDENTICAL and values["ssim"] == 1 and values["latent_error"] == 0
    other = made._metrics(clip, Clip(255 - frames, 2 * clip.latents))
    assert other["psnr"] < 20 and other["latent_snr"] == pytest.approx(0)


def test_an_interval_holds_its_mean():
    assert spread_of([3.0, 3.0]) == {"mean": 3.0, "low": 3.0, "high": 3.0}
    found = spread_of([1.0, 2.0, 6.0])
    assert found["low"] < found["mean"] == 3 < found["high"]


def test_the_front_of_the_search_is_a_line():
    assert len(front(lab().found())) == 17


def test_what_the_search_finds_later_is_measured_too():
    made = FakeFinal(lab(), "speedup>=4")
    made.run(1000)
    better = settings(cache={"name": "static", "compute": list(range(7)), "file": "dense"})
    made.lab.judge = lambda candidate, index: (25.0, 0.24) if "file" in candidate["cache"] else judge(candidate, index)
    made.lab.attempt(better, 0)
    order = len(made.order)
    made.more(1000)
    assert better in [dict(each.settings) for each in made.points()]
    assert next(own for own, _ in made.order[order:] if own != "dense") == key(better)


def test_room_for_one_more():
    made = FakeFinal(lab(), "speedup>=4")
    made.run(1000)
    # Two prompts, each with a dense run and one as slow, and both decoded.
    assert made.room(4.8) and not made.room(4.7)


class Refining:
    """A search that finds something a few times."""

    def __init__(self, lab: FakeLab, times: int) -> None:
        self.lab, self.times, self.until = lab, times, []

    def refine(self, until: float) -> bool:
        """Takes all the time that it is given."""
        self.until.append(until)
        self.lab.clock.now += until - self.lab.budget.spent
        self.times -= 1
        return self.times >= 0


def test_it_goes_on_while_there_is_time_and_something_new():
    made = FakeFinal(lab(total=200), "speedup>=4")
    made.run(made.lab.budget.spent + 30)
    calls, spent = [], made.lab.budget.spent
    made.more = calls.append
    search = Refining(made.lab, 2)
    _refined(search, made)
    assert calls == [200, 200] and len(search.until) == 3
    assert search.until[0] == pytest.approx(spent + (200 - spent) / 2)
    search = Refining(made.lab, 99)
    _refined(search, made)
    assert made.lab.budget.left < 10 and len(search.until) < 10
