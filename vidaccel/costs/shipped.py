"""The coefficients that come with the package. docs/costs.md says where each number is from."""

from __future__ import annotations

import torch

from vidaccel.costs.model import CostModel

CPU = CostModel(
    per_pair=1.18,
    per_range=740.0,
    per_tile=1_840.0,
    per_token=155.0,
    per_call=34_000.0,
    dense_call=59_000.0,
    head_dim=64,
    source="measured on two cores of an AMD EPYC, float32",
)

GPU = CostModel(
    per_pair=1.25,
    per_range=8_000.0,
    per_tile=16_000.0,
    per_token=600.0,
    per_call=36e6,
    dense_call=12e6,
    head_dim=128,
    source="an estimate for Hopper GPUs from counted work and launch latencies, never measured",
)


def default_for(device: torch.device | str) -> CostModel:
    """The shipped coefficients for a type of device; counted pairs where there are none."""
    return {"cpu": CPU, "cuda": GPU}.get(torch.device(device).type, CostModel.counted())
