"""The processes of one job, as ``accelerate launch`` and ``torchrun`` start them: who is who, and who does what.

They talk through the key-value store that the launcher opened, and share one folder. No process group is made: none of
them waits for another one's tensors.
"""

from vidaccel.processes.crew import Crew, Refused, check_agreed, share
from vidaccel.processes.folder import appears, check_shared, held
from vidaccel.processes.launch import join, joined, take_device

__all__ = ["Crew", "Refused", "appears", "check_agreed", "check_shared", "held", "join", "joined", "share",
           "take_device"]  # fmt: skip
