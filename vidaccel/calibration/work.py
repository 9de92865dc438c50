"""The work folder of a calibration: what is measured is on disk as soon as a prompt is done, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidaccel.files import write_text
from vidaccel.processes import Crew, appears

SETTINGS = "calibration.json"


def opened(crew: Crew, folder: str | os.PathLike[str] | None, digest: str, described: dict[str, Any]) -> Work:
    """The work folder of a calibration that the processes of a job share; the main one begins it.

    Raises:
        ValueError: no folder for several processes, or as for `Work`, in any of them.
    """
    if folder is None and crew.size > 1:
        raise ValueError(f"{crew.size} processes share a calibration by its work folder: give one")
    for turn in (True, False):
        with crew.together():
            if crew.main == turn:
                if folder is not None and not turn:
                    appears(Path(folder).expanduser() / SETTINGS)
                work = Work(folder, digest, described)
    return work


class Work:
    """A folder that belongs to one calibration; without one, all is kept in memory alone.

    Args:
        folder: made if it is not there.
        digest: of all that the measurements depend on.
        described: what a reader may want to know of these settings.

    Raises:
        ValueError: the folder cannot be written, or belongs to other settings.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, digest: str, described: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.digest = digest
        self._kept: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self.header: dict[str, Any] = {"digest": digest, **described}
        if self.folder is not None:
            self._open(self.folder)

    def _open(self, folder: Path) -> None:
        file = folder / SETTINGS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                write_text(file, json.dumps(self.header, indent=2) + "\n")
            found = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"work folder {str(folder)!r} cannot be used: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{str(file)!r} is not JSON: choose another work folder") from error
        found = found if isinstance(found, dict) else {}
        if found.get("digest") != self.digest:
            changed = [name for name, item in self.header.items() if name != "digest" and found.get(name) != item]
            raise ValueError(
                f"work folder {str(folder)!r} holds a calibration with other settings"
                f"{' (' + ', '.join(changed) + ')' if changed else ''}: choose another, or delete it"
            )
        self.header = found

    def note(self, name: str, make: Callable[[], Any]) -> Any:
        """A JSON-ready value of the header; made and kept if it is not there."""
        if name not in self.header:
            self.header[name] = make()
            if self.folder is not None:
                write_text(self.folder / SETTINGS, json.dumps(self.header, indent=2) + "\n")
        return self.header[name]

    def load(self, prompt: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A prompt's sums and facts; None if it is not done.

        Raises:
            ValueError: its file cannot be read, or belongs to other settings.
        """
        if prompt in self._kept or self.folder is None:
            return self._kept.get(prompt)
        file = self._file(self.folder, prompt)
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                facts = json.loads((opened.metadata() or {}).get("facts", "{}"))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{str(file)!r} cannot be read: delete it, and its prompt is measured again") from error
        if facts.get("digest") != self.digest:
            raise ValueError(f"{str(file)!r} is of other settings: delete it, and its prompt is measured again")
        self._kept[prompt] = tensors, facts
        return self._kept[prompt]

    def save(self, prompt: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep what a prompt measured."""
        facts = {"digest": self.digest, **facts}
        self._kept[prompt] = tensors, facts
        if self.folder is None:
            return
        file = self._file(self.folder, prompt)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            save_file({name: each.contiguous() for name, each in tensors.items()}, part, {"facts": json.dumps(facts)})
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)

    def has(self, prompt: int) -> bool:
        """Whether a prompt is done."""
        return prompt in self._kept or (self.folder is not None and self._file(self.folder, prompt).is_file())

    def see(self, prompts: Iterable[int]) -> None:
        """Wait until what other processes measured is to be seen here.

        Raises:
            RuntimeError: it is not.
        """
        for prompt in prompts:
            if prompt not in self._kept and self.folder is not None and not appears(self._file(self.folder, prompt)):
                raise RuntimeError(f"another process measured prompt {prompt + 1}, and it is not to be seen in "
                                   f"{str(self.folder)!r}")  # fmt: skip

    @staticmethod
    def _file(folder: Path, prompt: int) -> Path:
        return folder / f"prompt-{prompt:03d}.safetensors"
