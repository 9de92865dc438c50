"""`vidaccel.calibrate`: one dense generation per prompt, from which every head's options are measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from vidaccel.calibration.further import Size, all_sizes, checked
from vidaccel.calibration.generation import Generations, Progress
from vidaccel.calibration.library import library as named_library
from vidaccel.calibration.result import COSTS, Calibration, finish
from vidaccel.calibration.settings import Settings, check_target
from vidaccel.costs import CostModel
from vidaccel.processes import Crew
from vidaccel.profile import Profile


def calibrate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    target_density: float | None = None,
    max_error: float | None = None,
    bands: int = 1,
    rows: int = 64,
    steps_per_band: int = 4,
    library: str = "all",
    block: int | None = None,
    work: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    generation_kwargs: Mapping[str, Any] | None = None,
    cost: str | CostModel = "measured",
    also: Sequence[Mapping[str, int]] = (),
) -> Profile:
    """Measure what each head of a pipeline can do without, in one dense generation per prompt, and make a profile.

    What is enabled on the pipeline is put aside and comes back. The generations are dense bit for bit; measuring waits
    for a GPU.

    Args:
        pipe: a pipeline of a supported family.
        prompts: what to generate. Libraries with patterns made from attention maps need two at least: they are made
            from the first half and judged on the rest.
        target_density: mean cost to stay under, over all heads, in (0, 1].
        max_error: relative error of the layers' outputs to stay under, in (0, 1]; give one of the two.
        bands: step bands with a choice of their own.
        rows: sampled queries of each measured call.
        steps_per_band: denoising steps of a band that are measured.
        library: which patterns are tried, see `vidaccel.calibration.libraries`.
        block: tile size in tokens; by default 128, or 16 below 8,192 tokens.
        work: a folder in which each finished prompt is kept: called again with the same arguments, it goes on there.
        progress: called with what runs, denoising steps done and all of them.
        seed: of the noise, drawn on the CPU; prompt ``i`` has ``seed + i``.
        generation_kwargs: for the pipeline's call; nothing is decoded.
        cost: what a head's pattern costs: "measured" fits a `CostModel` to times of the attention kernel here,
            "counted" is the computed density, "density" the video density; or a `CostModel`.
        also: further sizes that the profile is to serve, such as ``[{"height": 480, "width": 832}]``: arguments that
            replace those of `generation_kwargs`, whole numbers. Patterns that are made from attention maps are made at
            the first size alone, so that here only the second half of the prompts runs, and all where none are made.

    Raises:
        ValueError: whatever cannot be done, before anything runs, as far as it can be known then.
    """
    found = measured(
        pipe, prompts, target_density=target_density, max_error=max_error, bands=bands, rows=rows,
        steps_per_band=steps_per_band, library_name=library, block=block, work=work, progress=progress, seed=seed,
        generation_kwargs=generation_kwargs, cost=cost, also=also,
    )  # fmt: skip
    assert found is not None
    return found.profile


def measured(
    pipe: Any, prompts: Sequence[str], *, work: str | os.PathLike[str] | None, progress: Progress | None,
    generation_kwargs: Mapping[str, Any] | None, crew: Crew | None = None, **options: Any,
) -> Calibration | None:  # fmt: skip
    """`calibrate`, with what a report needs; None in other processes than the main one.

    Args:
        crew: the processes that share the prompts, each of which calls this with the same arguments and a pipeline of
            the same model; this one alone by default. Several need a `work` folder that all of them see.
    """
    crew = crew or Crew()
    settings, goal, cost, also = check(prompts, **options)
    first = Generations(pipe, settings, dict(generation_kwargs or {}), work, None)
    runs = all_sizes(first, also, progress)
    for each in runs:
        each.run(crew)
    return finish(runs, goal, cost) if crew.main else None


def check(
    prompts: Sequence[str], *, target_density: float | None, max_error: float | None, bands: int, rows: int,
    steps_per_band: int, library_name: str, block: int | None, seed: int, cost: str | CostModel,
    also: Sequence[Size] = (),
) -> tuple[Settings, dict[str, float], str | CostModel, tuple[Size, ...]]:  # fmt: skip
    """The arguments that need no model, checked; see `calibrate`.

    Raises:
        ValueError: one that cannot be.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts are a list of texts, not one text")
    goal = check_target(target_density, max_error)
    if cost not in COSTS and not isinstance(cost, CostModel):
        raise ValueError(f"cost={cost!r} is not {', '.join(COSTS)} or a CostModel")
    made = named_library(library_name)
    settings = Settings(tuple(prompts), library_name, made, bands, rows, steps_per_band, block, seed)
    return settings, goal, cost, checked(also)
