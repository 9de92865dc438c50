"""Functions of an object or a module replaced for a block, so that what is only sometimes watched costs nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@contextlib.contextmanager
def stand_in(owner: Any, name: str, wrap: Wrap) -> Iterator[None]:
    """`owner.name` is what `wrap` makes of it; after the block it is what it was.

    Set past ``__setattr__``, which modules of torch have of their own.
    """
    own = owner.__dict__
    before = {name: own[name]} if name in own else {}
    own[name] = wrap(getattr(owner, name))
    try:
        yield
    finally:
        del own[name]
        own.update(before)
