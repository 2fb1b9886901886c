"""The right side of scores: training points that go by for every chunk of the left side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

from influence_core.arrays import concatenate_trees, from_host, namespace, zeros
from influence_core.calculators.chunks import Side, slices
from influence_core.calculators.model import FittedModel
from influence_core.calculators.reading import Reader
from influence_core.calculators.rows import Wanted
from influence_core.calculators.stored import StoredRows
from influence_core.fitted import ByBlock
from influence_core.modes import InfluenceMode
from influence_core.problem import Array
from influence_core.sources import Points
from influence_core.storage.hashes import hash_array


class Columns(ABC):
    """Training points, in chunks, and the scores with them."""

    @property
    @abstractmethod
    def side(self) -> Side:
        """The number of points, and what each takes beside its scores."""

    @property
    def score_shape(self) -> tuple[int, ...]:
        """The shape of one score."""
        return ()

    @abstractmethod
    def sweep(self, left: ByBlock, width: int, wanted: Wanted) -> Iterator[tuple[int, Array]]:
        """Yield the number and the scores of every wanted chunk of `width` points.

        Args:
            left: the rows of the other side, `(m, d)` for each block.
            width: of a chunk.
            wanted: which ones.

        Returns:
            `(m, width, *score_shape)`, handed over; the last chunk has what is left.
        """

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return what tells these points from others, as JSON."""


@dataclass
class LoaderColumns(Columns):
    """The points of a loader; one pass over it for every sweep.

    Attributes:
        model: gives the scores.
        reader: has the points.
        mode: what is asked of them.
    """

    model: FittedModel
    reader: Reader
    mode: InfluenceMode

    @property
    def side(self) -> Side:
        """The number of points, in batches like the first one; the backend holds their products."""
        record = self.reader.record
        return Side(record.points, record.sizes[0], 0)

    @cached_property
    def score_shape(self) -> tuple[int, ...]:
        """`()`, or the shape of an input in perturbation mode.

        Raises:
            DataTypeError: the inputs are several arrays.
        """
        if self.mode is InfluenceMode.Up:
            return ()
        like, blocks = self.model.exchange.solver, self.model.fitted.blocks
        nothing = OrderedDict((block.name, zeros((1, block.size), like)) for block in blocks)
        one = self.model.scores(nothing, self.reader.record.first, self.mode)
        return tuple(one.shape[2:])

    def sweep(self, left: ByBlock, width: int, wanted: Wanted) -> Iterator[tuple[int, Array]]:
        """Yield the wanted chunks from one pass over the loader."""
        for number, pieces in groupby(self.reader.pieces(width), key=itemgetter(0)):
            if wanted(number):
                yield number, self._scores(left, pieces)

    def described(self) -> dict[str, Any]:
        """Return the identity of the points, and of the gradient of the first one."""
        first = self.model.gradients([self.reader.record.first])
        gradient = hash_array(self.model.joined(first))
        return {**self.reader.record.described(), "first_gradient": gradient}

    def _scores(self, left: ByBlock, pieces: Iterable[tuple[int, Points]]) -> Array:
        parts = [self.model.scores(left, points, self.mode) for _, points in pieces]
        return concatenate_trees(parts, axis=1)


@dataclass
class StoredColumns(Columns):
    """Gradients or factors of training points on disk; no pass over the points themselves.

    Attributes:
        model: says in what library scores are computed and handed over.
        stored: the rows.
    """

    model: FittedModel
    stored: StoredRows

    @property
    def side(self) -> Side:
        """The number of rows: each is there as bytes, on the host, and in the solver's library."""
        (count, numbers), (unit, _) = self.stored.array.shape, self.stored.array.chunks
        return Side(int(count), int(unit), 3 * int(numbers))

    def sweep(self, left: ByBlock, width: int, wanted: Wanted) -> Iterator[tuple[int, Array]]:
        """Yield the wanted chunks of products with the stored rows."""
        with self.model.shelter():
            rows = self.stored.like_stored(self.model.joined(left))
        for number, columns in enumerate(slices(self.side.count, width)):
            if wanted(number):
                yield number, self._scores(rows, columns)

    def described(self) -> dict[str, Any]:
        """Return the identity of the rows."""
        return self.stored.identity

    def _scores(self, rows: Array, columns: slice) -> Array:
        with self.model.shelter():
            right = from_host(self.stored.read(columns), rows)
            return self.model.hand_over(rows @ namespace(right).matrix_transpose(right))
