"""How many points a chunk has: the more test points, the fewer passes over the training data.

Held at once are, in numbers of the dtype of the parameters, for `R` test points and `C` training
points with `k` numbers a score (1, or the numbers of an input in perturbation mode):

- while a chunk of test points is solved, `copies · R p`: gradients, solutions, and what an
  iteration keeps beside them;
- while the training points go by, `2 R p + SWEEP R C k + h C`: the factors, the scores of a chunk
  in its pieces, as a whole, on the host and as bytes, and `h` numbers a column that is read from a
  store.

Both are kept under what the budget leaves beside a product of the backend, which has a bound of its
own: `max_memory` of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from influence_core.calculators.model import FittedModel
from influence_core.curvature import KroneckerInverse, LowRankInverse, SpectralInverse
from influence_core.errors import OptionError
from influence_core.memory import check_memory, memory_of

# copies of the right-hand sides in a solve: measured, 5 in closed form and 11 to 16 in an iteration
CLOSED_FORM, ITERATION = 6, 16
SWEEP = 5
# bytes of a chunk on disk: what a crash costs, and what is read for one number
SCORES, ROWS, MOST = 2**25, 2**25, 2**30
# so many training points, or a batch where that is less, shall find room beside the test points
FEWEST = 256


@dataclass(frozen=True)
class Budget:
    """What a calculator may hold beside the products of the backend.

    Attributes:
        numbers: of the dtype of the parameters.
        item: bytes of one.
    """

    numbers: int
    item: int

    @classmethod
    def of(cls, model: FittedModel, max_memory: int | None, call: str) -> Budget:
        """Return the budget of a calculator.

        Args:
            model: its backend's bound on a product is taken off.
            max_memory: bytes that calculator and products may hold; None for as much again as a
                product may.
            call: for the message.

        Raises:
            OptionError: it is no positive integer, or less than twice what a product may hold.
        """
        product = max(memory_of(problem) for problem in (model.problem, model.test_problem))
        if max_memory is None:
            return cls(product // model.item, model.item)
        if check_memory(max_memory) < 2 * product:
            raise OptionError(
                f"`{call}` may hold max_memory={max_memory} bytes, of which one product of the "
                f"model takes up to {product}: that must be half or less. Pass `max_memory=` of "
                f"{max_memory // 2} or less to the model, or a larger one here."
            )
        return cls((int(max_memory) - product) // model.item, model.item)

    def rows(self, side: Side, most: int = MOST) -> int:
        """Return how many points of a side are taken at once, whose rows have `most` bytes."""
        fitting = min(self.numbers // (side.copies * side.held), most // (self.item * side.held))
        return _rounded(min(side.count, fitting), side.unit, side.count)

    def scores(self, left: Side, right: Side, numbers: int) -> tuple[int, int]:
        """Return how many test and training points a chunk of scores has.

        Args:
            left: the test points.
            right: the training points.
            numbers: `k`, of one score.
        """
        fewest = min(right.unit, right.count, FEWEST)
        room = self.numbers - fewest * right.held
        rows = self.rows(left)
        fitting = room // (2 * left.held + SWEEP * numbers * fewest)
        rows = _rounded(min(rows, fitting), left.unit, left.count)
        room = self.numbers - 2 * left.held * rows
        columns = min(
            room // (SWEEP * numbers * rows + right.held),
            max(fewest, SCORES // (self.item * numbers * rows)),
        )
        return rows, _rounded(min(columns, right.count), right.unit, right.count)


@dataclass(frozen=True)
class Side:
    """The points of one side.

    Attributes:
        count: how many.
        unit: how many come together: the points of a batch.
        held: numbers that each of them takes while the other side goes by.
        copies: how many times that, while it is made.
    """

    count: int
    unit: int
    held: int
    copies: int = 1


def copies_in_solve(model: FittedModel) -> int:
    """Return how many arrays of the size of the right-hand sides a solve holds at once."""
    known = (SpectralInverse, LowRankInverse, KroneckerInverse)
    closed = all(isinstance(inverse, known) for inverse in model.fitted.inverses.values())
    return CLOSED_FORM if closed else ITERATION


def slices(count: int, size: int) -> list[slice]:
    """Return the slices of `count` points in chunks of `size`."""
    edges = [*range(0, count, size), count]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _rounded(number: int, unit: int, count: int) -> int:
    """Return a number of points, one at least, of whole batches where that leaves some."""
    number = max(1, number)
    return number if number == count else number - number % min(unit, number)
