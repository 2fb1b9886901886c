"""What a lazy result computes: rows alone, or rows times columns, chunk by chunk."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from influence_core.calculators import identity as identities
from influence_core.calculators.chunks import MOST, Budget, slices
from influence_core.calculators.columns import Columns
from influence_core.calculators.model import FittedModel
from influence_core.calculators.projection import Projection
from influence_core.calculators.rows import Rows
from influence_core.modes import InfluenceMode
from influence_core.problem import Array

Wanted = Callable[[int, int], bool]
"""Whether the chunk of these numbers is to be computed."""


class Chunk(NamedTuple):
    """A part of a result.

    Attributes:
        rows: where it stands along the first axis.
        columns: where it stands along the second axis.
        array: its numbers, in the library of the model.
    """

    rows: slice
    columns: slice
    array: Array


class Plan(ABC):
    """A matrix, or an array whose first two axes are cut into chunks.

    Attributes:
        what: the name of the result.
        model: the fitted model.
    """

    what: str
    model: FittedModel

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""

    @property
    @abstractmethod
    def chunks(self) -> tuple[int, ...]:
        """The shape of a chunk."""

    @abstractmethod
    def compute(self, wanted: Wanted) -> Iterator[Chunk]:
        """Yield the wanted chunks, row after row of them."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what the numbers depend on, as JSON."""

    @property
    def grid(self) -> tuple[list[slice], list[slice]]:
        """The slices of the chunks along the first two axes."""
        rows, columns = map(slices, self.shape[:2], self.chunks[:2])
        return rows, columns


@dataclass
class RowsPlan(Plan):
    """Factors or gradients, `(n, p)`, or projected, `(n, r)`.

    Attributes:
        what: the name of the result.
        model: the fitted model.
        rows: gives the rows.
        budget: how much may be held.
        projection: what the rows are projected by; None leaves them as they are.
        most: bytes of a chunk.
    """

    what: str
    model: FittedModel
    rows: Rows
    budget: Budget
    projection: Projection | None = None
    most: int = MOST

    @property
    def shape(self) -> tuple[int, ...]:
        """Points and numbers a point."""
        width = self.projection.size if self.projection else self.model.size
        return self.rows.side.count, width

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """As many points as are solved at once, and all of their numbers."""
        _, width = self.shape
        side = replace(self.rows.side, held=max(self.model.size, width))
        return self.budget.rows(side, self.most), width

    def compute(self, wanted: Wanted) -> Iterator[Chunk]:
        """Yield the wanted chunks, from one pass over the points."""
        rows, (columns,) = self.grid
        for i, by_block in self.rows.chunks(self.chunks[0], lambda i: wanted(i, 0)):
            with self.model.shelter():
                part = self.model.joined(by_block)
                part = self.projection.of(part) if self.projection else part
            yield Chunk(rows[i], columns, self.model.hand_over(part))

    def identity(self) -> dict[str, Any]:
        """Return the identities of the model, the points and the projection."""
        projection = self.projection and {**vars(self.projection)}
        return {
            "what": self.what,
            "model": identities.of_model(self.model),
            "loader": self.rows.described(),
            "projection": projection,
        }


@dataclass
class ScoresPlan(Plan):
    """Scores, `(m, n)`, or `(m, n, *x.shape[1:])` in perturbation mode.

    Attributes:
        what: the name of the result.
        model: the fitted model.
        rows: the test side.
        columns: the training side.
        mode: what is asked of the training points.
        budget: how much may be held.
    """

    what: str
    model: FittedModel
    rows: Rows
    columns: Columns
    mode: InfluenceMode
    budget: Budget

    @property
    def shape(self) -> tuple[int, ...]:
        """Test points, training points, and the shape of a score."""
        return self.rows.side.count, self.columns.side.count, *self.columns.score_shape

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """As many test points as memory holds, and training points beside them."""
        left, right, shape = self.rows.side, self.columns.side, self.columns.score_shape
        return *self.budget.scores(left, right, math.prod(shape)), *shape

    def compute(self, wanted: Wanted) -> Iterator[Chunk]:
        """Yield the wanted chunks: one pass over the test points, one sweep for each row of them.

        A row of chunks is solved once; one that has no wanted chunk is not solved.
        """
        rows, columns = self.grid
        height, width = self.chunks[:2]
        numbers = range(len(columns))
        for i, left in self.rows.chunks(height, lambda i: any(wanted(i, j) for j in numbers)):
            for j, scores in self.columns.sweep(left, width, functools.partial(wanted, i)):
                yield Chunk(rows[i], columns[j], scores)

    def identity(self) -> dict[str, Any]:
        """Return the identities of the model and of both sides."""
        return {
            "what": self.what,
            "model": identities.of_model(self.model),
            "mode": str(self.mode),
            "test": {**self.rows.described(), **self._other_model()},
            "train": self.columns.described(),
        }

    def _other_model(self) -> dict[str, Any]:
        """Return the identity of the model that the factors are of, where it is another one."""
        ours, theirs = self.model, self.rows.model
        if ours.fitted is theirs.fitted and ours.regularization == theirs.regularization:
            return {}
        return {"model": identities.of_model(theirs)}
