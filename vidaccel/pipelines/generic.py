"""Transformers without a family of their own, by what the user says of them: see docs/unknown-models.md.

Their stock processors run as they are, with the attention itself replaced. Whatever does not fit what was said, or
what was guessed from the configuration, is an error in the first forward.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout
from vidaccel.pipelines.arrivals import Arrivals
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.discovery import heads_of, sites_of, stock_of
from vidaccel.pipelines.processor import Processor
from vidaccel.pipelines.rebound import attends, processor_class

NAME = "generic"
PLACES = ("before", "after")
AXES = ("BCTHW", "BTCHW", "BTHWC")
STATES, TEXT = "hidden_states", "encoder_hidden_states"


@dataclass(frozen=True)
class Generic:
    """What to know of a transformer class that vidaccel does not know: ``enable(..., family=Generic(...))``.

    Args:
        text: where the text tokens of the self-attention's sequence stand, "before" or "after" the video's; None where
            it has none.
        text_tokens: how many; by default the tokens of the forward's ``encoder_hidden_states``.
        grid: video tokens as "FRAMESxHEIGHTxWIDTH", where they cannot be read from latents of five axes; runs of
            other sizes are then refused.
        latents: the axes of ``hidden_states``: "BCTHW", "BTCHW" or "BTHWC". By default those by which the channels are
            those of the configuration.
        patch: latent frames, rows and columns that are one token; the configuration's ``patch_size`` by default.
        sites: patterns of the names of the self-attention modules, in the order in which they run, such as
            "blocks.*.attn1". By default all attention modules of the model's lists of blocks that are not cross
            attention by flag or name.
        heads: heads and head dim, where neither the configuration nor the modules say them.
        timestep: the forward's argument that is the timestep.
        timesteps_rise: whether it rises over a run, zero being all noise.

    Raises:
        ValueError: a value that is none of these.
    """

    text: str | None = None
    text_tokens: int | None = None
    grid: str | None = None
    latents: str | None = None
    patch: tuple[int, int, int] | None = None
    sites: str | tuple[str, ...] = ()
    heads: tuple[int, int] | None = None
    timestep: str = "timestep"
    timesteps_rise: bool = False

    def __post_init__(self) -> None:
        if self.text not in (None, *PLACES):
            raise ValueError(f"text={self.text!r} is none of {', '.join(PLACES)} and None")
        if self.text_tokens is not None and (self.text is None or not _counts((self.text_tokens,), 1)):
            raise ValueError(f"text_tokens={self.text_tokens!r} is not a whole number of at least 1, beside a text "
                             "that stands before or after")  # fmt: skip
        if self.grid is not None:
            TokenLayout.parse(self.grid)
        if self.latents not in (None, *AXES):
            raise ValueError(f"latents={self.latents!r} is none of {', '.join(AXES)} and None")
        if not isinstance(self.sites, (str, tuple, list)) or not all(isinstance(each, str) for each in self.patterns):
            raise ValueError(f"sites={self.sites!r} is neither a pattern nor a tuple of patterns")
        for name, count in (("patch", 3), ("heads", 2)):
            given = getattr(self, name)
            if given is not None and not _counts(given, count):
                raise ValueError(f"{name}={given!r} is not {count} whole numbers of at least 1")

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of `sites`."""
        return (self.sites,) if isinstance(self.sites, str) else tuple(self.sites)


def _counts(given: Any, count: int) -> bool:
    whole = isinstance(given, Sequence) and all(isinstance(each, int) and each > 0 for each in given)
    return whole and len(given) == count


def patch_of(config: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns of one token.

    Raises:
        ValueError: the configuration does not say.
    """
    size, depth = getattr(config, "patch_size", None), getattr(config, "patch_size_t", None) or 1
    if isinstance(size, int):
        return depth, size, size
    if isinstance(size, Sequence) and _counts(size, 3):
        return size[0], size[1], size[2]
    raise ValueError(f"the configuration's patch_size is {size!r}, neither one number nor three: give "
                     "Generic(patch=(FRAMES, ROWS, COLUMNS)) or Generic(grid=...)")  # fmt: skip


def axes_of(config: Any, states: Tensor) -> str:
    """The axes of latents, by which the channels are those of the configuration: its input's, else its output's.

    Raises:
        ValueError: none does, or several that make different grids.
    """
    shape = list(states.shape)
    if len(shape) != 5:
        raise ValueError(f"{STATES} {shape} has no axes of frames, rows and columns that show the token grid: give "
                         "Generic(grid=...)")  # fmt: skip
    known = [getattr(config, name, None) for name in ("in_channels", "out_channels")]
    for channels in known:
        fit = [axes for axes in AXES if shape[axes.index("C")] == channels]
        if len({tuple(shape[axes.index(each)] for each in "THW") for axes in fit}) > 1:
            raise ValueError(f"the {channels} channels of {STATES} {shape} may stand in any of {', '.join(fit)}: give "
                             "Generic(latents=...)")  # fmt: skip
        if fit:
            return fit[0]
    raise ValueError(f"no axis of {STATES} {shape} has the configuration's channels, in_channels={known[0]} and "
                     f"out_channels={known[1]}: give Generic(latents=...)")  # fmt: skip


class GenericFamily(Family):
    """A family made for the transformers of one session.

    Args:
        about: what the user says.
        transformer: one of them; the others are of its class.

    Raises:
        ValueError: it is no diffusers model, or its forward has no such arguments.
    """

    name: ClassVar[str] = NAME
    transformers: ClassVar[tuple[str, ...]] = ()
    stacks: ClassVar[tuple[str, ...]] = ()
    cacheable: ClassVar[bool] = False
    unsplit: ClassVar[str] = "nothing is known of how a model without a family can be split"

    def __init__(self, about: Generic, transformer: nn.Module) -> None:
        self.about = about
        missing = [name for name in ("config", "dtype", "device") if not hasattr(transformer, name)]
        if missing:
            raise ValueError(f"{type(transformer).__name__} has no {missing[0]}, as models of diffusers do")
        names = list(inspect.signature(transformer.forward).parameters)
        for name in (STATES, about.timestep):
            if name not in names:
                raise ValueError(f"the forward of {type(transformer).__name__} has no argument {name}; it has "
                                 f"{', '.join(names)}")  # fmt: skip
        self._positions = {name: index for index, name in enumerate(names)}
        self._found: weakref.WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = weakref.WeakKeyDictionary()
        self._heads: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()
        self._arrivals = Arrivals()
        self._timestep = 0.0
        self._last: tuple[Tensor | None, float] = None, 0.0
        # Instances differ, here and in the processor, where families know theirs as classes.
        self.timesteps_rise = about.timesteps_rise  # type: ignore[misc]
        self.timestep_position = self._positions[about.timestep]  # type: ignore[misc]

    def processor(self, inner: Any, handle: Tensor) -> Processor:  # type: ignore[override]
        """Ours for a stock one."""
        stock: type = type(inner)
        return processor_class(stock)(inner, handle, self._arrivals)

    def finished(self, transformer: nn.Module) -> None:
        """A forward came to its end.

        Raises:
            RuntimeError: some of the modules that should be made sparse did not attend in it.
        """
        self._arrivals.finish(transformer)

    def sites(self, transformer: nn.Module) -> list[nn.Module]:
        return list(self._sites(transformer).values())

    def _sites(self, transformer: nn.Module) -> dict[str, nn.Module]:
        if transformer not in self._found:
            self._found[transformer] = sites_of(transformer, self.about.patterns)
        return self._found[transformer]

    def stock(self, processor: Any) -> bool:
        return attends(stock_of(processor))

    def heads(self, transformer: nn.Module) -> tuple[int, int]:
        if transformer not in self._heads:
            self._heads[transformer] = self.about.heads or heads_of(transformer, self.sites(transformer)[0])
        return self._heads[transformer]

    def layout(self, transformer: nn.Module, call: Call) -> TokenLayout:
        grid, said = self._grid(transformer, self._argument(call, STATES))
        text = self._text_tokens(call)
        if text:
            said = f"{said} {'after' if self.about.text == 'before' else 'and'} {text} text tokens"
        layout = TokenLayout(*grid, **({f"text_{self.about.text}": text} if text else {}))
        self._arrivals.begin(self._sites(transformer), layout, self.heads(transformer), said)
        return layout

    def _grid(self, transformer: nn.Module, states: Tensor) -> tuple[tuple[int, int, int], str]:
        """Frames, rows and columns in tokens, and what they come from."""
        if self.about.grid is not None:
            told = TokenLayout.parse(self.about.grid)
            return (told.frames, told.height, told.width), f"Generic(grid={self.about.grid!r})"
        config: Any = transformer.config
        patch = self.about.patch or patch_of(config)
        axes = self.about.latents or axes_of(config, states)
        size = tuple(states.shape[axes.index(axis)] for axis in "THW")
        grid = tuple(count // each for count, each in zip(size, patch, strict=True))
        said = (f"{STATES} {list(states.shape)} as {axes} in patches of {'x'.join(map(str, patch))}, a grid of "
                f"{'x'.join(map(str, grid))},")  # fmt: skip
        if not all(grid):
            raise ValueError(f"{said} has no tokens: give Generic(patch=...), Generic(latents=...) or grid=...")
        return grid, said  # type: ignore[return-value]

    def queries(self, transformer: nn.Module, call: Call, layout: TokenLayout) -> Tensor:
        states = self._argument(call, STATES)
        return super().queries(transformer, Call((states,), {}), layout)

    def timestep(self, call: Call) -> Tensor:
        step = torch.as_tensor(self._argument(call, self.about.timestep))
        self._timestep = float(step.max())
        return step

    def scheduled(self, scheduler: Any) -> Tensor | None:
        """A run's timesteps.

        Raises:
            RuntimeError: they go the other way than was said, so that each step would count as a run of its own.
        """
        timesteps, (source, last) = super().scheduled(scheduler), self._last
        back = last - self._timestep if self.timesteps_rise else self._timestep - last
        if timesteps is not None and timesteps is source and back > 0:
            raise RuntimeError(
                f"{self.about.timestep} went from {last:g} to {self._timestep:g} in one run, against "
                f"timesteps_rise={self.timesteps_rise}: give Generic(timesteps_rise={not self.timesteps_rise})"
            )
        self._last = timesteps, self._timestep
        return timesteps

    def _argument(self, call: Call, name: str) -> Any:
        return call.get(name, self._positions.get(name, len(call.args)))

    def _text_tokens(self, call: Call) -> int:
        if self.about.text is None or self.about.text_tokens is not None:
            return self.about.text_tokens or 0
        given = TEXT in call.kwargs or self._positions.get(TEXT, len(call.args)) < len(call.args)
        states = self._argument(call, TEXT) if given else None
        if not isinstance(states, Tensor) or states.ndim != 3:
            raise ValueError(f"text={self.about.text!r}, but the forward got no {TEXT} [batch, tokens, dim]: give "
                             "Generic(text_tokens=...)")  # fmt: skip
        return states.shape[1]
