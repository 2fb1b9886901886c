"""What the calculators ask of a fitted model, for one chunk of points at a time.

Everything is in the library of the solver until it is handed over. No call keeps anything: the same
pieces serve one process, which goes through the chunks in order, and many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from influence_core.arrays import Exchange, concatenate_trees, is_array, namespace
from influence_core.calculators.settings import settings_of
from influence_core.calls import InfluenceFunctionModel
from influence_core.errors import DataTypeError, NotFittedException, OptionError
from influence_core.fitted import ByBlock, FittedInfluence, Reports, hand_over, shelter
from influence_core.modes import InfluenceMode
from influence_core.problem import Array, Problem, Tree
from influence_core.sources import Points


@dataclass(frozen=True)
class FittedModel:
    """A fitted model at one setting of λ.

    Attributes:
        fitted: what `fit` prepared.
        regularization: block name to λ.
        settings: class, method and curvature, as JSON.
    """

    fitted: FittedInfluence
    regularization: Mapping[str, float]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, influence: Any, call: str) -> FittedModel:
        """Return what an influence function model has fitted, at its present λ.

        Args:
            influence: any of the models of this library.
            call: for the messages.

        Raises:
            OptionError: it is none.
            NotFittedException: it is not fitted.
        """
        if not isinstance(influence, InfluenceFunctionModel):
            raise OptionError(
                f"`{call}` needs an influence function model, such as "
                f"`Influence(model, loss, Cg()).fit(data)`; got {type(influence).__name__}."
            )
        if not influence.is_fitted:
            raise NotFittedException(
                f"`{call}` needs a fitted instance; this {type(influence).__name__} is not. "
                "Call its `fit(data)` with the training data first."
            )
        return cls(*influence._state(), settings_of(influence))

    @property
    def size(self) -> int:
        """The number `p` of parameters that the blocks cover."""
        return sum(block.size for block in self.fitted.blocks)

    @property
    def item(self) -> int:
        """Bytes of a number of the computation."""
        reference = self.problem.reference
        return int(namespace(reference).finfo(reference.dtype).bits) // 8

    @property
    def problem(self) -> Problem:
        """The model and loss of the training points."""
        return self.fitted.problem

    @property
    def test_problem(self) -> Problem:
        """The model and what is measured at the test points."""
        return self.fitted.measured or self.fitted.problem

    @property
    def exchange(self) -> Exchange:
        """The way from the model's array library to the solver's."""
        return self.fitted.exchange

    @property
    def like(self) -> Array:
        """An array in the library, dtype and device of all answers."""
        return hand_over(self.problem, self.problem.reference)

    def shelter(self) -> AbstractContextManager[None]:
        """Return the context in which to compute."""
        return shelter(self.problem)

    def gradients(self, parts: Iterable[Points]) -> ByBlock:
        """Return the gradients of the points of all parts, `(k, d)` for each block."""
        with self.shelter():
            each = [[p.of(b.names).rows() for b in self.fitted.blocks] for p in parts]
            rows = [concatenate_trees(block, axis=0) for block in zip(*each, strict=True)]
        return OrderedDict(
            (block.name, of_block) for block, of_block in zip(self.fitted.blocks, rows, strict=True)
        )

    def solve(self, rows: ByBlock) -> tuple[ByBlock, Reports]:
        """Return `(C + λI)⁻¹` of the rows of each block, and how that went."""
        with self.shelter():
            return self.fitted.solve(rows, self.regularization)

    def scores(self, left: ByBlock, points: Points, mode: InfluenceMode) -> Array:
        """Return the products of factors with the gradients of training points, handed over.

        Args:
            left: factors of `m` test points, `(m, d)` for each block.
            points: `n` training points.
            mode: as for `influences`.

        Returns:
            `(m, n)`, or `(m, n, *x.shape[1:])`.

        Raises:
            DataTypeError: the mode is `Perturbation` and the inputs are several arrays.
            NonFiniteError: a score is NaN or infinite.
        """
        products = self.fitted.products
        if mode is InfluenceMode.Perturbation:
            products = self.fitted.mixed_products
        with self.shelter():
            return _one_array(self.fitted.whole(products(left, points)))

    def joined(self, rows: ByBlock) -> Array:
        """Return the rows of all blocks as one array, `(k, p)`."""
        return concatenate_trees(list(rows.values()), axis=1)

    def hand_over(self, array: Array) -> Array:
        """Return an answer in the library, dtype and device of the model's parameters.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        with self.shelter():
            return self.fitted.hand_over(array)


def _one_array(answer: Tree) -> Array:
    if is_array(answer):
        return answer
    raise DataTypeError(
        "mode='perturbation' of a calculator needs inputs that are one array; here they are a "
        f"{type(answer).__name__} of arrays. Call `influences` of the model for a part of the "
        "points at a time."
    )
