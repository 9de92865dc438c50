"""Runs a cache on the transformers of a pipeline: who is asked when, what is kept, and what blocks return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel.caching import memory, stack
from vidaccel.caching.base import Place, Turn, Verdict
from vidaccel.caching.cache import Cache
from vidaccel.caching.log import COMPUTED, GUIDANCE, Decision, Log
from vidaccel.caching.passes import OUTPUT, Arrival, Branch, Pass, Spot, Streams
from vidaccel.caching.predictors import Affine
from vidaccel.caching.signals import Model, Seen
from vidaccel.caching.time_scale import TimeScale
from vidaccel.parallel import shares


class Runtime:
    """One cache on one pipeline, from `attach` to `detach`. State is dropped when a new generation begins."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.log = Log()
        self._attached: list[tuple[nn.Module, Model, Any]] = []
        self._blocks: dict[int, int] = {}
        self._branches: dict[tuple[str, str], Branch] = {}
        self._led: tuple[str, int, Verdict] | None = None
        self._began: dict[str, int] = {}
        self._passes = 0
        self._pass: Pass | None = None
        self._time: TimeScale | None = None
        self.agree: Callable[[Verdict | None], Verdict] | None = None
        """Where other processes compute the later guidance passes of a step: tells them the verdict on the first."""

    @property
    def armed(self) -> bool:
        """Whether a forward is on its way whose blocks are the cache's affair."""
        return self._pass is not None

    def attach(self, transformer: nn.Module, model: Model) -> None:
        """Watch a transformer.

        Raises:
            ValueError: it is compiled as a whole, its blocks cannot be bracketed, or the policy is not for so many.
        """
        name = type(transformer).__name__
        if not model.cacheable:
            raise ValueError(f"the blocks of {name} cannot be bracketed, so that no step can be cached: cache=None")
        if model.predictions > 1 and not self._stacked:
            raise ValueError(f"{name} returns {model.predictions} predictions, of which reuse="
                             f"{self.cache.place.value!r} would keep one: choose reuse='stack'")  # fmt: skip
        if self.cache.guided_steps and model.batched_guidance:
            raise ValueError(f"{self.cache.guidance} leaves out unconditional calls, and in {name} both guidance "
                             "passes share one: leave it out")  # fmt: skip
        if _compiled(transformer):
            raise ValueError(whole(name))
        count = len(model.blocks(transformer))
        if self.cache.policy.segments(count) != ((0, count),) and not self._stacked:
            raise ValueError(f"{self.cache.policy.name!r} reuses part of the blocks, which reuse={self.cache.reuse!r} "
                             "cannot: leave it out")  # fmt: skip
        self._blocks[id(transformer)] = stack.attach(self, transformer, model.stacks)
        # After whatever else returns the output; not by replacing `forward`, which offloading replaces, too.
        hook = transformer.register_forward_hook(torch.compiler.disable(self._finish))
        self._attached.append((transformer, model, hook))

    def detach(self) -> None:
        """Undo every `attach`."""
        for transformer, model, hook in self._attached:
            hook.remove()
            stack.detach(transformer, model.stacks)
        self._attached, self._pass = [], None
        self._give_back_time()
        self.forget()

    def begin_run(self, scheduler: Any, steps: int | None) -> None:
        """A new generation: nothing of the last one counts.

        Args:
            scheduler: the pipeline's, with this run's timesteps; None for a bare transformer.
            steps: of the run, None where unknown.

        Raises:
            ValueError: the policy adjusts steps of time, which this run does not allow.
        """
        self.forget()
        self.log = Log()
        self._give_back_time()
        if self.cache.policy.adjusts:
            assert steps is not None
            self._time = TimeScale(scheduler, steps)

    def _give_back_time(self) -> None:
        if self._time is not None:
            self._time.restore()
        self._time = None

    def forget(self) -> None:
        """Drop all that is remembered of computed steps."""
        self._branches, self._led, self._began, self._passes = {}, None, {}, 0

    def begin(self, arrival: Arrival, transformer: nn.Module, model: Model) -> None:
        """A forward begins; its first block will decide what becomes of it.

        Raises:
            RuntimeError: the transformer was compiled as a whole since `attach`.
        """
        if _compiled(transformer):
            raise RuntimeError(whole(type(transformer).__name__))
        if self._pass is not None:
            # An exception ended the last forward: what it left is of no known step.
            self.forget()
        for key in [key for key in self._branches if key[0] != arrival.expert]:
            del self._branches[key]
        self._began.setdefault(arrival.expert, arrival.step)
        key = (arrival.expert, arrival.branch)
        if key not in self._branches or self._branches[key].regime != arrival.regime:
            self._branches[key] = Branch(arrival.regime)
        segments = self.cache.policy.segments(self._blocks[id(transformer)])
        seen = Seen(model, transformer, arrival.call, arrival.rows, arrival.every)
        self._pass = Pass(arrival, model, transformer, self._branches[key], segments, seen)
        self.log.start(seen.device)

    def pass_by(self, expert: str, step: int, index: int, agree: Callable[[Verdict | None], Verdict]) -> None:
        """Take note of a guidance pass that other processes compute: where it leads, its verdict counts here, too.

        Args:
            index: calls of the step before it.
            agree: waits for its verdict; see `agree`.
        """
        self._began.setdefault(expert, step)
        if self.cache.policy.leads and index == 0:
            self._led = (expert, step, agree(None))

    def run(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a block returns: its own output, what it was given, or what its segment is predicted to give."""
        now = self._now
        streams = self._streams(now, block, args, kwargs)
        if index == 0:
            now.seen.first(block, now.seen.block_call(args, kwargs), streams)
            if now.segments[0][0] > 0:
                now.arrival.prepare(range(now.segments[0][0]))
        number = next((number for number, (start, end) in enumerate(now.segments) if start <= index < end), None)
        if number is not None and index == now.segments[number][0]:
            now.entered = streams
            now.seen.entering(streams)
            if now.decision is None:
                self._decide(now)
        if number is None or not self._passes_by(now):
            out = block(*args, **kwargs)
            if number is not None and index == now.segments[number][1] - 1:
                self._left(now, number, [out] if isinstance(out, Tensor) else list(out))
            return out
        last = index == now.segments[number][1] - 1
        return _packed(self._leaving(now, number) if last and self._stacked else streams)

    def _streams(self, now: Pass, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        """What a block takes and returns changed, of this process's tokens."""
        if now.arrival.every is not None:
            args, kwargs = shares.of_call(block, args, kwargs)
        call = now.seen.block_call(args, kwargs)
        return [call.get(name, position) for name, position in now.model.streams]

    @property
    def _now(self) -> Pass:
        assert self._pass is not None
        return self._pass

    @property
    def _stacked(self) -> bool:
        return self.cache.place is Place.STACK

    def _passes_by(self, now: Pass) -> bool:
        return now.decision is not None and now.decision.what != COMPUTED

    def _decide(self, now: Pass) -> None:
        """Settle what becomes of this forward, and tell who runs its blocks."""
        branch, arrival = now.branch, now.arrival
        if branch.step is None:
            self._check_memory(now)
        most = self.cache.most_reused
        must = not arrival.may_reuse or branch.step is None or (most is not None and branch.reused >= most)
        since = 0 if branch.step is None else arrival.step - branch.step
        now.turn = Turn(arrival.step, arrival.steps, arrival.branch, arrival.expert, self._began[arrival.expert],
                        arrival.timestep, arrival.timesteps, since, must, arrival.allowance)  # fmt: skip
        verdict = self._verdict(now, now.turn)
        what = COMPUTED
        if verdict.reuse and not must:
            what = "reused" if self.cache.predictor.tensors == 1 else "predicted"
        change = None
        if what == COMPUTED and self._can_guide(now):
            what, change = self._guided(now)
        now.decision = Decision(arrival.step, arrival.expert, arrival.branch, what, verdict.indicator,
                                must and what == COMPUTED, arrival.sparse, change)  # fmt: skip
        left = self._left_to_run(now)
        self.log.spared += self._blocks[id(now.transformer)] - now.segments[0][0] - len(left)
        arrival.prepare(left)

    def _verdict(self, now: Pass, turn: Turn) -> Verdict:
        """The policy's, or that of the step's first pass where it leads."""
        policy, led = self.cache.policy, self._led
        if policy.leads and now.arrival.index and led is not None and led[:2] == (turn.expert, turn.step):
            return led[2]
        verdict = policy.decide(turn, now.seen, now.branch.state)
        if policy.leads:
            # As it came out: a step that the plan computes is computed by every pass.
            said = Verdict(verdict.reuse and not turn.must_compute, verdict.indicator)
            self._led = (turn.expert, turn.step, said)
            if self.agree is not None and now.arrival.index == 0:
                self.agree(said)
        return verdict

    def _left_to_run(self, now: Pass) -> list[int]:
        """Blocks that run, of those from the first segment on."""
        spared = now.segments if self._passes_by(now) else ()
        rest = range(now.segments[0][0], self._blocks[id(now.transformer)])
        return [index for index in rest if not any(start <= index < end for start, end in spared)]

    def _left(self, now: Pass, number: int, streams: Streams) -> None:
        """A segment was computed: let the policy see what it added, and keep that if anything can come of it."""
        policy, keeps = self.cache.policy, self._stacked and self._comes_later(now)
        seen = number == 0 and policy.place is Place.STACK and self._observes(now)
        for place, (out, entered) in enumerate(zip(streams, now.entered, strict=True)):
            if not keeps and not (seen and place == 0):
                return
            residual = out - entered
            if seen and place == 0:
                self._observe(now, residual)
            if keeps:
                self._keep(now, (number, place), residual)

    def _observe(self, now: Pass, residual: Tensor) -> None:
        assert now.turn is not None
        self.cache.policy.observe(now.turn, now.seen, now.seen.rows(residual), now.branch.state)

    def _keep(self, now: Pass, spot: Spot, value: Tensor) -> None:
        branch, first = now.branch, self._first_pass(now)
        branch.kept[spot] = self.cache.predictor.keep(branch.kept.get(spot), now.arrival.step, value)
        if first is not None and self.cache.guided_steps:
            self._check_passes(value, first.kept[spot].last)
            difference = value - first.kept[spot].last
            branch.difference.measure(self.cache.predictor, spot, now.arrival.step, difference, now.seen.mean)

    def _check_passes(self, value: Tensor, first: Tensor) -> None:
        if value.shape != first.shape:
            raise ValueError(f"{self.cache.guidance} needs guidance passes of equal sequences, and the streams here "
                             f"have {first.shape[1]} and {value.shape[1]} tokens: use reuse='output' or 'prediction', "
                             "or leave it out")  # fmt: skip

    def _comes_later(self, now: Pass) -> bool:
        """Whether what is computed now may be reused: by a later step, or by a later pass of this one."""
        return now.arrival.may_reuse or not self._at_end(now)

    def _at_end(self, now: Pass) -> bool:
        return now.arrival.steps is not None and now.arrival.step == now.arrival.steps - 1

    def _observes(self, now: Pass) -> bool:
        return now.arrival.index == 0 or not self.cache.policy.leads

    def _first_pass(self, now: Pass) -> Branch | None:
        """What is remembered of the step's first pass, for a later one; None where it was not computed."""
        name = next((branch for expert, branch in self._branches if expert == now.arrival.expert), None)
        first = self._branches.get((now.arrival.expert, name or ""))
        computed = first is not None and now.arrival.index > 0 and first.step == now.arrival.step
        return first if computed and first is not now.branch else None

    def _can_guide(self, now: Pass) -> bool:
        """Whether the unconditional pass may go by the conditional one of this step, if their difference is steady."""
        difference = now.branch.difference
        ready = now.arrival.may_reuse and bool(difference.kept) and self._first_pass(now) is not None
        return ready and difference.guided < self.cache.guided_steps

    def _guided(self, now: Pass) -> tuple[str, float | None]:
        """What becomes of an unconditional pass that may go by the conditional one, and the number that says so."""
        limit = self.cache.guidance_change
        if limit is None:
            return GUIDANCE, None
        change = now.branch.difference.change()
        steady = change is not None and change < limit * now.arrival.allowance
        return GUIDANCE if steady else COMPUTED, change

    def _predicted(self, now: Pass, spot: Spot) -> Tensor:
        """What stands for a value that was not computed."""
        assert now.decision is not None
        branch, predictor = now.branch, self.cache.predictor
        if now.decision.what != GUIDANCE:
            return predictor.predict(branch.kept[spot], now.arrival.step)
        first = self._first_pass(now)
        assert first is not None
        difference = predictor.predict(branch.difference.kept[spot], now.arrival.step)
        value = first.kept[spot].last + difference
        branch.kept[spot] = predictor.keep(branch.kept.get(spot), now.arrival.step, value)
        return value

    def _leaving(self, now: Pass, number: int) -> Streams:
        """What leaves a segment that was not computed."""
        return [entered + self._predicted(now, (number, place)).to(entered.dtype)
                for place, entered in enumerate(now.entered)]  # fmt: skip

    def _finish(self, transformer: nn.Module, args: Any, output: Any) -> Any:
        """The forward ends: keep what it gave, or replace it."""
        now, self._pass = self._pass, None
        if now is None:
            return None
        if now.decision is None:
            raise RuntimeError(f"{type(transformer).__name__} ran none of the blocks that its cache watches")
        replaced = self._output(now, output)
        self._count(now)
        self.log.add(now.decision, now.seen.device)
        if self._time is not None and now.arrival.index == 0:
            self._adjust(now, self._time)
        return replaced

    def _adjust(self, now: Pass, time: TimeScale) -> None:
        """Shorten the scheduler's step to come by what the policy says of a reused call; all passes share it."""
        if self._passes_by(now):
            assert now.turn is not None and now.branch.step is not None
            share, until = self.cache.policy.stride(now.turn, now.branch.step)
            time.shorten(now.arrival.step, share, until, now.model.timestep(now.arrival.call).dtype)
        if self._at_end(now) and time.note is not None:
            self.log.notes.append(time.note)

    def _output(self, now: Pass, output: Any) -> Any:
        """Keep what is reused of a computed output; a new output where it was not computed, else None."""
        sample = output if isinstance(output, Tensor) else output[0]
        latents, policy = now.seen.all_latents(), self.cache.policy
        whole = self.cache.place is Place.PREDICTION
        if not self._passes_by(now):
            if policy.place is not Place.STACK and self._observes(now):
                self._observe(now, sample - latents)
            if not self._stacked and self._comes_later(now):
                self._keep(now, OUTPUT, sample if whole else sample - latents)
            return None
        if self._stacked:
            return None
        kept_step, turn = now.branch.kept[OUTPUT].step, now.turn
        value = self._predicted(now, OUTPUT).to(sample.dtype)
        new = value if whole else latents + value
        assert turn is not None
        held = now.decision is not None and now.decision.what != GUIDANCE
        if held and isinstance(self.cache.predictor, Affine) and (found := policy.correction(turn, kept_step)):
            new = new - (found[0] * new + found[1])
        if isinstance(output, Tensor):
            return new
        return (new, *output[1:]) if isinstance(output, tuple) else type(output)(sample=new)

    def _count(self, now: Pass) -> None:
        branch, arrival, decision = now.branch, now.arrival, now.decision
        assert decision is not None
        if decision.what in (COMPUTED, GUIDANCE):
            branch.step, branch.reused = arrival.step, 0
            branch.difference.guided += decision.what == GUIDANCE
        else:
            branch.reused += 1
        self._passes = max(self._passes, arrival.index + 1)
        if self._at_end(now) and arrival.index == self._passes - 1:
            # Decoding comes next, which needs the room.
            self._branches.clear()
            if self.cache.guided_steps and self._passes == 1:
                self.log.notes.append(f"{self.cache.guidance} had nothing to leave out: each step was one pass")

    def _check_memory(self, now: Pass) -> None:
        stacked = sum(each.nbytes for each in now.entered) * len(now.segments)
        per = stacked if self._stacked else now.seen.all_latents().nbytes
        # A later pass keeps its difference to the first one as it keeps itself.
        kinds = 2 if self.cache.guided_steps and now.arrival.index else 1
        needed = per * self.cache.predictor.tensors * kinds
        memory.check(needed, now.entered[0].device, self.cache.max_memory, now.arrival.every)


def _packed(streams: Sequence[Tensor]) -> Any:
    return streams[0] if len(streams) == 1 else tuple(streams)


def _compiled(transformer: nn.Module) -> bool:
    """Whether `nn.Module.compile` was called on it."""
    return getattr(transformer, "_compiled_call_impl", None) is not None


def whole(name: str) -> str:
    """Why a model that is compiled as a whole is refused."""
    return (f"{name} is compiled as a whole, where no step can be left out: with a cache, compile its blocks, by "
            "transformer.compile_repeated_blocks() or, where its class does not support that, each by block.compile()")
