"""Random numbers are drawn by NumPy on the host: the same on every library and device.

One stream a row, spawned from one `SeedSequence`: however a matrix is cut into chunks of rows, the
rows stay the same. No global generator is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays.namespace import from_host
from influence_core.problem import Array


def normal_rows(seed: int, count: int, size: int, like: Array) -> Array:
    """Return `(count, size)` standard normal numbers in the library, dtype and device of `like`."""
    return _rows(seed, count, lambda rng: rng.standard_normal(size), like)


def rademacher_rows(seed: int, count: int, size: int, like: Array) -> Array:
    """Return `(count, size)` signs, ±1 with equal probability."""
    return _rows(seed, count, lambda rng: 2 * rng.integers(0, 2, size) - 1, like)


def uniforms(seed: int, first: int, points: int, each: int, places: int) -> npt.NDArray[np.float64]:
    """Return numbers in `[0, 1)` on the host, for points `first`, `first + 1`, ….

    One stream for all points, entered at the first of them, and far away for every place: a point
    has the same numbers at a place however the points are cut into batches, and however many places
    there are.

    Args:
        seed: of the stream.
        first: the number of the first point.
        points: how many there are.
        each: how many numbers a point has at every place.
        places: how many places it has.

    Returns:
        `(each, points, places)`.
    """
    start = np.random.PCG64(np.random.SeedSequence(seed))
    streams = (start.jumped(place).advance(first * each) for place in range(places))
    return np.stack([np.random.Generator(s).random((points, each)).T for s in streams], axis=-1)


def permutations(seed: int, size: int) -> Iterator[list[int]]:
    """Yield random orders of the numbers below `size` without end; one stream for all of them."""
    stream = np.random.default_rng(np.random.SeedSequence(seed))
    while True:
        yield stream.permutation(size).tolist()


def _rows(
    seed: int,
    count: int,
    draw: Callable[[np.random.Generator], npt.NDArray[Any]],
    like: Array,
) -> Array:
    streams = np.random.SeedSequence(seed).spawn(count)
    return from_host(np.stack([draw(np.random.default_rng(stream)) for stream in streams]), like)
