"""What the attention modules of a model without a family do in a forward, against what was said of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel.layout import TokenLayout


def folded(names: Iterable[str]) -> str:
    """Names with a star for each number, each once: "blocks.*.attn1, blocks.*.attn2"."""
    return ", ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))


class Arrivals:
    """The modules of one forward after the other, in the order in which they are expected."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._order: dict[int, int] = {}
        self._grid: tuple[TokenLayout, tuple[int, int], str] | None = None
        self._ran: set[int] = set()
        self._last = -1
        self._trained = False
        self._complete: set[int] = set()
        """Ids of transformers in whose forward all modules ran once."""
        self._lengths: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(
        self, sites: Mapping[str, nn.Module], layout: TokenLayout, heads: tuple[int, int], said: str
    ) -> None:
        """A forward begins.

        Args:
            said: what the layout comes from, for errors.
        """
        self._names = {id(module): name for name, module in sites.items()}
        self._order = {each: index for index, each in enumerate(self._names)}
        self._grid = layout, heads, said
        self._ran, self._last, self._trained = set(), -1, False
        self._lengths.clear()

    def finish(self, transformer: nn.Module) -> None:
        """A forward came to its end.

        Raises:
            RuntimeError: it is the first, and some modules did not run in it.
        """
        left = [name for each, name in self._names.items() if each not in self._ran]
        first = id(transformer) not in self._complete
        self._grid = None
        self._lengths.clear()
        if self._trained:
            return
        if first and left:
            raise RuntimeError(
                f"{len(left)} of the {len(self._names)} attention modules that should be made sparse did not attend in "
                f"the forward of {type(transformer).__name__}: {folded(left)}; name those that do by Generic(sites=...)"
            )
        self._complete.add(id(transformer))

    def name(self, module: Any) -> str:
        """Of an attention module."""
        return self._names.get(id(module), type(module).__name__)

    def others(self) -> str:
        """What to do where a module should be left out."""
        return f"name the others of {folded(self._names.values())} by Generic(sites=...)"

    def trained(self) -> None:
        """A module was left to the stock attention, as it computes gradients."""
        self._trained = True

    def arrived(self, module: Any, query: Tensor) -> None:
        """A module attends to the tokens ``[batch, tokens, heads, head_dim]`` that it reads.

        Raises:
            RuntimeError: they are not those of the grid, or it is not this module's turn.
        """
        name, tokens = self.name(module), query.shape[1]
        if self._grid is None or id(module) not in self._order:
            raise RuntimeError(f"{name} ran outside its transformer's forward, so that its token grid is unknown: call "
                               "the transformer itself, or disable sparse attention")  # fmt: skip
        layout, heads, said = self._grid
        if tokens != layout.tokens:
            raise RuntimeError(self._misfit(name, tokens, layout, said))
        if tuple(query.shape[2:]) != heads:
            raise RuntimeError(f"{name} has {query.shape[2]} heads of {query.shape[3]}, not {heads[0]} of {heads[1]}: "
                               f"give Generic(heads={tuple(query.shape[2:])})")  # fmt: skip
        index = self._order[id(module)]
        if index <= self._last:
            before = next(each for each, at in self._order.items() if at == self._last)
            raise RuntimeError(f"{name} runs after {self._names[before]}, or twice in a forward: name the modules in "
                               "the order in which they run by Generic(sites=...)")  # fmt: skip
        self._last = index
        self._ran.add(id(module))

    def _misfit(self, name: str, tokens: int, layout: TokenLayout, said: str) -> str:
        more = tokens - layout.tokens
        text = ""
        if more > 0 and layout.tokens == layout.video_tokens:
            text = f'if the {more} more are text, say where it stands by Generic(text="before") or "after"; '
        return (
            f"{name} attends to {tokens} tokens, but {said} is {layout.tokens}: {text}if the grid is another, give "
            "Generic(latents=...), Generic(patch=...) or Generic(grid=...); if only this module has another sequence, "
            f"{self.others()}"
        )

    def lengths(self, module: Any, mask: Any, tokens: int) -> Tensor:
        """Valid keys of each row, int ``[batch]``, behind a mask; of each mask the GPU is waited for once a forward.

        Raises:
            RuntimeError: it hides something else than the end of each row's sequence.
        """
        if id(mask) in self._lengths:
            return self._lengths[id(mask)][1]
        if not isinstance(mask, Tensor):
            raise RuntimeError(self._masked(module, f"a {type(mask).__name__}"))
        if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1:] != (1, 1, tokens):
            raise RuntimeError(self._masked(module, f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"))
        keys = mask[:, 0, 0]
        if bool((keys[:, 1:] & ~keys[:, :-1]).any()) or not bool(keys[:, 0].all()):
            raise RuntimeError(self._masked(module, f"{list(mask.shape)} that hides keys before others that count"))
        lengths = keys.sum(dim=1, dtype=torch.int32)
        self._lengths[id(mask)] = mask, lengths
        return lengths

    def _masked(self, module: Any, what: str) -> str:
        return (
            f"{self.name(module)} attends with a mask, {what}; only one that hides the end of each row's sequence, "
            "bool [batch, 1, 1, tokens], can be kept: the class needs a family of its own, or, if other modules have "
            f"no such mask, {self.others()}"
        )
