"""Runs the prompts of a calibration, each once, and keeps what their generations say in the work folder."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidaccel.calibration import factors, library
from vidaccel.calibration.grid import Grid
from vidaccel.calibration.made import Own, means, own_of
from vidaccel.calibration.probe import watched
from vidaccel.calibration.recorder import Recorder
from vidaccel.calibration.settings import Settings, check_whole, digest
from vidaccel.calibration.work import Work, opened
from vidaccel.pipelines import experts, family_of
from vidaccel.processes import Crew, share
from vidaccel.schedule import StepPlan
from vidaccel.site import Site

Progress = Callable[[str, int, int], None]
"""Called with what runs, denoising steps done and all of them."""
Done = tuple[dict[str, Tensor], dict[str, Any]]
"""Sums and facts of a prompt."""
OURS = ("prompt", "generator", "output_type", "callback_on_step_end")
"""Arguments of the pipeline's call that a calibration sets itself."""


class Generations:
    """The generations of a calibration at its first size.

    Args:
        kwargs: for the pipeline's call.
        folder: that keeps finished prompts, or None.
        progress: told of every step.

    Raises:
        ValueError: an unsupported pipeline, or an argument that it does not take.
    """

    work: Work

    def __init__(
        self, pipe: Any, settings: Settings, kwargs: dict[str, Any], folder: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.pipe, self.settings, self.kwargs, self.folder = pipe, settings, kwargs, folder
        self.progress = progress
        self.prompts = range(len(settings.prompts))
        self.modules = experts(pipe)
        self.families = {name: family_of(module) for name, module in self.modules.items()}
        check_whole(self.modules)
        parameters = inspect.signature(pipe.__call__).parameters
        check_kwargs(pipe, kwargs, parameters)
        self.steps = int(kwargs.get("num_inference_steps", parameters["num_inference_steps"].default))
        self.reports_steps = "callback_on_step_end" in parameters
        self._factors: dict[tuple[str, int], Tensor | None] = {}
        self._ladder: library.Ladder | None = None
        self._own: Own | None = None

    def run(self, crew: Crew) -> None:
        """Generate for every prompt that is not done yet, each in one of the processes.

        Raises:
            ValueError: a work folder of other settings; whatever only shows when the model runs.
            RuntimeError: another process has gone.
        """
        described = {**self.settings.described(), "steps": self.steps}
        self.work = opened(crew, self.folder, self.digest(), described)
        # What is measured goes by the maps of all prompts that are mapped.
        for prompts in (range(self.prompts.start, self.settings.mapping), self.prompts[self._mapped() :]):
            share(crew, prompts, self._one, self._waiting)
            self.work.see(prompts)
        with crew.together():
            self.check(self.grid)
        if self._ladder is not None:
            self._ladder.forget()

    def _mapped(self) -> int:
        """How many of the prompts run here are mapped only."""
        return max(0, self.settings.mapping - self.prompts.start)

    def _one(self, prompt: int) -> None:
        if self.work.load(prompt) is None:
            self._measure(prompt)
        self._tell(prompt, self.steps)

    def _waiting(self) -> None:
        if self.progress is not None:
            done = sum(self.work.has(prompt) for prompt in self.prompts)
            self.progress("other processes", done * self.steps, self.steps * len(self.prompts))

    def digest(self) -> str:
        """Of all that the measurements depend on."""
        return digest(self.settings, self.pipe, self.modules, self.kwargs)

    def done(self, prompt: int) -> Done:
        """A finished prompt's sums and facts."""
        found = self.work.load(prompt)
        assert found is not None
        return found

    @property
    def measured(self) -> list[Done]:
        """The finished prompts that measured errors."""
        return [self.done(prompt) for prompt in self.prompts if prompt >= self.settings.mapping]

    @property
    def grid(self) -> Grid:
        """Of finished prompts."""
        return Grid.from_dict(self.measured[0][1]["grid"])

    def check(self, grid: Grid) -> None:
        """Refuse a grid on which nothing needs to be measured: none here."""

    def ladder(self, grid: Grid) -> library.Ladder:
        """The candidates of all heads on a grid."""
        if self._ladder is None or self._ladder.layout != grid.layout:
            patterns = library.ladder(self.settings.library, grid.layout, grid.block)
            self._ladder = library.Ladder(patterns, grid.layout, grid.block)
        return self._ladder

    def own(self, grid: Grid) -> Own:
        """The candidates of single heads, from the maps of the mapping prompts."""
        if self._own is None:
            self._own = own_of(self.settings.library.learned, self.maps(), grid)
        return self._own

    def maps(self) -> dict[str, Tensor]:
        """Where the attention of the prompts lies that were mapped, see `made.means`."""
        mapped = self.settings.mapping or len(self.settings.prompts)
        return means([self.done(prompt)[0] for prompt in range(mapped)])

    def _measure(self, prompt: int) -> None:
        recorder = Recorder(self, prompt, measures=prompt >= self.settings.mapping, maps=self._maps(prompt))
        start = time.perf_counter()
        with watched(self.pipe, recorder):
            self._generate(prompt)
        grid = recorder.grid
        layers = {name: len(family.sites(self.modules[name])) for name, family in self.families.items()}
        facts = {
            "grid": grid.to_dict(), "seconds": round(time.perf_counter() - start, 3),
            "projected": all(each is not None for each in self._factors.values()),
        }  # fmt: skip
        self.work.save(prompt, recorder.sums.stacked(self.settings.bands, layers), facts)

    def _maps(self, prompt: int) -> bool:
        return prompt < self.settings.mapping or not self.settings.mapping

    def _generate(self, prompt: int) -> None:
        kwargs = dict(self.kwargs)

        def on_step_end(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._tell(prompt, step + 1)
            return tensors

        if self.reports_steps:
            kwargs["callback_on_step_end"] = on_step_end
        noise = torch.Generator("cpu").manual_seed(self.settings.seed + prompt)
        self.pipe(prompt=self.settings.prompts[prompt], generator=noise, output_type="latent", **kwargs)

    def _tell(self, prompt: int, done: int) -> None:
        if self.progress is not None:
            what = "mapping" if prompt < self.settings.mapping else "measuring"
            total = self.steps * len(self.prompts)
            self.progress(f"{what} prompt {prompt + 1}", self.prompts.index(prompt) * self.steps + done, total)

    def step_plan(self, site: Site) -> StepPlan:
        """Which steps the model's family leaves sparse."""
        schedule = self.families[site.expert].schedule(self.pipe, self.modules[site.expert])
        return schedule.resolve(site.steps, site.layers)

    def unit(self, expert: str) -> str:
        """In which an expert's position embeddings have distances."""
        return self.families[expert].distance_unit(self.modules[expert])

    def first_layers(self) -> dict[str, int]:
        """The first layer of each expert that the model's family leaves sparse."""
        plans = {name: family.schedule(self.pipe, self.modules[name]) for name, family in self.families.items()}
        return {name: schedule.resolve(self.steps, len(self.families[name].sites(self.modules[name]))).first_layer
                for name, schedule in plans.items()}  # fmt: skip

    def factor(self, expert: str, layer: int) -> Tensor | None:
        """`factors.factors_of` of a layer; None where its projection cannot be read."""
        if (expert, layer) not in self._factors:
            weight = self.families[expert].output_projection(self.modules[expert], layer)
            heads, _ = self.families[expert].heads(self.modules[expert])
            self._factors[expert, layer] = None if weight is None else factors.factors_of(weight, heads)
        return self._factors[expert, layer]


def check_kwargs(pipe: Any, kwargs: dict[str, Any], parameters: Any) -> None:
    """Refuse arguments that the pipeline's call cannot be given.

    Raises:
        ValueError: which.
    """
    for name in kwargs:
        if name in OURS:
            raise ValueError(f"a calibration sets {name} itself; generation_kwargs may not")
        if name not in parameters:
            raise ValueError(f"{type(pipe).__name__} takes no {name}")
