"""What a run's log says, and the room that kept tensors may take."""

from __future__ import annotations

import json

import pytest
import torch

from vidaccel.caching import log, memory
from vidaccel.caching.log import Decision, Log

CPU = torch.device("cpu")


def made(*whats: str, sparse: tuple[int, ...] = (), seconds: tuple[float, ...] = ()) -> Log:
    out = Log()
    for step, what in enumerate(whats):
        out.decisions.append(Decision(step, "transformer", "cond", what, step / 3, step == 0, step in sparse))
        out._marks.append((0.0, seconds[step] if seconds else 1.0))
    return out


def test_letters_and_share() -> None:
    found = made("computed", "computed", "reused", "predicted", "guidance")
    assert found.computed_share == 0.4
    assert "transformer cond from step 0: cCrpg, indicator 0 to 1.33" in "\n".join(found.lines())
    assert json.loads(json.dumps(found.to_dict()))["decisions"][2]["indicator"] == 0.6667


def test_times_count_dense_and_sparse_apart() -> None:
    """Of what it would have taken uncached: the median of the computed ones of each kind."""
    found = made("computed", "reused", "computed", "reused", sparse=(2, 3), seconds=(4.0, 0.5, 2.0, 0.25))
    assert found.times() == {"measured": 6.75, "uncached": 4.0 * 2 + 2.0 * 2}
    # A kind that never was computed has no time.
    assert made("computed", "reused", sparse=(1,)).times() is None
    assert Log().lines() == [] and Log().to_dict()["seconds"] is None and Log().computed_share is None


def test_marks_pass() -> None:
    found = Log()
    found.start(CPU)
    found.add(made("computed").decisions[0], CPU)
    assert 0 <= found.seconds()[0] < 10 and log.DIGITS


def test_memory() -> None:
    room = memory.free(CPU)
    assert room is None or room > 1e6
    assert memory.free(torch.device("meta")) is None
    memory.check(10**18, torch.device("meta"), None)
    memory.check(10**6, CPU, 0.001)
    with pytest.raises(ValueError, match=r"would keep 0.10 GB on cpu .* max_memory allows 0.01 GB: take .* 'hold'"):
        memory.check(10**8, CPU, 0.01)
    if room is not None:
        with pytest.raises(ValueError, match="there are"):
            memory.check(10**18, CPU, None)
