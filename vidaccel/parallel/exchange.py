"""The Ulysses exchange: from some tokens of all heads to all tokens of some heads, and back, around one attention call.

After DeepSpeed-Ulysses (Jacobs et al., 2023, arXiv 2309.14509): between the two exchanges attention runs as in one
process, whatever its kind. Video tokens are split; text tokens of a joint attention are on every rank, so that of them
only the outputs travel. Both exchanges are custom ops that find an `Exchange` by a handle, a tensor: to a compiler
nothing changes when a new generation deals its heads anew.
"""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.parallel.split import Split
from vidaccel.site import Dealt

_IDS = itertools.count()
# As that of the attention op: weak, and ids are never reused.
_EXCHANGES: weakref.WeakValueDictionary[int, Exchange] = weakref.WeakValueDictionary()


class Exchange:
    """What one layer exchanges on one grid, for a generation; all known before, so that a compiler sees numbers.

    Args:
        split: of the clip.
        layout: its whole grid.
        deal: the heads of each rank of `split.ulysses`, ascending; together all heads.

    Attributes:
        dealt: the heads of this rank, for methods.
        own, heads: numbers of heads, of this rank and of all.
        sizes: video tokens of each rank of `split.ulysses`, which follow each other.
        video, text: tokens of the whole sequence.
        local: tokens of this rank outside attention: its part of the video and all text.
        inside: tokens that attention is given here: all of them, or the ring's stretch of the video and all text.

    Raises:
        ValueError: the grid cannot be split.
    """

    def __init__(self, split: Split, layout: TokenLayout, deal: tuple[tuple[int, ...], ...]) -> None:
        self.split, self.layout, self.deal = split, layout, deal
        rank, ranks = split.ulysses.rank, split.ulysses.size
        self.dealt = Dealt(deal, rank, split.ulysses, split.every)
        self.own, self.heads = len(deal[rank]), self.dealt.total
        self.sizes = split.sizes(layout.video_tokens)[split.ring.rank * ranks :][:ranks]
        self.video, self.text = layout.video_tokens, layout.tokens - layout.video_tokens
        self.local, self.inside = self.text + self.sizes[rank], self.text + sum(self.sizes)
        self._indices: dict[torch.device, tuple[Tensor, ...]] = {}
        self.handle = torch.tensor([next(_IDS)])
        _EXCHANGES[int(self.handle)] = self

    def gathered(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From ``[batch, local, heads, head_dim]`` to ``[batch, inside, own, head_dim]``, of the heads of this rank."""
        query, key, value = exchange_heads(query, key, value, self.handle, self.own, self.inside)
        return query, key, value

    def scattered(self, out: Tensor) -> Tensor:
        """From ``[batch, inside, own, head_dim]`` back to ``[batch, local, heads, head_dim]``."""
        back: Tensor = exchange_tokens(out, self.handle, self.heads, self.local)
        return back

    def to_heads(self, states: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What the op behind `gathered` computes, in one collective."""
        for each in states:
            if each.shape[1:3] != (self.local, self.heads):
                raise RuntimeError(
                    f"an attention call of {each.shape[1]} tokens and {each.shape[2]} heads does not fit rank "
                    f"{self.split.every.rank} of a clip of {self.layout} over {self.split.every.size} processes, which "
                    f"has {self.local} tokens and {self.heads} heads: the model was split by another plan than that of "
                    "vidaccel.parallel_plan(transformer)"
                )
        index, before = self._index(states[0].device), self.layout.video_start
        video = slice(before, before + self.sizes[self.split.ulysses.rank])
        outgoing = [torch.stack([each[:, video].index_select(2, heads) for each in states]) for heads in index]
        batch, head_dim = states[0].shape[0], states[0].shape[3]
        shapes = [(3, batch, size, self.own, head_dim) for size in self.sizes]
        came = self.split.ulysses.all_to_all(outgoing, shapes)
        mine = index[self.split.ulysses.rank]
        query, key, value = (
            torch.cat([
                each[:, :before].index_select(2, mine), *(part[place] for part in came),
                each[:, video.stop :].index_select(2, mine),
            ], dim=1)
            for place, each in enumerate(states)
        )  # fmt: skip
        return query, key, value

    def to_tokens(self, out: Tensor) -> Tensor:
        """What the op behind `scattered` computes, in one collective: the outputs of text go to all ranks."""
        before, end = self.layout.video_start, self.layout.video_start + sum(self.sizes)
        parts = out[:, before:end].split(self.sizes, dim=1)
        outgoing = [torch.cat([out[:, :before], part, out[:, end:]], dim=1) if self.text else part for part in parts]
        shapes = [(len(out), self.local, len(heads), out.shape[3]) for heads in self.deal]
        return self.dealt.ordered(torch.cat(self.split.ulysses.all_to_all(outgoing, shapes), dim=2), 2)

    def _index(self, device: torch.device) -> tuple[Tensor, ...]:
        """The heads of each rank, on a device."""
        if device not in self._indices:
            self._indices[device] = tuple(torch.tensor(heads, device=device) for heads in self.deal)
        return self._indices[device]


@torch.library.custom_op("vidaccel::exchange_heads", mutates_args=())
def exchange_heads(
    query: Tensor, key: Tensor, value: Tensor, handle: Tensor, own: int, inside: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`Exchange.gathered` of the exchange behind a handle.

    Raises:
        RuntimeError: tensors that do not fit, or another process has gone.
    """
    return _EXCHANGES[int(handle)].to_heads((query, key, value))


@exchange_heads.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, handle: Tensor, own: int, inside: int
) -> tuple[Tensor, Tensor, Tensor]:
    shape = query.shape[0], inside, own, query.shape[3]
    return query.new_empty(shape), key.new_empty(shape), value.new_empty(shape)


@torch.library.custom_op("vidaccel::exchange_tokens", mutates_args=())
def exchange_tokens(out: Tensor, handle: Tensor, heads: int, local: int) -> Tensor:
    """`Exchange.scattered` of the exchange behind a handle.

    Raises:
        RuntimeError: another process has gone.
    """
    return _EXCHANGES[int(handle)].to_tokens(out)


@exchange_tokens.register_fake
def _(out: Tensor, handle: Tensor, heads: int, local: int) -> Tensor:
    return out.new_empty((out.shape[0], local, heads, out.shape[3]))
