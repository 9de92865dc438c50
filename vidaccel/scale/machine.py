"""What a prediction takes a machine to be: peaks from datasheets, and what share of them is reached."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Link:
    """Between GPUs.

    Args:
        name: as on the command line.
        gigabytes: per second, GPU and direction, by its datasheet.
        source: of the number.
    """

    name: str
    gigabytes: float
    source: str


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Args:
        tflops: dense bf16 peak, TFLOP/s, by its datasheet.
        link: name of what connects those of one node.
    """

    tflops: float
    link: str


LINKS = {
    link.name: link
    for link in (
        Link("nvlink5", 900.0, "NVIDIA B200: 1.8 TB/s in both directions"),
        Link("nvlink4", 450.0, "NVIDIA H100, H200 and H20: 900 GB/s in both directions"),
        Link("nvlink3", 300.0, "NVIDIA A100: 600 GB/s in both directions"),
        Link("pcie5", 64.0, "PCI Express 5.0 x16: 128 GB/s in both directions"),
        Link("pcie4", 32.0, "PCI Express 4.0 x16: 64 GB/s in both directions"),
        Link("infiniband-ndr", 50.0, "one 400 Gb/s port (NVIDIA ConnectX-7) a GPU"),
        Link("infiniband-hdr", 25.0, "one 200 Gb/s port (NVIDIA ConnectX-6) a GPU"),
        Link("ethernet-100g", 12.5, "one 100 Gb/s port a GPU"),
    )
}
SHORT = {"nvlink": "nvlink4", "pcie": "pcie5", "infiniband": "infiniband-ndr", "ethernet": "ethernet-100g"}
"""The usual one of each kind of link."""
GPUS = {
    "b200": Gpu(2250.0, "nvlink5"),
    "h200": Gpu(989.0, "nvlink4"),
    "h100": Gpu(989.0, "nvlink4"),
    "h20": Gpu(148.0, "nvlink4"),
    "a100": Gpu(312.0, "nvlink3"),
    "l40s": Gpu(362.0, "pcie4"),
    "l20": Gpu(119.5, "pcie4"),
}
"""By NVIDIA's datasheets: of H100, H200 and B200 half of what they say, which is with structured sparsity."""


@dataclass(frozen=True)
class Assumed:
    """What nothing measured here says; each is a number to replace by your own.

    Args:
        attention: share of the peak that dense attention reaches.
        linear: share of the peak that all other layers reach together, what is not a matrix product in the time too.
        bandwidth: share of a link's bandwidth that a large exchange reaches.
        latency_us: microseconds that a collective takes before any byte has moved.
        overlap: share of a ring's hops that may be hidden behind attention; Ulysses exchanges never are.

    Raises:
        ValueError: a share that is none, or a negative latency.
    """

    attention: float = 0.6
    linear: float = 0.65
    bandwidth: float = 0.75
    latency_us: float = 20.0
    overlap: float = 0.0

    def __post_init__(self) -> None:
        for name in ("attention", "linear", "bandwidth"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"assumed {name}={getattr(self, name)!r} is not a share in (0, 1]")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"assumed overlap={self.overlap!r} is not a share in [0, 1]")
        if not 0 <= self.latency_us < math.inf:
            raise ValueError(f"assumed latency_us={self.latency_us!r} is not a number of microseconds of at least 0")


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes, all alike.

    Args:
        tflops: dense peak of one, TFLOP/s.
        link, network: within a node and between nodes.
        per_node: GPUs of a node; ranks fill one node after the other.
        assumed: what share of all that is reached.

    Raises:
        ValueError: a number that no machine has.
    """

    tflops: float
    link: Link
    network: Link = LINKS["infiniband-ndr"]
    per_node: int = 8
    assumed: Assumed = field(default_factory=Assumed)

    def __post_init__(self) -> None:
        if not 0 < self.tflops < math.inf:
            raise ValueError(f"a GPU of {self.tflops!r} TFLOP/s is none")
        if self.per_node < 1:
            raise ValueError(f"{self.per_node} GPUs in a node: give at least 1")

    @classmethod
    def of(
        cls, gpu: str, interconnect: str | None, network: str, per_node: int, assumed: Assumed
    ) -> Machine:  # fmt: skip
        """By names of GPU and links, which may also be numbers of GB/s; without `interconnect`, the GPU's own.

        Raises:
            ValueError: an unknown name, or as the class.
        """
        if gpu not in GPUS:
            raise ValueError(f"unknown GPU {gpu!r}; choose {', '.join(GPUS)}")
        inside = link_of(GPUS[gpu].link if interconnect is None else interconnect)
        return cls(GPUS[gpu].tflops, inside, link_of(network), per_node, assumed)

    def seconds(self, sent: float, peers: int, away: int) -> float:
        """Of a collective in which a rank sends as much to each of its peers.

        The links within a node and between nodes work at the same time.

        Args:
            sent: bytes to all of them together.
            peers: other ranks.
            away: of these, how many are on other nodes.
        """
        if not peers:
            return 0.0
        near, far = sent * (peers - away) / peers, sent * away / peers
        reached = self.assumed.bandwidth * 1e9
        moving = max(near / (self.link.gigabytes * reached), far / (self.network.gigabytes * reached))
        return moving + self.assumed.latency_us * 1e-6

    def to_dict(self) -> dict[str, object]:
        """All fields, for JSON."""
        return dataclasses.asdict(self)


def link_of(text: str) -> Link:
    """A link by its name, or by its GB/s per GPU and direction.

    Raises:
        ValueError: neither.
    """
    name = SHORT.get(text, text)
    if name in LINKS:
        return LINKS[name]
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ValueError(
            f"interconnect {text!r} is neither GB/s per GPU and direction nor one of {', '.join([*SHORT, *LINKS])}"
        )
    return Link(f"{speed:g} GB/s", speed, "given")
