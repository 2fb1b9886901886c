"""Reading a loader again and again, in pieces that end where the chunks do.

The first pass records how many points every batch has and a hash of their content; it also makes
the checks that a user's batch is to pass, before anything expensive is computed. Every later pass
is held to this record: a point never moves to another row or column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from influence_core.arrays import Exchange
from influence_core.calculators.order import check_order
from influence_core.errors import DataError
from influence_core.fitted import shelter
from influence_core.objective import read_batches, validate
from influence_core.problem import Batch, Problem
from influence_core.sources import Points
from influence_core.storage import data as content
from influence_core.storage.hashes import hash_json


@dataclass(frozen=True)
class Record:
    """What a pass over a loader saw.

    Attributes:
        sizes: the number of points of every batch.
        hashes: of the content of every batch.
        first: the first point.
    """

    sizes: tuple[int, ...]
    hashes: tuple[str, ...]
    first: Points

    @property
    def points(self) -> int:
        """The number of points."""
        return sum(self.sizes)

    def described(self) -> dict[str, Any]:
        """Return the numbers of points and batches, and one hash of all content and its cut."""
        return {
            "points": self.points,
            "batches": len(self.sizes),
            "sha256": hash_json(list(zip(self.sizes, self.hashes, strict=True))),
        }


@dataclass
class Reader:
    """A loader, and what the first pass over it saw.

    Attributes:
        problem: what reads the batches and differentiates the points.
        exchange: the way from the model's array library to the solver's.
        loader: an iterable of `(x, y)` batches that can be iterated again.
        argument: how the user calls it, for messages.

    Raises:
        DataTypeError: the loader is no iterable, or can be iterated only once.
        DataError: it shuffles.
    """

    problem: Problem
    exchange: Exchange
    loader: Any
    argument: str

    def __post_init__(self) -> None:
        """Look at the loader without reading it."""
        check_order(self.loader, self.argument)

    @cached_property
    def record(self) -> Record:
        """Sizes and content of the batches, from one pass that makes all checks.

        Raises:
            DataError: there are no points, or some that cannot be used.
        """
        sizes, hashes, first = [], [], None
        for index, batch in enumerate(self._read(), 1):
            with shelter(self.problem):
                validate(self.problem, batch, f"{self.argument}, batch {index}")
                first = first or Points(self.problem, batch[0:1], self.exchange)
            sizes.append(batch.size)
            hashes.append(_hash(batch))
        if first is None:
            raise DataError(f"`{self.argument}` needs at least one batch; got none.")
        return Record(tuple(sizes), tuple(hashes), first)

    def pieces(self, width: int) -> Iterator[tuple[int, Points]]:
        """Yield the points of one pass in pieces, with the number of the chunk they belong to.

        A piece has points of one batch and of one chunk; a chunk has `width` points, the last one
        what is left.

        Raises:
            DataError: the loader yields other points than in its first pass.
        """
        start = 0
        for batch in self._batches():
            end = start + batch.size
            while start < end:
                stop = min(end, (start // width + 1) * width)
                part = slice(start - end + batch.size, stop - end + batch.size)
                piece = batch if stop - start == batch.size else batch[part]
                yield start // width, Points(self.problem, piece, self.exchange)
                start = stop

    def _batches(self) -> Iterator[Batch]:
        expected = iter(self.record.hashes)
        for index, batch in enumerate(self._read(), 1):
            if _hash(batch) != next(expected, None):
                raise DataError(self._changed(f"batch {index} has other points"))
            yield batch
        if next(expected, None) is not None:
            raise DataError(self._changed("there are fewer batches"))

    def _read(self) -> Iterator[Batch]:
        batches = read_batches(self.problem, self.loader)
        while True:
            with shelter(self.problem):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _changed(self, what: str) -> str:
        return (
            f"`{self.argument}` must yield the same points in the same order in every pass; {what} "
            "than in the first one. Pass a loader that does not shuffle, and data that does not "
            "change (no random augmentation)."
        )


def _hash(batch: Batch) -> str:
    points = content.Points()
    points.see(batch)
    sha256: str = points.described()["sha256"]
    return sha256
