"""How long sparse attention takes, as a share of dense attention's time: a model, its coefficients, their measurement.

See docs/costs.md.
"""

from vidaccel.costs.model import DEFAULT_BLOCK, CostModel, Counts
from vidaccel.costs.shipped import default_for

__all__ = ["DEFAULT_BLOCK", "CostModel", "Counts", "default_for"]
