"""How much a computation may hold at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from influence_core.arrays import namespace
from influence_core.errors import OptionError
from influence_core.problem import Batch, BoundsMemory, Problem

DEFAULT_MEMORY = 2**30
"""Bytes that a product may hold where nobody says: 1 GiB."""


def check_memory(max_memory: object) -> int:
    """Return the bytes that a product may hold, for what a user passed as `max_memory`.

    Raises:
        OptionError: it is no positive integer, and not None.
    """
    if max_memory is None:
        return DEFAULT_MEMORY
    whole = isinstance(max_memory, int | np.integer) and not isinstance(max_memory, bool)
    if not whole or max_memory < 1:  # type: ignore[operator]
        raise OptionError(
            f"`max_memory` must be an integer of one or more or None for 1 GiB; got {max_memory!r}."
        )
    return int(max_memory)  # type: ignore[call-overload, no-any-return]


def memory_of(problem: Problem) -> int:
    """Return the bytes that a product may hold: the backend's `max_memory`, or 1 GiB."""
    return problem.max_memory if isinstance(problem, BoundsMemory) else DEFAULT_MEMORY


def points_in_memory(problem: Problem, numbers: int) -> int:
    """Return how many points fit, at least one, where a point needs so many numbers."""
    reference = problem.reference
    item = int(namespace(reference).finfo(reference.dtype).bits) // 8
    return max(1, memory_of(problem) // max(1, item * numbers))


def parts_of(problem: Problem, batch: Batch, numbers: int) -> Iterator[slice]:
    """Yield slices of a batch that fit into memory.

    Args:
        problem: the model and loss.
        batch: the points.
        numbers: what a point needs, in numbers of the dtype of the parameters.
    """
    size = points_in_memory(problem, numbers)
    for start in range(0, batch.size, size):
        yield slice(start, min(start + size, batch.size))
