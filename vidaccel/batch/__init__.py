"""Many clips of one pipeline, shared among the processes of a job, into a folder that can be gone on with."""

from __future__ import annotations

from vidaccel.batch.requests import Request, read_requests
from vidaccel.batch.run import Result, run

__all__ = ["Request", "Result", "read_requests", "run"]
