"""The left side of scores: factors or gradients of the test points, a chunk at a time.

A chunk is solved once, for all training points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from influence_core.calculators.chunks import CLOSED_FORM, Side, copies_in_solve, slices
from influence_core.calculators.model import FittedModel
from influence_core.calculators.reading import Reader
from influence_core.calculators.reporting import RunReport
from influence_core.fitted import ByBlock
from influence_core.sources import Points
from influence_core.storage.hashes import DataHash, hash_array

# rows that are read at a time to be hashed
_READ = 64
# copies of rows while they are read: on the host, in the solver's library, by block
_READING = 3

Wanted = Callable[[int], bool]
"""Whether the chunk of this number is to be computed."""


class Rows(ABC):
    """Rows over the parameters, `(m, p)`, in chunks."""

    model: FittedModel

    @property
    @abstractmethod
    def side(self) -> Side:
        """The number of rows, and what they take."""

    @abstractmethod
    def chunks(self, height: int, wanted: Wanted) -> Iterator[tuple[int, ByBlock]]:
        """Yield the number and the rows of every wanted chunk of `height` rows, by block."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return what tells these rows from others, as JSON."""


@dataclass
class LoaderRows(Rows):
    """The gradients of the points of a loader, or their factors.

    Attributes:
        model: gives the gradients.
        reader: has the points.
        solved: whether `(C + λI)⁻¹` is applied.
        report: takes the reports of the solves.
    """

    model: FittedModel
    reader: Reader
    solved: bool
    report: RunReport = field(repr=False)

    @property
    def side(self) -> Side:
        """The number of points, in batches like the first one."""
        record, copies = self.reader.record, CLOSED_FORM
        if self.solved:
            copies = copies_in_solve(self.model)
        return Side(record.points, record.sizes[0], self.model.size, copies)

    def chunks(self, height: int, wanted: Wanted) -> Iterator[tuple[int, ByBlock]]:
        """Yield the wanted chunks from one pass over the loader; each is solved once."""
        self.report.start()
        for number, pieces in groupby(self.reader.pieces(height), key=itemgetter(0)):
            if wanted(number):
                yield number, self._rows(pieces)

    def described(self) -> dict[str, Any]:
        """Return the identity of the points, and of the gradient of the first one."""
        first = self.model.gradients([self.reader.record.first])
        return {
            **self.reader.record.described(),
            "solved": self.solved,
            "first_gradient": hash_array(self.model.joined(first)),
        }

    def _rows(self, pieces: Iterable[tuple[int, Points]]) -> ByBlock:
        rows = self.model.gradients(points for _, points in pieces)
        if self.solved:
            rows, reports = self.model.solve(rows)
            self.report.add(reports)
        return rows


@dataclass
class ArrayRows(Rows):
    """Rows that are there already: in an array of any library, or in a zarr array.

    Attributes:
        model: says what the columns are.
        array: `(m, p)`.
        argument: how the user calls it, for messages.
    """

    model: FittedModel
    array: Any
    argument: str

    @property
    def side(self) -> Side:
        """The number of rows, which are read into the library of the solver."""
        return Side(int(self.array.shape[0]), 1, self.model.size, _READING)

    def chunks(self, height: int, wanted: Wanted) -> Iterator[tuple[int, ByBlock]]:
        """Yield the wanted chunks."""
        for number, rows in enumerate(slices(self.side.count, height)):
            if wanted(number):
                with self.model.shelter():
                    part = self.model.fitted.split(self.array[rows, ...], self.argument)
                yield number, part

    def described(self) -> dict[str, Any]:
        """Return the number of rows and a hash of their content."""
        content = DataHash()
        for rows in slices(self.side.count, _READ):
            content.update(self.array[rows, ...])
        return {"rows": content.points, "sha256": content.hexdigest()}
