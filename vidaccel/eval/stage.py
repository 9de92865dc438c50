"""One loaded model of an eval: makes its dense references and measures its cells against them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import vidaccel
from vidaccel.api import set_aside
from vidaccel.compensation import COMPENSATIONS, Compensation
from vidaccel.eval import breakdown, env
from vidaccel.eval.caches import NONE, CacheValues, cache_of, cached_run, text_of
from vidaccel.eval.cells import Cell, random_options
from vidaccel.eval.clip import Clip
from vidaccel.eval.evidence import describe
from vidaccel.eval.first_frame import IMAGE, load_image
from vidaccel.eval.metrics import NO_IMAGE, NOT_DECODED, compare_videos
from vidaccel.eval.record import CellRecord
from vidaccel.eval.runner import LATENT, Run, Runner, attached
from vidaccel.eval.settings import DENSE, FEWER_STEPS, OWN_TIMESTEPS, RANDOM, SAME_COMPUTE
from vidaccel.eval.sources import SHOWN
from vidaccel.eval.store import CLIP, LOSSLESS, PREVIEW, Store, reference_name
from vidaccel.eval.timing import equal_time_steps, equal_work_steps, realised_density, times_of, timing
from vidaccel.methods import METHODS, Method
from vidaccel.session import Session

UNSEEN = "prepares its image where it cannot be seen, or in another size than its clip's"
OnStep = Callable[[int, int], None]
"""Called after each denoising step with the steps done and all steps of the generation at work."""


class Stage:
    """A model with what this process has timed on it; use it as a context, which ends with the pipeline as it was.

    Args:
        cell: any of the model's cells.
        store: of references.
        say: hears of a reference that had to be made again.
        on_step: hears of every step.
    """

    def __init__(self, cell: Cell, store: Store, say: Callable[[str], None], on_step: OnStep) -> None:
        self.source, self.store, self.say, self.on_step = cell.source, store, say, on_step
        self.pipe = cell.source.load()
        self.output = str(cell.reference["output"])
        given = {IMAGE: load_image(cell.image)} if cell.image is not None else {}
        self.runner = Runner(self.pipe, {**cell.call, **given, "output_type": self.output}, self._advance)
        self._context = contextlib.ExitStack()
        self._dense: list[Run] = []
        self._dense_parts: dict[str, float] | None = None
        self._warm: set[str] = set()
        self._broken: dict[str, str] = {}
        self._kept: tuple[str, Clip] | None = None
        self._label, self._done, self._steps = "", 0, 0

    def __enter__(self) -> Stage:
        self._context.enter_context(set_aside(self.pipe))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._context.close()

    def prepare(self, cell: Cell) -> None:
        """Make the dense reference of a cell, where the folder has none.

        Raises:
            Exception: whatever the pipeline raises.
        """
        self._reference(cell)

    def measure(self, cell: Cell, parent: dict[str, Any] | None) -> tuple[CellRecord, Clip]:
        """Run a cell; `parent` is the record of the one that a baseline follows.

        Raises:
            Exception: whatever the pipeline or the method raises.
        """
        reference = self._reference(cell)
        session, overrides, baseline = self._setting(cell, parent)
        try:
            fast = self._timed(cell, session, overrides)
        finally:
            vidaccel.disable(self.pipe)
        clip = Clip.of(fast[-1])
        dense = self._dense[-cell.repeats :]
        metrics = self._metrics(reference, clip, fast[-1])
        times = timing(fast, dense, self.output != LATENT)
        follow_up = None if session is None else self._follow_up(session, fast, dense)
        return self._record(cell, session, metrics, times, baseline, follow_up), clip

    def split(self, cell: Cell) -> dict[str, Any]:
        """Where the time of a cell without a parent goes, and that of a dense run, made once for all cells.

        Raises:
            Exception: whatever the pipeline or the method raises; ValueError where the transformer is compiled.
        """
        breakdown.check(self.pipe)
        if self._dense_parts is None:
            self._warm_up(cell, None)
            self._dense_parts = breakdown.parts_of(self.pipe, None, lambda: self._run(cell))
        session = self._session(cell, _method(cell), cell.cache)
        assert session is not None
        try:
            self._warm_up(cell, session)
            with attached(session):
                fast = breakdown.parts_of(self.pipe, session, lambda: self._run(cell))
        finally:
            vidaccel.disable(self.pipe)
        return {"dense": self._dense_parts, "fast": fast, "note": breakdown.note(session.summary().tally.backend)}

    def _follow_up(self, session: Session, fast: list[Run], dense: list[Run]) -> dict[str, Any]:
        """What the baselines of a cell take from it."""
        steps, cached = self.runner.steps, self._cached(session)
        found = {"steps": equal_time_steps(steps, fast, dense), "video_density": realised_density(session.summary())}
        if cached is None:
            return found
        return {**found, SAME_COMPUTE: equal_work_steps(steps, cached["blocks_share"]),
                OWN_TIMESTEPS: cached["computed_steps"]}  # fmt: skip

    def _cached(self, session: Session | None) -> dict[str, Any] | None:
        """What the cache of a session did in its last run; None without one."""
        if session is None:
            return None
        blocks = describe(self.pipe, self.source.name)["layers"]
        return cached_run(session.summary().to_dict(), blocks, self.runner.steps)

    def _reference(self, cell: Cell) -> Clip:
        """The dense clip of a cell: kept in memory, read from the folder, or made now."""
        key = reference_name(cell.reference)
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        if key in self._broken:
            raise RuntimeError(f"there is no dense reference: {self._broken[key]}")
        clip, wrong = self.store.reference(cell.reference)
        if wrong is not None:
            self.say(f"{wrong}; it is made again")
        if clip is None:
            try:
                clip = self._make_reference(cell)
            except Exception as error:
                self._broken[key] = f"{type(error).__name__}: {error}"
                raise
        self._kept = key, clip
        return clip

    def _make_reference(self, cell: Cell) -> Clip:
        run = self._run_dense(cell)
        clip = Clip.of(run)
        about = {"timing": {"seconds": run.seconds, "denoising": run.denoising}, **env.provenance()}
        self.store.keep_reference(cell.reference, clip, about)
        return clip

    def _setting(self, cell: Cell, parent: dict[str, Any] | None) -> tuple[Session | None, dict[str, Any], Any]:
        """A cell's session, what it changes in the call, and what its record says of it as a baseline."""
        if cell.parent is None:
            return self._session(cell, _method(cell), cell.cache), {}, None
        assert parent is not None
        follow = parent["follow_up"]
        link = {"kind": cell.method, "of": cell.parent.name, "label": cell.parent.label, "of_steps": self.runner.steps}
        if cell.method == OWN_TIMESTEPS:
            only = follow[OWN_TIMESTEPS]
            return None, {"only": only}, {**link, "steps": len(only), "taken": only}
        if cell.method in (FEWER_STEPS, SAME_COMPUTE):
            steps = int(follow["steps" if cell.method == FEWER_STEPS else SAME_COMPUTE])
            return None, {"num_inference_steps": steps}, {**link, "steps": steps}
        density = follow["video_density"]
        if density is None:
            raise ValueError(f"{cell.parent.name} ran no sparse call, so that it has no density to match")
        random = METHODS[RANDOM](**random_options(cell.parent, density))
        return self._session(cell, random, cell.cache), {}, {**link, "video_density": density}

    def _session(self, cell: Cell, method: Method | None, cache: CacheValues) -> Session | None:
        if method is None and cache == NONE:
            return None
        made_up = None if cell.compensation is None else compensation_of(cell.compensation)
        session = vidaccel.enable(self.pipe, method, schedule=cell.schedule, backend=cell.backend,
                                  precision=cell.precision, compensation=made_up, min_tokens=0,
                                  cache=cache_of(cache))  # fmt: skip
        session.detach()
        return session

    def _timed(self, cell: Cell, session: Session | None, overrides: dict[str, Any]) -> list[Run]:
        """The timed runs of a cell, in turns with dense ones as long as this process has too few of these."""
        self._warm_up(cell, session)
        fast: list[Run] = []
        for turn in range(cell.repeats):
            if len(self._dense) <= turn:
                self._run_dense(cell)
            with attached(session) if session is not None else contextlib.nullcontext():
                fast.append(self._run(cell, **overrides))
        return fast

    def _run_dense(self, cell: Cell) -> Run:
        self._warm_up(cell, None)
        run = self._run(cell)
        self._dense.append(times_of(run))
        return run

    def _run(self, cell: Cell, **overrides: Any) -> Run:
        only = overrides.get("only")
        steps = overrides.get("num_inference_steps", self.runner.steps) if only is None else len(only)
        self._done, self._steps = 0, int(steps)
        return self.runner.run("run", cell.prompt, cell.seed, **overrides)

    def _warm_up(self, cell: Cell, session: Session | None) -> None:
        if session is not None and session.setting.cache is not None:
            # Two steps are too few for a cache, and none of those that its calibration is of.
            method = None if cell.method == DENSE else session.setting.method
            session = self._session(cell, method, NONE)
        what = DENSE if session is None else repr(session.setting.method)
        if what not in self._warm:
            self._done, self._steps = 0, self.runner.warm_steps
            self.runner.warm_up(cell.prompt, cell.seed, session)
            self._warm.add(what)

    def _advance(self, label: str, steps: int) -> None:
        self._done = min(self._done + steps, self._steps)
        self.on_step(self._done, self._steps)

    def _metrics(self, reference: Clip, clip: Clip, run: Run) -> dict[str, Any]:
        image, reason = run.image, NO_IMAGE
        if image is None and IMAGE in self.runner.kwargs:
            reason = NOT_DECODED if clip.frames is None else f"{type(self.pipe).__name__} {UNSEEN}"
        values = compare_videos(reference.frames, clip.frames, reference_latents=reference.latents,
                                other_latents=clip.latents, image=image, image_reason=reason)  # fmt: skip
        return {**values, "identical": reference.same(clip)}

    def _record(self, cell: Cell, session: Session | None, metrics: dict[str, Any], times: dict[str, Any],
                baseline: dict[str, Any] | None, follow_up: dict[str, Any] | None) -> CellRecord:  # fmt: skip
        did = session.summary().to_dict() if session is not None else _dense_run(cell)
        shown = {name: item for name, item in cell.call.items() if name in (*SHOWN, IMAGE)}
        if baseline is not None and "steps" in baseline:
            shown["num_inference_steps"] = baseline["steps"]
        decoded = self.output != LATENT
        return CellRecord.capture(
            kind="cell", seed=cell.seed, prompt=cell.prompt, negative_prompt=cell.call.get("negative_prompt"),
            model={**describe(self.pipe, self.source.name), "digest": cell.reference["model"]},
            settings={**shown, "fps": self.source.fps, "dtype": self.source.dtype, "device": self.source.device,
                      "output": self.output},
            method=did["method"], schedule=did["schedule"], backend=did["backend"], layout=did["layout"],
            density=did["density"], calls=did["calls"], notes=did["notes"], timing=times, metrics=metrics,
            files={"clip": CLIP} | ({"preview_lossy": PREVIEW} if decoded else {})
            | ({"video_lossless": LOSSLESS} if cell.lossless else {}), cell=cell.name, label=cell.label,
            requested_density=(cell.parent or cell).density, cache=text_of(cell.cache), baseline=baseline,
            reference=reference_name(cell.reference), row=cell.row, follow_up=follow_up,
            compensation=did["compensation"], cached=self._cached(session),
            map=None if session is None else session.summary().step_map(),
        )  # fmt: skip


def _method(cell: Cell) -> Method | None:
    return None if cell.method == DENSE else METHODS[cell.method](**cell.options)


def compensation_of(values: dict[str, Any]) -> Compensation:
    """The compensation of a cell."""
    return COMPENSATIONS[values["name"]](**values["options"])


def _dense_run(cell: Cell) -> dict[str, Any]:
    """What a session's summary would say of a run without one."""
    return {"method": {"name": cell.method, "options": {}}, "schedule": {}, "backend": None, "layout": None,
            "density": None, "calls": {}, "notes": [], "compensation": None}  # fmt: skip
