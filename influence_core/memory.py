"""How many points a computation may hold at once."""

from __future__ import annotations

from collections.abc import Iterator

from influence_core.arrays import namespace
from influence_core.problem import Batch, BoundsMemory, Problem

_DEFAULT = 2**30


def memory_of(problem: Problem) -> int:
    """Return the bytes that a product may hold: the backend's `max_memory`, or 1 GiB."""
    return problem.max_memory if isinstance(problem, BoundsMemory) else _DEFAULT


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
