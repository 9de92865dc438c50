"""From the measured candidates of a head to the few options that a profile holds."""

from __future__ import annotations

import sys

from vidaccel.heads import HeadOption

MOST = 10
"""Options of a head, dense among them."""


def pruned(options: list[HeadOption], most: int = MOST) -> tuple[HeadOption, ...]:
    """The options worth having: each dearer one has less error; the last is dense.

    Of more than `most`, those go first that their neighbours replace best: a mixture of the two at the same cost has
    little more error than the option itself, in proportion.

    Args:
        options: of one head, in any order; exactly one of them, dense, has a cost of 1 and no error.
        most: at least 2.
    """
    front: list[HeadOption] = []
    for option in sorted(options, key=lambda each: (each.cost, each.error, each.pattern)):
        if not front or option.error < front[-1].error:
            front.append(option)
    while len(front) > most:
        inner = range(1, len(front) - 1)
        front.pop(min(inner, key=lambda at: _gain(*front[at - 1 : at + 2])))
    return tuple(front)


def _gain(left: HeadOption, option: HeadOption, right: HeadOption) -> float:
    """The error of an option's neighbours, mixed to its cost, over its own."""
    share = (option.cost - left.cost) / (right.cost - left.cost)
    return (left.error + share * (right.error - left.error)) / max(option.error, sys.float_info.min)
