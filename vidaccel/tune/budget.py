"""How long a tuning may take, over all the times that it is started."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """Seconds of a text such as "90s", "30m" or "1.5h".

    Raises:
        ValueError: not a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip(), re.ASCII)
    if not match or not 0 < (found := float(match[1]) * UNITS[match[2]]) < 1e9:
        raise ValueError(f"budget {text!r} is not a time such as 90s, 30m or 1.5h")
    return found


class Budget:
    """Seconds to spend.

    Args:
        total: of all that is done for one profile.
        before: of them, what earlier starts have spent.
        clock: monotonic seconds.
    """

    def __init__(self, total: float, before: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.before, self._clock = total, before, clock
        self._began = clock()

    @property
    def spent(self) -> float:
        """Seconds, with those of earlier starts."""
        return float(self.before + self._clock() - self._began)

    @property
    def left(self) -> float:
        """Seconds; below 0 where it is overrun."""
        return self.total - self.spent
