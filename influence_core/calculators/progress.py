"""A bar with the rate and the time left."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def progress_bar(label: str, total: int, done: int, *, shown: bool) -> AbstractContextManager[Any]:
    """Return a bar that counts numbers of a result.

    Args:
        label: what is computed.
        total: how many numbers it has.
        done: how many were there before.
        shown: whether there is a bar at all.
    """
    from tqdm import tqdm  # here: it takes longer to import than the rest of the core

    bar: AbstractContextManager[Any] = tqdm(
        desc=label, total=total, initial=done, unit="", unit_scale=True, disable=not shown
    )
    return bar
