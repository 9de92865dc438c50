"""Makes the clips of a batch: each by one process, each once, the others going on where one fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidaccel.batch.call import identified
from vidaccel.batch.folder import RECORD, Folder, missing
from vidaccel.batch.maker import Load, Maker
from vidaccel.batch.requests import Request
from vidaccel.eval.failing import described, make_room
from vidaccel.eval.identity import key_of
from vidaccel.processes import Crew, appears, check_agreed, held
from vidaccel.processes.forecast import Task
from vidaccel.processes.reporter import Progress, Reporter

logger = logging.getLogger(__name__)
CLIP = "clip"
LIMIT = 3
"""Clips in a row that fail in a process before it leaves the rest to others: after some errors no run on a GPU can
succeed, and what fails at once would be quickest to take all that is left."""


@dataclass
class Result:
    """What a batch did and has.

    Args:
        out: its folder.
        clips: how many were asked for.
        skipped: how many of them were done before.
        failed: those that failed, by name, and why.
        untried: those that no process came to, as all had given up.
    """

    out: Path
    clips: int
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    untried: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many of the clips are there."""
        return self.clips - len(self.failed) - len(self.untried)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {"kind": "batch", "out": str(self.out), "clips": self.clips, "done": self.done,
                "skipped": self.skipped, "failed": self.failed, "untried": self.untried}  # fmt: skip


def run(
    load: Load,
    requests: Sequence[Request],
    out: str | os.PathLike[str],
    *,
    call: Mapping[str, Any],
    fps: float,
    about: Mapping[str, Any],
    ending: str = ".mp4",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    crew: Crew | None = None,
) -> Result:
    """Make the clips that are not there yet.

    Each clip is ``out/NAME.mp4`` with a record beside it, ``out/NAME.json``; both appear whole or not at all, the
    record last. A clip with a record is not made again. One that fails leaves ``out/NAME.error.json`` and is tried
    again by the next call.

    Args:
        load: called once, in each process, if there is something to do.
        requests: the clips; of each name one.
        out: the folder, made if need be.
        call: arguments of the pipeline's call for all clips, ``num_inference_steps`` among them or the pipeline's
            default; images by their paths. What a request has of its own replaces them.
        fps: frames per second of the files.
        about: whatever else all clips depend on, JSON-ready: model, attention, dtype.
        ending: ".mp4", or ".mkv" without loss.
        progress: hears of every step.
        say: hears what else happens; the log by default.
        crew: the processes that share the clips, each of which calls this with the same arguments; see
            `vidaccel.processes.join`. This one alone by default.

    Raises:
        ValueError: an image that cannot be read, arguments that the pipeline does not take, other settings than those
            of the folder, or a folder that is in use, cannot be written or is not the same for all processes.
        RuntimeError: another process has gone.
    """
    crew = crew or Crew()
    with crew.together():
        settings = {**about, "call": identified(call), "fps": fps, "file": ending}
        folder = Folder(Path(out).expanduser().absolute(), settings, ending)
        clips = key_of({"all": [[each.name, each.prompt, identified(each.own)] for each in requests]})
    check_agreed(crew, {**folder.settings, "clips": clips}, "make other clips")
    with held(crew, folder.out, "batch", lambda: folder.prepare(requests)):
        batch = _Batch(folder, requests, crew, progress or (lambda *_: None), say or logger.warning)
        try:
            batch.run(load, call, fps)
        finally:
            if crew.main:
                folder.write_table()
    return batch.result


class _Batch:
    """Claims clips, makes them, and puts together what came of all."""

    def __init__(self, folder: Folder, requests: Sequence[Request], crew: Crew, progress: Progress,
                 say: Callable[[str], None]) -> None:  # fmt: skip
        self.folder, self.requests, self.crew, self.say = folder, requests, crew, say
        # The main process looks what there is, so that all of them share the same work.
        with crew.together():
            lacking = missing(folder, requests) if crew.main else []
        self.pending = [requests[index] for index in crew.gather(lacking)[0]]
        self.result = Result(folder.out, len(requests), len(requests) - len(self.pending))
        self.failed: dict[str, str] = {}
        self.progress = progress

    def run(self, load: Load, call: Mapping[str, Any], fps: float) -> None:
        if self.crew.main:
            self._announce()
        if not self.pending:
            return
        with self.crew.together():
            maker = Maker(self.folder, load, call, fps, self.pending)
            if self.crew.main:
                self.folder.begin()
        tasks = [Task(CLIP, CLIP, maker.steps) for _ in self.pending]
        reporter = Reporter(tasks, self.crew, self.progress)
        maker.tell = reporter.step
        self._share(maker, reporter)
        self._merge(reporter)

    def _announce(self) -> None:
        if self.result.skipped:
            self.say(f"{self.result.skipped} of {len(self.requests)} clips are done already")
        if self.crew.size > 1 and self.pending:
            self.say(f"{self.crew.size} processes share {len(self.pending)} clips")

    def _share(self, maker: Maker, reporter: Reporter) -> None:
        """Make clips until there are none left, or too many fail."""
        in_a_row = 0
        for index in self.crew.claims(len(self.pending)):
            request = self.pending[index]
            reporter.begin(f"{index + 1}/{len(self.pending)} {request.title}", index)
            made = self._make(maker, request)
            reporter.end(typical=made and maker.turn > 1)
            in_a_row = 0 if made else in_a_row + 1
            if in_a_row == LIMIT:
                self.say(f"{LIMIT} clips failed one after the other: this process makes no more")
                return

    def _make(self, maker: Maker, request: Request) -> bool:
        """Whether a clip came about; what it failed with is kept."""
        try:
            maker.make(request)
            return True
        except Exception as error:
            self.failed[request.name] = described(error)
            self.say(f"{request.name} failed: {described(error)}")
            self.folder.keep_error(request, error)
        make_room()
        return False

    def _merge(self, reporter: Reporter) -> None:
        """Wait for the other processes, and add what failed in them."""
        everyone = self.crew.gather({"done": reporter.done(), "failed": self.failed}, reporter.waiting)
        done = {index for each in everyone for index in each["done"]}
        failed = {name: why for each in everyone for name, why in each["failed"].items()}
        untried = [request.name for index, request in enumerate(self.pending) if index not in done]
        if self.crew.main:
            for index, request in enumerate(self.pending):
                if index in done and request.name not in failed and not self._seen(request):
                    failed[request.name] = "another process made it, and it is not to be seen"
        failed = self.crew.gather(failed)[0]
        self.result.failed = {each.name: failed[each.name] for each in self.pending if each.name in failed}
        self.result.untried = untried

    def _seen(self, request: Request) -> bool:
        return appears(self.folder.out / f"{request.name}{RECORD}") and self.folder.record(request) is not None
