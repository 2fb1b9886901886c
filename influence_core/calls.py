"""The calls that every form of an influence function model answers.

Koh and Liang, Understanding black-box predictions via influence functions, ICML 2017. A score is
`⟨(C + λI)⁻¹ ∇ℓ(test), ∇ℓ(train)⟩`. Where it is positive, the test loss rises when the training
point is removed, by about score / N.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from influence_core.arrays import concatenate_trees
from influence_core.curvature import BlockReports, SolveReport
from influence_core.errors import NotFittedException
from influence_core.fitted import ByBlock, FittedInfluence, Reports
from influence_core.modes import InfluenceMode, parse_mode
from influence_core.problem import Array, Tree

_Model = TypeVar("_Model", bound="InfluenceFunctionModel")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class InfluenceFunctionModel(ABC):
    """The calls that every influence function model answers once it is fitted.

    Letters: `n` training points, `m` test points, `p` parameters covered by the blocks. Answers are
    in the library and dtype and on the device of the model's parameters, detached.
    """

    _report: Reports | None = None

    @abstractmethod
    def fit(self, data: Any) -> Self:
        """Prepare everything that does not depend on a test point.

        Args:
            data: an iterable of `(x, y)` batches that can be iterated again, a DataLoader say.

        Returns:
            The instance.
        """

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether `fit` has succeeded."""

    @abstractmethod
    def _state(self) -> tuple[FittedInfluence, dict[str, float]]:
        """Return what `fit` prepared, and the regularisation of every block."""

    def _shelter(self) -> AbstractContextManager[None]:
        """Return the context in which a call is answered."""
        return nullcontext()

    @staticmethod
    def fit_required(
        method: Callable[Concatenate[_Model, _P], _R],
    ) -> Callable[Concatenate[_Model, _P], _R]:
        """Decorate a method so that it raises `NotFittedException` before `fit`."""

        @functools.wraps(method)
        def checked(self: _Model, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not self.is_fitted:
                name = type(self).__name__
                raise NotFittedException(
                    f"`{name}.{method.__name__}` needs a fitted instance; this {name} is not. "
                    "Call `fit(data)` with the training data first."
                )
            with self._shelter():
                return method(self, *args, **kwargs)

        return checked

    @property
    @fit_required
    def report(self) -> SolveReport | dict[str, SolveReport] | None:
        """How the last solve went: a `SolveReport`, a dict of them where there are several blocks.

        Both print. None before the first solve, and where a method of the user's solved. Up mode
        solves the smaller of the two sides: the entries of the report are its points.
        """
        known = {name: report for name, report in (self._report or {}).items() if report}
        return next(iter(known.values()), None) if len(known) < 2 else BlockReports(known)

    @fit_required
    def influence_factors(self, x: Any, y: Any) -> Array:
        """Return `(C + λI)⁻¹ ∇θℓ(xⱼ, yⱼ)` for every point, `(n, p)`.

        Args:
            x: inputs, `(n, …)`, or a dict or tuple of such.
            y: targets, `(n, …)`.

        Raises:
            NotFittedException: before `fit`.
            DataError: the points cannot be used.
        """
        return concatenate_trees(list(self._factors(x, y, "influence_factors").values()), axis=1)

    @fit_required
    def influence_factors_by_block(self, x: Any, y: Any) -> OrderedDict[str, Array]:
        """Return the columns of `influence_factors` of each block, `(n, d)`, by block name."""
        return self._factors(x, y, "influence_factors_by_block")

    @fit_required
    def influences(
        self,
        x_test: Any,
        y_test: Any,
        x: Any = None,
        y: Any = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> Tree:
        """Return the influence of every training point on the loss at every test point.

        Args:
            x_test: test inputs, `(m, …)`, or a dict or tuple of such.
            y_test: test targets, `(m, …)`.
            x: training inputs, `(n, …)`; None puts the test points on both sides.
            y: training targets, `(n, …)`; given exactly when `x` is.
            mode: `Up`, to remove a training point, or `Perturbation`, to change its input.

        Returns:
            Up: `(m, n)`, entry `⟨(C + λI)⁻¹ ∇θℓ(test_i), ∇θℓ(train_j)⟩`. Positive: removing the
            training point raises the test loss, by about entry / N.
            Perturbation: `(m, n, *x.shape[1:])`, entry `⟨(C + λI)⁻¹ ∇θℓ(test_i), ∇ₓ∇θℓ(train_j)⟩`;
            the same tree over its floating-point leaves where `x` is a dict or tuple.

        Raises:
            NotFittedException: before `fit`.
            UnsupportedInfluenceModeException: an unknown `mode`.
            DataError: the points cannot be used, or only one of `x` and `y` was passed.
        """
        fitted, shares = self._influences("influences", x_test, y_test, x, y, mode)
        return fitted.whole(shares)

    @fit_required
    def influences_by_block(
        self,
        x_test: Any,
        y_test: Any,
        x: Any = None,
        y: Any = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> OrderedDict[str, Tree]:
        """Return the share of each block in `influences`; the shares sum to the whole."""
        fitted, shares = self._influences("influences_by_block", x_test, y_test, x, y, mode)
        return fitted.by_block(shares)

    @fit_required
    def influences_from_factors(
        self, z_test_factors: Array, x: Any, y: Any, mode: InfluenceMode | str = InfluenceMode.Up
    ) -> Tree:
        """Return what `influences` does, from factors that `influence_factors` returned.

        Args:
            z_test_factors: factors of the test points, `(m, p)`.
            x: training inputs, `(n, …)`.
            y: training targets, `(n, …)`.
            mode: as for `influences`.

        Raises:
            NotFittedException: before `fit`.
            UnsupportedInfluenceModeException: an unknown `mode`.
            DataError: the factors have the wrong shape, or the points cannot be used.
        """
        call = "influences_from_factors"
        fitted, shares = self._influences_from_factors(call, z_test_factors, x, y, mode)
        return fitted.whole(shares)

    @fit_required
    def influences_from_factors_by_block(
        self,
        z_test_factors: Mapping[str, Array],
        x: Any,
        y: Any,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> OrderedDict[str, Tree]:
        """Return the share of each block, from what `influence_factors_by_block` returned."""
        call = "influences_from_factors_by_block"
        fitted, shares = self._influences_from_factors(call, z_test_factors, x, y, mode)
        return fitted.by_block(shares)

    @fit_required
    def apply_inverse(self, rows: Array) -> Array:
        """Return `(C + λI)⁻¹` of every row, `(k, p)`, for any rows over the covered parameters.

        Raises:
            NotFittedException: before `fit`.
            DataError: the rows have the wrong shape.
        """
        fitted, regularization = self._state()
        parts, self._report = fitted.solve(
            fitted.split(rows, "apply_inverse(rows)"), regularization
        )
        return fitted.hand_over(concatenate_trees(list(parts.values()), axis=1))

    @fit_required
    def self_influences(self, loader: Any) -> Array:
        """Return the influence of every point of `loader` on itself, `(N,)`, in its order.

        Raises:
            NotFittedException: before `fit`.
            DataError: the points cannot be used, or there are none.
        """
        fitted, regularization = self._state()
        scores, self._report = fitted.self_scores(loader, regularization)
        return fitted.hand_over(scores)

    def _factors(self, x: Any, y: Any, call: str) -> ByBlock:
        fitted, regularization = self._state()
        points = fitted.test_points((x, y), f"{call}(x, y)")
        factors, self._report = fitted.factors(points, regularization)
        return fitted.by_block(factors)

    def _influences(
        self, call: str, x_test: Any, y_test: Any, x: Any, y: Any, mode: InfluenceMode | str
    ) -> tuple[FittedInfluence, ByBlock]:
        mode = parse_mode(InfluenceMode, mode, "mode")
        fitted, regularization = self._state()
        left, right = fitted.sides(call, x_test, y_test, x, y)
        if mode is InfluenceMode.Up:
            shares, self._report = fitted.scores(left, right, [regularization])
            return fitted, OrderedDict((name, share[0, ...]) for name, share in shares.items())
        factors, self._report = fitted.factors(left, regularization)
        return fitted, fitted.mixed_products(factors, right)

    def _influences_from_factors(
        self, call: str, factors: Any, x: Any, y: Any, mode: InfluenceMode | str
    ) -> tuple[FittedInfluence, ByBlock]:
        mode = parse_mode(InfluenceMode, mode, "mode")
        fitted, _ = self._state()
        rows = fitted.split(factors, f"{call}(z_test_factors, …)")
        points = fitted.points((x, y), f"{call}(…, x, y)")
        products = fitted.products if mode is InfluenceMode.Up else fitted.mixed_products
        return fitted, products(rows, points)
