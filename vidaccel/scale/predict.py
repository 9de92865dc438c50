"""Seconds of a step over several GPUs, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidaccel.costs import CostModel
from vidaccel.costs.shipped import GPU
from vidaccel.eval.sizes import ModelSize
from vidaccel.scale.attention import Attention, Load
from vidaccel.scale.degrees import Degrees, needs_anything, tokens_of
from vidaccel.scale.machine import Machine
from vidaccel.scale.traffic import Traffic, sent


@dataclass(frozen=True)
class Prediction:
    """A step, all of whose layers compute as told.

    Args:
        degrees: of the split.
        linear: seconds of projections, feed-forward layers and cross-attention.
        attention: seconds of self-attention, on the process that has the most of it.
        exchange: seconds in which heads are exchanged for tokens.
        ring: seconds in which keys and values go round.
        gather: seconds in which predictions are put together.
        load: what the processes have of the attention.
        traffic: bytes that a process sends in a pass.
    """

    degrees: Degrees
    linear: float
    attention: float
    exchange: float
    ring: float
    gather: float
    load: Load
    traffic: Traffic

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.linear + self.attention + self.exchange + self.ring + self.gather

    def to_dict(self, size: ModelSize, one: float) -> dict[str, Any]:
        """JSON-ready.

        Args:
            size: that this is for.
            one: seconds of the same step on one GPU.
        """
        degrees = self.degrees
        return {
            "guidance": degrees.guidance, "ring": degrees.ring, "ulysses": degrees.ulysses, "seconds": self.seconds,
            "linear": self.linear, "attention": self.attention, "exchange": self.exchange, "ring_exchange": self.ring,
            "gather": self.gather, "speedup": one / self.seconds, "efficiency": one / self.seconds / degrees.gpus,
            "imbalance": self.load.imbalance, "imbalance_plain": self.load.plain_imbalance,
            "gigabytes_sent": self.traffic.total * size.passes / degrees.guidance / 1e9,
            "needs": needs_anything(size, degrees),
        }  # fmt: skip


def predict(
    size: ModelSize, degrees: Degrees, machine: Machine, attention: Attention, costs: CostModel = GPU
) -> Prediction:  # fmt: skip
    """A step of a model on a machine.

    Args:
        size: the model, at its size.
        degrees: a split that works (see `vidaccel.scale.degrees.why_not`).
        machine: its speeds.
        attention: dense or sparse.
        costs: by which sparse attention is told from dense.
    """
    passes = size.passes / degrees.guidance
    load, traffic = attention.load(size, degrees, costs), sent(size, degrees)
    peak = machine.tflops * 1e12
    computing = 4 * size.head_dim * load.greatest / (peak * machine.assumed.attention)
    exchange, ring, gather = _moving(size, degrees, machine, traffic)
    hidden = machine.assumed.overlap * computing * (degrees.ring - 1) / degrees.ring
    guidance = machine.seconds(traffic.guidance, degrees.guidance - 1, _away(degrees.guidance, degrees.ranks, machine))
    return Prediction(
        degrees, passes * linear_flop(size, degrees) / (peak * machine.assumed.linear), passes * computing,
        passes * exchange, passes * max(0.0, ring - hidden), passes * gather + guidance, load, traffic,
    )  # fmt: skip


def linear_flop(size: ModelSize, degrees: Degrees) -> float:
    """Of one pass on the process with the most tokens, without self-attention.

    Text tokens, and keys and values of cross-attention, are the work of every process. Embeddings, modulation and what
    is there once per clip are left out.
    """
    text = size.layout.tokens - size.layout.video_tokens
    video = tokens_of(size.layout.video_tokens, degrees.ranks)[0]
    hidden = 4 * size.width if size.hidden is None else size.hidden
    block = 4 * size.width**2 + 2 * size.width * hidden
    weights = (video + text) * block
    if size.cross_tokens:
        weights += 2 * (video + size.cross_tokens) * size.width**2
    pairs = 4 * video * size.cross_tokens * size.width
    return float(size.layers * (2 * weights + pairs))


def _moving(size: ModelSize, degrees: Degrees, machine: Machine, traffic: Traffic) -> tuple[float, float, float]:
    """Seconds of a pass for the exchange of heads, the ring, and the gather at the end."""
    layers, wide, text = size.layers, degrees.ulysses, size.layout.tokens > size.layout.video_tokens
    # Queries, keys and values go there in one exchange; outputs come back in one, those of text with them.
    back = traffic.heads / 4 + traffic.text
    exchange = sum(
        machine.seconds(each / layers, wide - 1, _away(wide, 1, machine))
        for each in (traffic.heads + traffic.text - back, back)
    )
    ring, far = 0.0, _away(degrees.ring, wide, machine)
    if degrees.ring > 1:
        hops = degrees.ring - 1
        # A hop waits for the slowest of all, which crosses to another node if any does.
        ring = hops * machine.seconds(traffic.ring / layers / hops, 1, min(1, far))
        ring += machine.seconds(traffic.ring_text / layers, hops, far) if text else 0.0
    gather = machine.seconds(traffic.output, degrees.ranks - 1, _away(degrees.ranks, 1, machine))
    return layers * exchange, layers * ring, gather


def _away(members: int, apart: int, machine: Machine) -> int:
    """How many others of a group of ranks are on other nodes, of the member for which they are the most.

    Args:
        members: of the group.
        apart: how far from each other their ranks are.
        machine: whose nodes the ranks fill one after the other.
    """
    nodes = [member * apart // machine.per_node for member in range(members)]
    return max(members - nodes.count(node) for node in nodes)
