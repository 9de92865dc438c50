"""The clips that a batch is asked for: a file of prompts, plain or with settings of single clips, times the seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidaccel import strict
from vidaccel.batch.call import IMAGES
from vidaccel.eval.settings_file import read_prompts, read_text

JSON_LINES = ".jsonl"
PROMPT, SEED = "prompt", "seed"
OWN = ("negative_prompt", *IMAGES)
"""What a line may say of its clip apart from prompt and seed: arguments of the pipeline's call."""
WORD, SHORT = 40, 18
"""Letters of the prompt in a file's name, and in a line about progress."""
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """One clip.

    Args:
        number: of its prompt in the file, from 0.
        prompt: what to show.
        seed: of the noise.
        own: arguments of the pipeline's call that are this clip's alone; images by their paths.
    """

    number: int
    prompt: str
    seed: int
    own: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its files, without an ending."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:WORD].strip("-")
        return "-".join(filter(None, (f"{self.number:04d}", slug, f"seed{self.seed}")))

    @property
    def title(self) -> str:
        """What a line about its progress calls it."""
        prompt = self.prompt if len(self.prompt) <= SHORT else self.prompt[: SHORT - 3].rstrip() + "..."
        return f"{prompt}, seed {self.seed}"


def read_requests(path: Path, seeds: Sequence[int] = (0,)) -> list[Request]:
    """The clips of a file, each prompt with each seed.

    Args:
        path: a text file with a prompt a line, or one that ends in ".jsonl", with an object a line: ``prompt``, and as
            may be ``seed``, ``negative_prompt``, ``image`` and ``last_image``. Paths count from the file's folder.
        seeds: of the prompts that have none of their own.

    Raises:
        ValueError: no such file, nothing in it, a line that cannot be, or a clip that is asked for twice.
    """
    lines = list(_objects(path)) if path.suffix.lower() == JSON_LINES else [{PROMPT: each} for each in
                                                                             read_prompts(path)]  # fmt: skip
    found = []
    for number, line in enumerate(lines):
        own = {name: str(line[name]) for name in OWN if name in line}
        for seed in (line[SEED],) if SEED in line else seeds:
            found.append(Request(number, str(line[PROMPT]), seed, own))
    _check_once(found)
    return found


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds such as "0,1,7" or "0-4", a range with both its ends.

    Raises:
        ValueError: others, or one that comes twice.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + 1_000_000:
            raise ValueError(f"seeds {text!r} are not numbers and ranges of them, such as 0,1,7 or 0-4")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ValueError(f"seeds {text!r} name one twice")
    return tuple(found)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON lines; empty ones do not count."""
    empty = True
    for at, text in enumerate(read_text(path, "prompts file").splitlines(), 1):
        if text.strip():
            empty = False
            yield _checked(strict.parse(text, f"line {at} of {path}"), f"line {at} of {path}", path.parent)
    if empty:
        raise ValueError(f"prompts file {str(path)!r} has no prompt")


def _checked(line: Any, where: str, folder: Path) -> dict[str, Any]:
    known = (PROMPT, SEED, *OWN)
    if not isinstance(line, dict) or PROMPT not in line:
        raise ValueError(f'{where} is no object with a prompt, such as {{"prompt": "a cat"}}')
    if other := [name for name in line if name not in known]:
        raise ValueError(f"{where} has {other[0]!r}; a line may have {', '.join(known)}")
    for name in (PROMPT, *OWN):
        if name in line and not (isinstance(line[name], str) and (line[name].strip() or name == "negative_prompt")):
            raise ValueError(f"{where}: {name} {line[name]!r} is not a text")
    seed = line.get(SEED, 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
        raise ValueError(f"{where}: seed {seed!r} is not a whole number of at least 0")
    return line | {name: str(folder / Path(line[name]).expanduser()) for name in IMAGES if name in line}


def _check_once(requests: Sequence[Request]) -> None:
    seen: dict[Any, Request] = {}
    for each in requests:
        key = (each.prompt, each.seed, *sorted(each.own.items()))
        if key in seen:
            raise ValueError(f"prompts {seen[key].number + 1} and {each.number + 1} ask for the same clip: "
                             f"{each.title}")  # fmt: skip
        seen[key] = each
