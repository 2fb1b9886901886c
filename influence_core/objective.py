"""The training data seen through a problem: weighted passes, whatever the batch size.

The objective is the mean of `ℓ` over all `N` points of the data, or the weighted mean where points
have weights. A batch counts by its points, so no answer depends on how the data is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from influence_core.arrays import (
    map_tree,
    masked_reciprocal,
    namespace,
    permutations,
    read_float,
)
from influence_core.errors import DataError, DataTypeError
from influence_core.problem import (
    Array,
    Batch,
    Problem,
    ReadsByIndex,
    ReadsData,
    Tree,
    Validates,
)


@dataclass(frozen=True)
class Objective:
    """The mean loss over some data, as sums over its batches in their order.

    Attributes:
        problem: the model and loss.
        data: an iterable of `(x, y)` batches that can be iterated again.
        points: the number `N` of points.
        weight: the sum of their weights (`N` where there are none).
        batch_count: the number of batches.
    """

    problem: Problem
    data: Iterable[Any]
    points: int
    weight: float
    batch_count: int

    @classmethod
    def of(
        cls, problem: Problem, data: Any, visit: Callable[[Batch], None] | None = None
    ) -> Objective:
        """Read the data once: check every batch, count the points.

        Args:
            problem: the model and loss.
            data: what the user passed to `fit`.
            visit: called with every batch after it was checked.

        Raises:
            DataTypeError: `data` is no iterable, or can be iterated only once.
            DataError: there are no points, or some that cannot be used.
        """
        _check_repeatable(data)
        points, weight, index = 0, 0.0, 0
        for index, batch in enumerate(read_batches(problem, data), 1):
            validate(problem, batch, f"fit(data), batch {index}")
            if visit is not None:
                visit(batch)
            points += batch.size
            weight += weight_of(batch)
        if points == 0:
            raise DataError(
                "`fit(data)` needs at least one point; the data yielded none. "
                "Pass a DataLoader or a list of (x, y) batches."
            )
        if not weight > 0:
            raise DataError(f"`fit(data)` needs weights with a positive sum; got {weight}.")
        return cls(problem, data, points, weight, index)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of one pass.

        Raises:
            DataError: the data yields another number of points than at `fit`.
        """
        seen = 0
        for batch in read_batches(self.problem, self.data):
            seen += batch.size
            yield batch
        self._check_points(seen)

    def indexed(self) -> Sequence[Any] | None:
        """Return the `(x, y)` pairs of the batches, to be read in any order, or None.

        A list or tuple is itself such a sequence; a backend may know how to index other data. None
        says that the data can only be read in its order.
        """
        if isinstance(self.problem, ReadsByIndex):
            return self.problem.indexed(self.data)
        if isinstance(self.problem, ReadsData) or not isinstance(self.data, Sequence):
            return None
        return self.data

    def shuffled(
        self, pairs: Sequence[Any] | None, seed: int
    ) -> Iterator[tuple[Batch, Array | float]]:
        """Yield the batches without end, in a new random order in every epoch, with weights.

        The weight of a batch is its share times the number of batches: the mean over an epoch of
        ``weight * matrix`` is the mean over the points, however short the last batch.

        Args:
            pairs: what `indexed` returned. None reads the data once in its order and holds all
                batches in memory.
            seed: of the orders.

        Raises:
            DataError: an epoch has another number of points than the data at `fit`.
        """
        held = list(self.batches()) if pairs is None else pairs
        for order in permutations(seed, len(held)):
            seen = 0
            for index in order:
                batch = held[index] if pairs is None else self.problem.batch(pairs[index])
                seen += batch.size
                yield batch, self.share(batch) * len(held)
            self._check_points(seen)

    def share(self, batch: Batch) -> Array | float:
        """Return the part of the objective's weight that `batch` has, 0-d where it has weights."""
        if batch.weights is None:
            return batch.size / self.weight
        xp = namespace(batch.weights)  # the sum stays on the device: a pass is not to stop it
        return xp.astype(xp.sum(batch.weights), self.problem.reference.dtype) / self.weight

    def reduce(self, per_batch: Callable[[Batch], Tree]) -> Tree:
        """Return the mean over the data of `per_batch`, itself a mean over the batch's points."""
        total: Tree = None
        for batch in self.batches():
            share = self.share(batch)
            term = map_tree(lambda a, share=share: a * share, per_batch(batch))
            total = term if total is None else map_tree(lambda a, b: a + b, total, term)
        return total

    def on(self, problem: Problem) -> Objective:
        """Return the same objective for the same model elsewhere."""
        return replace(self, problem=problem)

    def _check_points(self, seen: int) -> None:
        if seen != self.points:
            raise DataError(
                f"the data must yield the same points in every pass; `fit` saw {self.points}, "
                f"this pass {seen}. Pass an iterable that starts afresh, such as a list."
            )


def read_batches(problem: Problem, data: Any) -> Iterator[Batch]:
    """Yield the batches of `data` as the problem reads them."""
    if isinstance(problem, ReadsData):
        return problem.batches(data)
    return (problem.batch(pair) for pair in data)


def validate(problem: Problem, batch: Batch, where: str) -> None:
    """Ask the problem to check the values of `batch`, if it can."""
    if isinstance(problem, Validates):
        problem.validate(batch, where)


def weight_of(batch: Batch) -> float:
    """Return the sum of the weights of the points."""
    if batch.weights is None:
        return float(batch.size)
    return read_float(namespace(batch.weights).sum(batch.weights))


def point_shares(batch: Batch, like: Array) -> Array | float:
    """Return the part of the batch's mean that each point has, `(n,)` or one number for all."""
    if batch.weights is None:
        return 1.0 / batch.size
    xp = namespace(like)
    weights = xp.astype(batch.weights, like.dtype)
    total = xp.sum(weights)
    return weights * masked_reciprocal(total, total > 0)  # a batch of weight zero adds nothing


def check_iterable(data: Any, call: str) -> None:
    """Raise `DataTypeError` unless `data` can be iterated; `call` names it in the message.

    It is not tried: to start an iteration moves a DataLoader's random state, or starts workers.
    """
    if not (hasattr(type(data), "__iter__") or hasattr(type(data), "__getitem__")):
        raise DataTypeError(
            f"`{call}` needs an iterable of (x, y) batches; got {type(data).__name__}. "
            "Pass a DataLoader or a list of (x, y) pairs."
        )


def _check_repeatable(data: Any) -> None:
    check_iterable(data, "fit(data)")
    if hasattr(type(data), "__next__"):
        raise DataTypeError(
            f"`fit(data)` needs data that can be iterated again; got {type(data).__name__}, "
            "which is used up after one pass. Pass a DataLoader, or `list(...)` of it."
        )
