"""Published settings by name, which fill in the options of a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidaccel.schedule import Schedule


@dataclass(frozen=True)
class Preset:
    """The published settings of a method.

    Args:
        options: by name.
        dense_steps: at the start of a run, as of a `Schedule`; None where nothing is published.
        dense_layers: at the start of the model.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    dense_steps: float | None = None
    dense_layers: int = 0

    @property
    def schedule(self) -> Schedule | None:
        """What stays dense; None leaves it to the model's family."""
        return None if self.dense_steps is None else Schedule(self.dense_steps, 0, self.dense_layers)


def fill(method: Any, presets: Mapping[str, Preset]) -> None:
    """Set the options of a method, a frozen dataclass that is being made, by its field `preset`; None sets nothing.

    Raises:
        ValueError: no such preset, or an option beside it that it has otherwise.
    """
    name = method.preset
    if name is None:
        return
    if name not in presets:
        raise ValueError(f"unknown preset {name!r} of {method.name}; choose {', '.join(presets)}")
    defaults = {each.name: each.default for each in dataclasses.fields(method)}
    for option, value in presets[name].options.items():
        given = getattr(method, option)
        if given not in (defaults[option], value):
            raise ValueError(f"preset {name!r} has its own {option}, not {given}")
        object.__setattr__(method, option, value)
