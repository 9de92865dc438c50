"""What a calibration knows of guided outputs, against schedulers that are watched and disturbed by the tests' own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.calibration.cases import GUIDED, PROMPTS
from tests.methods.online import TEMPLATE
from tests.tiny import tiny_cogvideox, tiny_hunyuanvideo, tiny_wan
from vidaccel.caching.calibration import CacheCalibration
from vidaccel.calibration import cache_guided as guided
from vidaccel.calibration import calibrate_cache
from vidaccel.calibration.cache import guided_of

PIPES: dict[str, Callable[[], Any]] = {
    "wan": tiny_wan, "wan2.2": lambda: tiny_wan(two_experts=True), "hunyuanvideo": tiny_hunyuanvideo,
    "cogvideox": tiny_cogvideox,
}  # fmt: skip
STEPS = 8


@contextlib.contextmanager
def disturbed(pipe: Any, change: Callable[[int, Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Outputs after guidance, as the model had them; the scheduler gets them changed."""
    scheduler, seen = type(pipe.scheduler), []
    original = scheduler.step

    def step(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(model_output.double().clone())
        return original(self, change(len(seen) - 1, model_output), *args, **kwargs)

    scheduler.step = step
    try:
        yield seen
    finally:
        scheduler.step = original


def call(family: str) -> dict[str, Any]:
    own = {name: value for name, value in GUIDED.items() if name != "max_sequence_length"} | TEMPLATE
    return (own if family == "hunyuanvideo" else GUIDED) | {"num_inference_steps": STEPS}


def latents(pipe: Any, family: str, prompt: str, seed: int, change: Any = None) -> tuple[Tensor, list[Tensor]]:
    """The final latents and the outputs of a run."""
    with disturbed(pipe, change or (lambda step, output: output)) as seen:
        found = pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **call(family))
    return found.frames.double(), seen


@pytest.fixture(scope="module", params=PIPES)
def made(request: pytest.FixtureRequest) -> tuple[str, Any, CacheCalibration]:
    pipe = PIPES[request.param]()
    found = calibrate_cache(pipe, PROMPTS[:2], probes=3, **call(request.param))
    assert "step" not in pipe.scheduler.__dict__
    return request.param, pipe, found


def test_products(made: tuple[str, Any, CacheCalibration]) -> None:
    family, pipe, found = made
    expected = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    for seed, prompt in enumerate(PROMPTS[:2]):
        outputs = latents(pipe, family, prompt, seed)[1]
        scale = sum(each.square().sum() for each in outputs) / STEPS
        for i, left in enumerate(outputs):
            for j, right in enumerate(outputs):
                expected[i, j] += (left * right).sum() / scale / 2
    assert found.guided is not None
    torch.testing.assert_close(torch.tensor(found.guided.matrix), expected, rtol=1e-5, atol=1e-6)


def test_effects(made: tuple[str, Any, CacheCalibration]) -> None:
    """At once: what one more unit of output does to the next latents. In the end: what a held step did."""
    family, pipe, found = made
    assert found.guided is not None
    final, outputs = latents(pipe, family, PROMPTS[0], 0)
    assert guided.probed(STEPS, 3) == (1, 2, 4)
    for step in (1, 2, 4):
        hold = lambda at, v, step=step: outputs[at - 1].to(v) if at == step else v  # noqa: E731
        held, _ = latents(pipe, family, PROMPTS[0], 0, hold)
        moved = (held - final).norm() / (outputs[step] - outputs[step - 1]).norm()
        assert found.guided.effects[step] == pytest.approx(moved.item(), rel=1e-3)
    last = STEPS - 1
    more, _ = latents(pipe, family, PROMPTS[0], 0, lambda at, v: v + 1e-2 * v.sign() if at == last else v)
    # Solvers that look back at former outputs are described roughly.
    rough = 1e-3 if family != "wan" and family != "wan2.2" else 0.5
    gain = (more - final).norm().item() / (1e-2 * math.sqrt(final.numel()))
    assert found.guided.effects[last] == pytest.approx(gain, rel=rough) and found.guided.effects[0] == 0


def test_without_probes_an_error_stays_what_it_is() -> None:
    pipe = tiny_hunyuanvideo()
    found = calibrate_cache(pipe, PROMPTS[:1], probes=0, **call("hunyuanvideo"))
    sigmas = pipe.scheduler.sigmas
    assert found.guided is not None
    assert found.guided.effects[1:] == pytest.approx((sigmas[1:-1] - sigmas[2:]).tolist(), rel=1e-4)


def test_between_probes_the_logarithm_of_what_remains_goes_straight() -> None:
    gains = [0.0, 0.1, 0.2, 0.2, 0.4]
    found = guided.effects(gains, {1: 0.8, 3: 0.4})
    assert found == pytest.approx((0.0, 0.8, 0.2 * 4, 0.4, 0.4))
    assert guided.effects(gains, {}) == pytest.approx(gains)
    # A probe that moved nothing says nothing.
    assert guided.effects(gains, {1: 0.0, 3: 0.4}) == pytest.approx((0.0, 0.2, 0.4, 0.4, 0.4))


def test_broken_runs_are_refused() -> None:
    steps = guided.Steps()
    steps.outputs = [torch.ones(3), torch.full((3,), torch.nan)]
    with pytest.raises(ValueError, match="outputs are not finite"):
        steps.products()


@pytest.mark.parametrize(("steps", "count", "found"), [(20, 4, (1, 3, 7, 12)), (50, 4, (1, 7, 18, 32)), (2, 4, ()),
                                                       (3, 9, (1,)), (20, 0, ()), (4, 2, (1,))])  # fmt: skip
def test_probed_steps(steps: int, count: int, found: tuple[int, ...]) -> None:
    assert guided.probed(steps, count) == found and all(0 < each < steps - 1 for each in found)


def test_solvers_of_several_outputs_a_step_have_none() -> None:
    """As long as the pipeline's own count of steps is another one than its scheduler's."""
    pipe = tiny_hunyuanvideo()
    original = pipe.scheduler.step

    def twice(*args: Any, **kwargs: Any) -> Any:
        index = pipe.scheduler._step_index
        watched(*args, **kwargs)
        pipe.scheduler._step_index = index
        return watched(*args, **kwargs)

    steps = guided.Steps()
    with steps.watching(pipe.scheduler):
        watched, pipe.scheduler.step = pipe.scheduler.step, twice
        latents(pipe, "hunyuanvideo", PROMPTS[0], 0)
        pipe.scheduler.step = watched
    assert len(steps.outputs) == 2 * STEPS and pipe.scheduler.step == original
    assert guided_of([{"timesteps": torch.zeros(1)}], {}) is None


def test_a_scheduler_that_was_changed_by_others_stays_so() -> None:
    pipe = tiny_hunyuanvideo()
    original = pipe.scheduler.step
    pipe.scheduler.step = other = lambda *args, **kwargs: original(*args, **kwargs)
    with guided.Steps().watching(pipe.scheduler):
        assert pipe.scheduler.step is not other
    assert pipe.scheduler.step is other


def test_files_say_what_was_measured(made: tuple[str, Any, CacheCalibration], tmp_path: Any) -> None:
    _, _, found = made
    found.save(tmp_path / "cache.json")
    again = CacheCalibration.load(tmp_path / "cache.json")
    assert again == found and again.digest == found.digest
    without = dataclasses.replace(found, guided=None)
    without.save(tmp_path / "none.json")
    assert CacheCalibration.load(tmp_path / "none.json") == without != found
