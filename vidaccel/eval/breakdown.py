"""Where the time of a generation goes: text, plan, permute, attention, rest, VAE; measured in runs of their own.

What is timed is replaced for the run by functions that time it, so that no other run pays anything.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel import kernels
from vidaccel.eval.runner import Run, synchronize
from vidaccel.eval.stand_in import Wrap, stand_in
from vidaccel.kernels import compose, op
from vidaccel.pipelines import compiled, experts, family_of
from vidaccel.pipelines.processor import Mode
from vidaccel.session import Session

TEXT, PLAN, PERMUTE, ATTENTION, REST, VAE = "text", "plan", "permute", "attention", "rest", "vae"
PARTS = (TEXT, PLAN, PERMUTE, ATTENTION, REST, VAE)
IN_PLACE = "triton"
"""The backend whose kernels read tokens where they lie, whatever the plan's order."""


class Stopwatch:
    """Seconds by part; a part inside another counts for itself alone.

    Args:
        clock: seconds; waits for a GPU.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds = {part: 0.0 for part in PARTS if part != REST}
        self._clock, self._open, self._since = clock, [REST], 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """What has passed since the last turn goes to the part at work."""
        now = self._clock()
        if self._open[-1] != REST:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timing(self, part: str) -> Wrap:
        """What makes of a function one whose calls count for `part`."""

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def timed(*args: Any, **kwargs: Any) -> Any:
                with self.part(part):
                    return original(*args, **kwargs)

            return timed

        return wrap


def parts_of(pipe: Any, session: Session | None, run: Callable[[], Run]) -> dict[str, float]:
    """Seconds by part of one generation.

    Args:
        pipe: enabled are `session` and nothing else.
        session: attached; None for a dense run.
        run: makes the generation.

    Returns:
        ``text``, the prompt's encoding; ``plan``, deciding what to attend to and keeping count; ``permute``, moving
        tokens into the plan's order and back; ``attention`` of the layers that sparse attention is for, dense or
        sparse; ``vae``, its encoder and decoder; and ``rest``, the remainder of the whole.

    Raises:
        ValueError: compiled blocks, or attention processors that are not diffusers' own.
    """
    check(pipe)
    watch = Stopwatch(_clock)
    with contextlib.ExitStack() as stack:
        if session is None or not session.setting.sparse:
            stack.enter_context(_dense_processors(pipe))
        for owner, name, part in _timed(pipe, session):
            stack.enter_context(stand_in(owner, name, watch.timing(part)))
        seconds = run().seconds
    found = {**watch.seconds, REST: seconds - sum(watch.seconds.values())}
    return {part: found[part] for part in PARTS}


def note(backend: str | None) -> str:
    """What a reader of the parts needs to know; `backend` is that of the fast run."""
    waits = "; each part waits for the GPU, which makes the whole longer" if torch.cuda.is_available() else ""
    in_place = "; its kernels read tokens where they lie, so that permuting is in it" if backend == IN_PLACE else ""
    return ("one dense and one fast run of their own, whose plans are all made in it; attention is that of the layers "
            f"that sparse attention is for{in_place}{waits}")  # fmt: skip


def check(pipe: Any) -> None:
    """Refuse what cannot be taken apart.

    Raises:
        ValueError: a transformer that is compiled, as a whole or by block: its parts are not called one by one.
    """
    modules = [module for each in experts(pipe).values() for module in each.modules()]
    if compiled(pipe) or any(getattr(module, "_compiled_call_impl", None) is not None for module in modules):
        raise ValueError(f"the transformer of {type(pipe).__name__} is compiled, so that its time cannot be told part "
                         "by part: leave out breakdown, or do not compile")  # fmt: skip


def _clock() -> float:
    synchronize()
    return time.perf_counter()


def _timed(pipe: Any, session: Session | None) -> Iterator[tuple[Any, str, str]]:
    """What counts for which part: owner, name of the function, part."""
    if hasattr(pipe, "encode_prompt"):
        yield pipe, "encode_prompt", TEXT
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name.startswith("text_encoder"):
            yield part, "forward", TEXT
        elif isinstance(part, nn.Module) and "vae" in name:
            yield from ((part, method, VAE) for method in ("encode", "decode") if hasattr(part, method))
    for transformer in experts(pipe).values():
        for module in family_of(transformer).sites(transformer):
            # Within it there is the attention itself; what surrounds that is the deciding.
            yield module.processor, "attend", PLAN
            yield module.processor, "dense", ATTENTION
    yield kernels, "attention", ATTENTION
    yield from ((compose, name, PERMUTE) for name in ("permuted", "restored"))
    if session is not None:
        yield from ((session, name, PLAN) for name in ("begin", "_prepare"))
        # Compensation, too.
        yield session.calls, "_sparse", ATTENTION


class _Nobody:
    """Whom processors ask that have been told to be dense: they do not ask."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        raise AssertionError("a dense processor does not ask")


@contextlib.contextmanager
def _dense_processors(pipe: Any) -> Iterator[None]:
    """Ours in place of the stock ones, which give the same bits: in them attention is a call of its own."""
    nobody, stock = _Nobody(), []
    try:
        for transformer in experts(pipe).values():
            family = family_of(transformer)
            sites: list[Any] = family.sites(transformer)
            for module in sites:
                if not family.stock(module.processor):
                    raise ValueError(f"{type(transformer).__name__} has the attention processor "
                                     f"{type(module.processor).__name__}, which is not diffusers' own, so that its "
                                     "attention cannot be timed")  # fmt: skip
                stock.append((module, module.processor))
                module.processor = made = family.processor(module.processor, op.handle(nobody))
                made.mode = Mode.DENSE
        yield
    finally:
        for module, processor in stock:
            module.processor = processor
