"""Reading a loader without leaving a trace in any global generator of random numbers."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_ONE_AT_A_TIME = threading.RLock()
_Restore = Callable[[], None]


def read_untouched(loader: Any) -> Iterator[Any]:
    """Yield what `loader` does; outside of it no generator moves, inside they move on as usual.

    Loaders shuffle, and data sets augment, by the generators of Python and NumPy, and loaders of
    torch by those of torch.
    """
    iterator = inside = None
    while True:
        with _restored():
            if inside is not None:
                inside()
            iterator = iter(loader) if iterator is None else iterator
            try:
                item = next(iterator)
            except StopIteration:
                return
            inside = _states()
        yield item


@contextmanager
def _restored() -> Iterator[None]:
    """Restore the generators at the end; one thread at a time, for they belong to the process."""
    with _ONE_AT_A_TIME:
        restore = _states()
        try:
            yield
        finally:
            restore()


def _states() -> _Restore:
    """Return what puts every generator into its present state."""
    pairs: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),  # noqa: NPY002 - kept, not drawn from
    ]
    if torch := sys.modules.get("torch"):
        pairs.append((torch.set_rng_state, torch.get_rng_state()))

    def restore() -> None:
        for put_back, state in pairs:
            put_back(state)

    return restore
