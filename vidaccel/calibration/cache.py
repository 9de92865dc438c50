"""`vidaccel.calibrate_cache`: one generation per prompt, from which it is known how alike a model's steps are."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel._version import __version__
from vidaccel.api import facts, set_aside
from vidaccel.architecture import describe
from vidaccel.caching.calibration import DENSE, CacheCalibration, shift_of
from vidaccel.caching.guided import Guided, exact
from vidaccel.caching.track import MAX_STEPS, Track, rounded
from vidaccel.calibration import cache_guided as guided
from vidaccel.calibration import cache_measures as measures
from vidaccel.calibration.cache_recorder import Recorder
from vidaccel.calibration.generation import Progress, check_kwargs
from vidaccel.calibration.settings import check_whole, fingerprint
from vidaccel.calibration.settings import described as described_argument
from vidaccel.calibration.work import Work, opened
from vidaccel.pipelines import experts, family_of
from vidaccel.processes import Crew, share
from vidaccel.session import ATTRIBUTE

FINAL = "final"
"""What the first prompt ended in, for probes to be compared with; of no other."""
SAMPLES = 1024
"""Video tokens of which residuals of blocks are compared."""


def calibrate_cache(
    pipe: Any,
    prompts: Sequence[str],
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    out: str | os.PathLike[str] | None = None,
    work: str | os.PathLike[str] | None = None,
    samples: int = SAMPLES,
    probes: int = guided.PROBES,
    seed: int = 0,
    sparse: bool = False,
    progress: Progress | None = None,
    **call: Any,
) -> CacheCalibration:
    """Measure how alike the steps of a pipeline's runs are, in one generation per prompt, for policies of step caching,
    and in `probes` more of the first prompt, what an error of a step does to the clip.

    What is enabled on the pipeline is put aside and comes back, unless `sparse`. Residuals of the blocks are compared
    at sampled video tokens, the model's outputs in full. Memory: of each guidance branch, all steps' outputs in fp32
    and sampled residuals, in the CPU's memory; and the last step's sampled residual of each block, beside the blocks.

    Args:
        pipe: a pipeline of a supported family whose blocks can be watched.
        prompts: what to generate; MagCache's authors found one enough.
        num_inference_steps, guidance_scale: of the runs to calibrate for; the pipeline's default each.
        out: a file to write the calibration to, too.
        work: a folder in which each finished prompt is kept: called again with the same arguments, it goes on there.
        samples: video tokens of which residuals of blocks are compared.
        probes: generations in which one step is held, each another one; without any, an error is taken to do at the end
            what it did at once.
        seed: of the noise, drawn on the CPU, and of the sampled tokens; prompt ``i`` has ``seed + i``.
        sparse: measure with the sparse attention that is enabled on the pipeline, as the steps of sparse runs change
            otherwise than those of dense ones; the calibration is then for runs with just that.
        progress: called with what runs, denoising steps done and all of them.
        call: for the pipeline's call; nothing is decoded.

    Raises:
        ValueError: whatever cannot be done, before anything runs, as far as it can be known then.
    """
    named = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    kwargs = call | {name: value for name, value in named.items() if value is not None}
    made = measured(pipe, prompts, kwargs, samples=samples, seed=seed, sparse=sparse, work=work, probes=probes,
                    progress=progress)  # fmt: skip
    assert made is not None
    if out is not None:
        made.save(out)
    return made


def measured(
    pipe: Any, prompts: Sequence[str], kwargs: dict[str, Any], *, samples: int, seed: int, sparse: bool,
    work: str | os.PathLike[str] | None, probes: int, progress: Progress | None, crew: Crew | None = None,
) -> CacheCalibration | None:  # fmt: skip
    """`calibrate_cache` without writing it; None in other processes than the main one.

    Args:
        kwargs: for the pipeline's call.
        crew: the processes that share the generations, each of which calls this with the same arguments and a pipeline
            of the same model; this one alone by default. Several need a `work` folder that all of them see.
    """
    check(prompts, samples, seed, probes)
    return Runs(pipe, tuple(prompts), kwargs, samples, seed, sparse, work, probes).run(progress, crew or Crew())


def check(prompts: Sequence[str], samples: int, seed: int, probes: int = 0) -> None:
    """Refuse arguments that need no model to be seen as wrong; see `calibrate_cache`.

    Raises:
        ValueError: one that cannot be.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts are a list of texts, not one text")
    if not prompts or not all(isinstance(each, str) and each.strip() for each in prompts):
        raise ValueError("a calibration needs prompts: texts, none empty")
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0), ("probes", probes, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} is not a whole number of at least {least}")


class Runs:
    """The generations of a calibration.

    Args:
        kwargs: for the pipeline's call.
        work: a folder that keeps finished prompts, or None.

    Raises:
        ValueError: an unsupported pipeline, an argument that it does not take, or sparse attention that is not there.
    """

    def __init__(
        self, pipe: Any, prompts: tuple[str, ...], kwargs: dict[str, Any], samples: int, seed: int, sparse: bool,
        work: str | os.PathLike[str] | None, probes: int = 0,
    ) -> None:  # fmt: skip
        self.pipe, self.prompts, self.kwargs = pipe, prompts, kwargs
        self.samples, self.seed, self.folder, self.attention = samples, seed, work, DENSE
        self.modules: dict[str, nn.Module] = experts(pipe)
        self.families = {name: family_of(module) for name, module in self.modules.items()}
        self.parameters = inspect.signature(pipe.__call__).parameters
        check_kwargs(pipe, kwargs, self.parameters)
        self.steps = self._argument("num_inference_steps")
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"num_inference_steps {self.steps!r} is not a whole number from 1 to {MAX_STEPS}")
        self.probed = guided.probed(self.steps, probes)
        self._check_model()
        if sparse:
            self.attention = self._enabled()

    def _check_model(self) -> None:
        """Refuse a model whose blocks cannot be watched, or whose clips are split."""
        check_whole(self.modules)
        for module, family in zip(self.modules.values(), self.families.values(), strict=True):
            if not family.cacheable:
                raise ValueError(f"the blocks of {type(module).__name__} cannot be watched: its steps have no cache")

    def _enabled(self) -> str:
        """The hash of the sparse attention that is enabled; refuses a pipeline with none, or with a cache."""
        session = next(iter(self.modules.values())).__dict__.get(ATTRIBUTE)
        if session is None:
            raise ValueError("sparse=True measures with the sparse attention that is enabled, and none is: call enable "
                             "first")  # fmt: skip
        if session.setting.cache is not None:
            raise ValueError("a cache is enabled on the pipeline, and a calibration computes every step: enable "
                             "sparse attention alone")  # fmt: skip
        found: str = session.setting.attention
        return found

    def run(self, progress: Progress | None, crew: Crew) -> CacheCalibration | None:
        """Generate for every prompt that is not done yet, each in one of the processes, and put all together in the
        main one; None in the others.

        Raises:
            ValueError: a work folder of other settings; whatever only shows when the model runs.
            RuntimeError: another process has gone.
        """
        work = opened(crew, self.folder, self._digest(), {"steps": self.steps, **self._prompts()})
        prompts = range(len(self.prompts))
        self._share(crew, work, prompts, lambda index: self._measured(index, progress), progress)
        work.see(prompts)
        final = self._kept(work, 0).get(FINAL)
        probes = range(len(prompts), len(prompts) + (0 if final is None else len(self.probed)))
        self._share(crew, work, probes, lambda index: self._probe(index, final, progress), progress)
        if not crew.main:
            # From here on the main one may remove the folder.
            return None
        work.see(probes)
        moved = {self._held(index): self._kept(work, index)["moved"].item() for index in probes}
        return self._together([self._kept(work, index) for index in prompts], moved)

    def _share(self, crew: Crew, work: Work, indices: range, make: Callable[[int], dict[str, Tensor]],
               progress: Progress | None) -> None:  # fmt: skip
        """Some of the generations, each in one of the processes; what was done before is not done again."""

        def one(index: int) -> None:
            if work.load(index) is None:
                work.save(index, make(index), {})
            self._tell(progress, index, self.steps)

        def waiting() -> None:
            if progress is not None:
                done = sum(map(work.has, range(self._all)))
                progress("other processes", done * self.steps, self._all * self.steps)

        share(crew, indices, one, waiting)

    @staticmethod
    def _kept(work: Work, index: int) -> dict[str, Tensor]:
        """What a generation measured that is done."""
        done = work.load(index)
        assert done is not None
        return done[0]

    @property
    def _all(self) -> int:
        """How many generations there are."""
        return len(self.prompts) + len(self.probed)

    def _held(self, index: int) -> int:
        """The step that a probe, one of all generations, holds."""
        return self.probed[index - len(self.prompts)]

    def _argument(self, name: str) -> Any:
        default = self.parameters[name].default if name in self.parameters else None
        return self.kwargs.get(name, default)

    def _prompts(self) -> dict[str, Any]:
        hashed = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        return {"prompts": len(self.prompts), "prompts_sha256": hashed}

    def _digest(self) -> str:
        """Of all that the measurements depend on."""
        hashed = hashlib.sha256()
        scheduler = self.pipe.scheduler
        values = [__version__, torch.__version__, type(self.pipe).__name__, type(scheduler).__name__,
                  dict(scheduler.config), shift_of(scheduler), self.prompts, self.samples, self.seed, self.attention,
                  self.probed,
                  sorted((name, described_argument(value)) for name, value in self.kwargs.items())]  # fmt: skip
        hashed.update(json.dumps(values, default=str).encode())
        for name, module in self.modules.items():
            hashed.update(name.encode())
            fingerprint(hashed, module)
        return hashed.hexdigest()

    def _measured(self, index: int, progress: Progress | None) -> dict[str, Tensor]:
        clips = self._argument("num_videos_per_prompt") or 1
        recorder = Recorder(self.pipe, self.modules, self.families, clips, self.samples, self.seed + index)
        with recorder.watching():
            steps = self._generate(index, index, None, progress)
        found = recorder.result()
        # Solvers that take more than one output a step have no products: what uses them says so.
        if len(steps.outputs) == self.steps:
            found |= {"products": steps.products(), "gains": steps.gains()}
            if index == 0:
                found[FINAL] = steps.latents[-1]
        return found

    def _probe(self, index: int, final: Tensor | None, progress: Progress | None) -> dict[str, Tensor]:
        """The first prompt once more, with a step held."""
        assert final is not None
        return {"moved": torch.tensor(guided.moved(final, self._generate(0, index, self._held(index), progress)))}

    def _generate(self, prompt: int, index: int, hold: int | None, progress: Progress | None) -> guided.Steps:
        """One generation, the one with this number of all, and what its scheduler was given."""
        steps = guided.Steps(hold)
        aside = set_aside(self.pipe) if self.attention == DENSE else contextlib.nullcontext()
        kwargs = dict(self.kwargs)
        if "callback_on_step_end" in self.parameters:
            kwargs["callback_on_step_end"] = self._teller(index, progress)
        noise = torch.Generator("cpu").manual_seed(self.seed + prompt)
        with aside, steps.watching(self.pipe.scheduler):
            self.pipe(prompt=self.prompts[prompt], generator=noise, output_type="latent", **kwargs)
        return steps

    def _teller(self, index: int, progress: Progress | None) -> Any:
        def told(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._tell(progress, index, step + 1)
            return tensors

        return told

    def _tell(self, progress: Progress | None, index: int, done: int) -> None:
        if progress is not None:
            probe = index >= len(self.prompts)
            what = f"probing step {self._held(index)}" if probe else f"measuring prompt {index + 1}"
            progress(what, index * self.steps + done, self.steps * self._all)

    def _together(self, found: Sequence[Mapping[str, Tensor]], moved: dict[int, float]) -> CacheCalibration:
        """The calibration, from what each prompt measured."""
        times = [rounded_time(each) for each in found[0]["timesteps"].tolist()]
        named = [set(each) - {FINAL} for each in found]
        if any(names != named[0] for names in named) or any(each["timesteps"].shape != found[0]["timesteps"].shape
                                                            for each in found):
            raise ValueError("the prompts ran different steps or guidance branches, which no calibration can have")
        where = sorted({name.rsplit(".", 1)[0] for name in found[0] if "." in name})
        tracks: dict[str, dict[str, Track]] = {expert: {} for expert in self.modules}
        for name in where:
            expert, branch = name.split(".", 1)
            tracks[expert][branch] = track_of([{key.rsplit(".", 1)[1]: item for key, item in each.items()
                                                if key.startswith(f"{name}.")} for each in found])  # fmt: skip
        if unused := [expert for expert, each in tracks.items() if not each]:
            raise ValueError(f"{', '.join(unused)} ran no step: take more steps, or another boundary_ratio")
        scheduler, prompts = self.pipe.scheduler, self._prompts()
        guidance = self._argument("guidance_scale")
        return CacheCalibration(
            describe({name: facts(module) for name, module in self.modules.items()}), len(times), tuple(times),
            type(scheduler).__name__, shift_of(scheduler), None if guidance is None else float(guidance), tracks,
            self.attention, guided_of(found, moved), {"count": prompts["prompts"], "sha256": prompts["prompts_sha256"]},
            {"vidaccel": __version__, **{name: metadata.version(name) for name in ("torch", "diffusers")}},
        )  # fmt: skip


def guided_of(prompts: Sequence[Mapping[str, Tensor]], moved: dict[int, float]) -> Guided | None:
    """What was measured of guided outputs, means over prompts; None where some run had none.

    Args:
        moved: of the probed steps.
    """
    if "products" not in prompts[0]:
        return None
    products = sum((each["products"] for each in prompts), torch.zeros(())) / len(prompts)
    gains = sum((each["gains"] for each in prompts), torch.zeros(())) / len(prompts)
    rows = tuple(tuple(exact(each) for each in row[: step + 1]) for step, row in enumerate(products.tolist()))
    return Guided(rows, tuple(map(rounded, guided.effects(gains.tolist(), moved))))


def track_of(prompts: Sequence[Mapping[str, Tensor]]) -> Track:
    """The means over prompts of what `cache_recorder.Recorder` measured of one expert and branch."""
    mean = {name: sum((each[name].double() for each in prompts), torch.zeros(())) / len(prompts) for name in prompts[0]}
    sums: list[list[list[float]]] = (mean["affine"] * len(prompts)).tolist()
    single = {name: _rounded(mean[name]) for name in ("ratio", "change", "output_size", "residual_size")}
    return Track(
        first_step=int(prompts[0]["first_step"]),
        stack=tuple(row[:step] for step, row in enumerate(map(_rounded, mean["stack"]))),
        output=tuple(row[:step] for step, row in enumerate(map(_rounded, mean["output"]))),
        affine=tuple(tuple(measures.line(each) for each in row[:step]) for step, row in enumerate(sums)),
        blocks=tuple(map(_rounded, mean["blocks"])),
        time_distance=_rounded(mean["time_distance"]) if "time_distance" in mean else None, **single,
    )  # fmt: skip


def rounded_time(value: float) -> float:
    """A timestep as a file has it: they are compared with those of other runs only roughly."""
    return float(f"{value:.8g}")


def _rounded(row: Tensor) -> tuple[float, ...]:
    return tuple(rounded(each) for each in row.tolist())
