"""What commands have in common that measure a model on a file of prompts, and write what they found as one file."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidaccel.cli.loading import Model, dtype_and_device, identify
from vidaccel.cli.output import staged_file
from vidaccel.processes import Crew, take_device


@dataclass(frozen=True)
class Asked:
    """What such a command is given.

    Args:
        model: a folder, a repository or a miniature.
        prompts: a file, one a line.
        out: the file to write.
        work: the folder that keeps what is done; None for one beside `out`, for as long as it is needed.
        dtype, device: as given; None for the usual ones.
    """

    model: str
    prompts: Path
    out: Path
    work: Path | None
    dtype: str | None
    device: str | None

    @property
    def folder(self) -> Path:
        """Where what is done lies, to go on from."""
        return (self.work or self.out.with_name(f"{self.out.name}.work")).expanduser()

    def written(self, crew: Crew) -> contextlib.AbstractContextManager[Path | None]:
        """A path to write instead of `out`, see `staged_file`; None in other processes than the main one."""
        return staged_file(self.out) if crew.main else contextlib.nullcontext()

    def tidy(self) -> None:
        """Nothing is left to go on with: remove the folder, unless it was asked for."""
        if self.work is None:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Checked:
    """What is known before anything is loaded.

    Args:
        model: that was identified, of a family that is supported.
        texts: the prompts.
        dtype, device: what it will run in and on.
    """

    model: Model
    texts: list[str]
    dtype: str
    device: str


def checked(crew: Crew, asked: Asked, check: Callable[[list[str]], object]) -> Checked:
    """Refuse what cannot be, before anything is loaded.

    Args:
        crew: the processes of the command.
        asked: what it was given.
        check: of its own options, with the prompts.

    Raises:
        ValueError: what was given that cannot be.
    """
    from vidaccel.eval.settings_file import read_prompts

    if asked.out.suffix.lower() != ".json":
        raise ValueError(f"--out {str(asked.out)!r} does not end in .json")
    texts = read_prompts(asked.prompts)
    check(texts)
    dtype, device = dtype_and_device(asked.dtype, take_device(crew, asked.device))
    known = identify(asked.model)
    known.supported_family()
    return Checked(known, texts, dtype, device)
