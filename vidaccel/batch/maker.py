"""A loaded pipeline, and how one clip after the other comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import vidaccel
from vidaccel.batch.call import call_kwargs, loaded
from vidaccel.batch.folder import Folder
from vidaccel.batch.requests import Request
from vidaccel.eval import env
from vidaccel.eval.runner import Runner
from vidaccel.session import Session

Load = Callable[[], tuple[Any, Session | None]]
"""Loads a pipeline, and says what is enabled on it."""


class Maker:
    """Makes clips in one process.

    Args:
        folder: where they go.
        load: of the pipeline.
        call: arguments of its call for all clips, images by their paths.
        fps: frames per second of the files.
        requests: all that may be asked for.

    Attributes:
        tell: hears the steps done and all steps of a clip, after each.
        turn: clips that were begun here.

    Raises:
        ValueError: a request that has what the pipeline does not take, or lacks an image that it needs.
    """

    def __init__(self, folder: Folder, load: Load, call: Mapping[str, Any], fps: float, requests: Sequence[Request]
                 ) -> None:  # fmt: skip
        self.folder, self.call, self.fps = folder, call, fps
        self.tell: Callable[[int, int], None] = lambda done, steps: None
        self.turn = self._done = 0
        pipe, self._session = load()
        for own in {tuple(each.own): each.own for each in requests}.values():
            call_kwargs(pipe, {**call, **own})
        self._runner = Runner(pipe, dict(call), self._stepped)
        pipe.set_progress_bar_config(disable=True)
        self._about = {"pipeline": type(pipe).__name__, **env.provenance(), "vidaccel": vidaccel.__version__}

    @property
    def steps(self) -> int:
        """Of a clip."""
        return self._runner.steps

    def make(self, request: Request) -> None:
        """Make a clip and write it.

        Raises:
            Exception: whatever the pipeline, or the file system, does.
        """
        self.turn, self._done = self.turn + 1, 0
        run = self._runner.run("clip", request.prompt, request.seed, **loaded({**self.call, **request.own}))
        frames, height, width, _ = run.clip.shape
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {
            **self._about, "created": created, "frames": frames, "height": height, "width": width,
            "seconds": run.seconds, "denoising_seconds": run.denoising, "turn": self.turn,
            "sparse": self._sparse(),
        }  # fmt: skip
        self.folder.keep(request, run.clip, self.fps, facts)

    def _sparse(self) -> dict[str, Any] | None:
        """What sparse attention did, without what other clips of this process count for."""
        if self._session is None:
            return None
        return {name: item for name, item in self._session.summary().to_dict().items() if name != "runs"}

    def _stepped(self, _: str, count: int) -> None:
        for _step in range(count):
            self._done += 1
            self.tell(self._done, self.steps)
