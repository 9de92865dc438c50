"""How long a step takes over several GPUs, from counted work and counted bytes: ``vidaccel plan --gpus``.

See docs/parallel.md, "Planning".
"""

from vidaccel.scale.attention import Dense, Even, Planned
from vidaccel.scale.degrees import Degrees, choices
from vidaccel.scale.machine import GPUS, LINKS, Assumed, Machine
from vidaccel.scale.predict import Prediction, predict
from vidaccel.scale.traffic import Traffic, sent

__all__ = ["GPUS", "LINKS", "Assumed", "Degrees", "Dense", "Even", "Machine", "Planned", "Prediction", "Traffic",
           "choices", "predict", "sent"]  # fmt: skip
