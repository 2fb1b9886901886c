"""The entry point for any model, and the calls that all its forms share.

Influence functions: Koh and Liang, Understanding black-box predictions via influence functions,
ICML 2017. A score is `⟨(C + λI)⁻¹ ∇ℓ(test), ∇ℓ(train)⟩`. Where it is positive, the test loss rises
when the training point is removed, by about score / N.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from influence_core.arrays import concatenate_trees, device, exchange_for, map_tree, namespace
from influence_core.blocks import (
    Block,
    BlockStructure,
    Regularization,
    make_blocks,
    make_regularization,
)
from influence_core.curvature import SolveReport, make_curvature
from influence_core.errors import DataError, NotFittedException, OptionError
from influence_core.fitted import ByBlock, FittedInfluence, Reports, hand_over
from influence_core.methods import Method
from influence_core.modes import BlockMode, InfluenceMode, SecondOrderMode, parse_mode
from influence_core.objective import Objective
from influence_core.plugins import BackendSpec, find_backend
from influence_core.problem import Array, Batch, Problem, Tree

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
            return method(self, *args, **kwargs)

        return checked

    @property
    @fit_required
    def report(self) -> SolveReport | dict[str, SolveReport] | None:
        """How the last solve went: a `SolveReport`, a dict of them where there are several blocks.

        None before the first solve. Up mode solves the smaller of the two sides: the entries of the
        report are its points.
        """
        if self._report is None or len(self._report) > 1:
            return self._report
        return next(iter(self._report.values()))

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
        return fitted.hand_over(_sum(shares))

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
        return _handed_over(fitted, shares)

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
        return fitted.hand_over(_sum(shares))

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
        return _handed_over(fitted, shares)

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
        batch = fitted.batch((x, y), f"{call}(x, y)")
        factors, self._report = fitted.factors(batch, regularization)
        return _handed_over(fitted, factors)

    def _influences(
        self, call: str, x_test: Any, y_test: Any, x: Any, y: Any, mode: InfluenceMode | str
    ) -> tuple[FittedInfluence, ByBlock]:
        mode = parse_mode(InfluenceMode, mode, "mode")
        fitted, regularization = self._state()
        left, right = _sides(fitted, call, x_test, y_test, x, y)
        if mode is InfluenceMode.Up:
            shares, self._report = fitted.scores(left, right, regularization)
            return fitted, shares
        factors, self._report = fitted.factors(left, regularization)
        return fitted, fitted.mixed_products(factors, right)

    def _influences_from_factors(
        self, call: str, factors: Any, x: Any, y: Any, mode: InfluenceMode | str
    ) -> tuple[FittedInfluence, ByBlock]:
        mode = parse_mode(InfluenceMode, mode, "mode")
        fitted, _ = self._state()
        rows = fitted.split(factors, f"{call}(z_test_factors, …)")
        batch = fitted.batch((x, y), f"{call}(…, x, y)")
        products = fitted.products if mode is InfluenceMode.Up else fitted.mixed_products
        return fitted, products(rows, batch)


class Influence(InfluenceFunctionModel):
    """Influence functions of any model that an installed backend serves.

    Args:
        model: the trained model.
        loss: what it was trained with, as its backend takes it; None where the backend knows.
        method: how `C + λI` is inverted, such as `Direct()` or `Cg()`.
        regularization: λ, or a mapping block name -> λ; None is 0.
        block_structure: a `BlockMode`, or an ordered mapping block name -> parameter names.
        second_order_mode: which curvature `C` is inverted, a `SecondOrderMode`.
        backend: the name of the backend; None finds it by the type of the model.
        array_backend: the library of the solver's arithmetic, such as ``"cupy"``; None is the
            model's own. Answers come back in the model's.
        max_memory: bytes that the backend may spend on one product; None leaves it to the backend.
        **options: further keywords of the backend.

    Raises:
        OptionError: an unknown mode or method.
        BlockError: the block structure names unknown parameters.
        RegularizationError: λ is negative or not finite, or the mapping names an unknown block.
        BackendError: no backend, or more than one, serves the model.
    """

    def __init__(
        self,
        model: Any,
        loss: Any,
        method: Method,
        *,
        regularization: Regularization = None,
        block_structure: BlockStructure = BlockMode.FULL,
        second_order_mode: SecondOrderMode | str = SecondOrderMode.HESSIAN,
        backend: str | BackendSpec | None = None,
        array_backend: str | None = None,
        max_memory: int | None = None,
        **options: Any,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        if not isinstance(method, Method):
            raise OptionError(
                f"`method` must be a Method such as Direct() or Cg(); got {method!r}."
            )
        self._spec = find_backend(model, backend)
        self._model, self._loss, self._method = model, loss, method
        self._mode = parse_mode(SecondOrderMode, second_order_mode, "second_order_mode")
        self._structure = block_structure
        self._array_backend = array_backend
        self._options = {**options, "max_memory": max_memory}
        self._device: Any = None
        self._fitted: FittedInfluence | None = None
        self._checked_blocks: tuple[Block, ...] | None = None
        if isinstance(block_structure, Mapping):
            self._blocks()
        else:
            parse_mode(BlockMode, block_structure, "block_structure")
        self.with_regularization(regularization)

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has succeeded."""
        return self._fitted is not None

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks, in the order of the columns of the factors."""
        return [block.name for block in self._blocks()]

    @property
    def n_parameters(self) -> int:
        """The number `p` of parameters that the blocks cover."""
        return sum(block.size for block in self._blocks())

    @property
    def device(self) -> Any:
        """The device that the snapshot lies on, or where `fit` will put it."""
        return device(self._reference())

    @property
    def dtype(self) -> Any:
        """The dtype of the model's parameters."""
        return self._reference().dtype

    @property
    def is_thread_safe(self) -> bool:
        """Whether several threads may call a fitted instance at once."""
        return True

    def fit(self, data: Any) -> Self:
        """Read the parameters and the data, and prepare the inverse of every block.

        A failed `fit` leaves the instance unfitted.

        Args:
            data: an iterable of `(x, y)` batches that can be iterated again, a DataLoader say. The
                objective is the mean loss over all its points, whatever the batch size.

        Returns:
            The instance.

        Raises:
            DataError: there is no data, or it cannot be used.
            DataTypeError: `data` is no iterable, or can be iterated only once.
            LossError: the loss is neither the mean nor the sum nor the vector of the point losses.
            ModelError: the model cannot be used in its present state.
        """
        self._fitted = self._report = None
        problem = self._problem()
        blocks = make_blocks(self._structure, problem.parameters)
        make_regularization(self._regularization, [block.name for block in blocks])
        objective = Objective.of(problem, data)
        exchange = exchange_for(problem.reference, self._array_backend)
        inverses = {
            block.name: self._method.prepare(make_curvature(self._mode, objective, block, exchange))
            for block in blocks
        }
        self._checked_blocks = blocks
        self._fitted = FittedInfluence(problem, blocks, inverses, exchange)
        return self

    def with_regularization(self, regularization: Regularization) -> Self:
        """Replace the regularisation; takes effect without refitting.

        Args:
            regularization: a number for all blocks, or a mapping block name -> number or None. A
                mapping may name a subset; the other blocks get 0. None is 0.

        Returns:
            The instance.

        Raises:
            RegularizationError: a value is negative or not finite, or a name is no block's; the
                regularisation then stays as it was.
        """
        names = self.block_names if isinstance(regularization, Mapping) else None
        self._regularization = make_regularization(regularization, names)
        return self

    def to(self, device: Any) -> Self:
        """Move the snapshot and everything fitted to `device`; a later `fit` works there too.

        The user's model stays where it is.

        Raises:
            CapabilityError: the backend cannot move its problem.
        """
        if self._fitted is not None:
            self._fitted = self._fitted.to(device)
        self._device = device
        return self

    @InfluenceFunctionModel.fit_required
    def influences_over(
        self,
        regularizations: Sequence[Regularization],
        x_test: Any,
        y_test: Any,
        x: Any = None,
        y: Any = None,
    ) -> Array:
        """Return `influences` (Up) for every one of `r` regularisations, `(r, m, n)`.

        The gradients are computed once, and methods with eigenvalues reuse their factorisation.
        The regularisation of the instance stays as it is.

        Raises:
            NotFittedException: before `fit`.
            OptionError: there are no regularisations, or not a sequence of them.
            RegularizationError: one of them is none.
        """
        fitted, _ = self._state()
        names = self.block_names
        if isinstance(regularizations, str | Mapping) or not hasattr(regularizations, "__iter__"):
            raise OptionError(
                "`influences_over(regularizations, …)` needs a list of numbers or of mappings; "
                f"got {regularizations!r}. For a single one, pass [{regularizations!r}]."
            )
        each = [_by_name(make_regularization(value, names)) for value in regularizations]
        if not each:
            raise OptionError("`influences_over` needs at least one regularisation; got none.")
        left, right = _sides(fitted, "influences_over", x_test, y_test, x, y)
        scores, reports = fitted.scores_over(left, right, each)
        self._report = reports[-1]
        return fitted.hand_over(_sum(scores))

    def _state(self) -> tuple[FittedInfluence, dict[str, float]]:
        assert self._fitted is not None  # every caller is decorated with fit_required
        names = [block.name for block in self._fitted.blocks]
        return self._fitted, _by_name(make_regularization(self._regularization, names))

    def _problem(self) -> Problem:
        factory = self._spec.load()
        return factory(self._model, self._loss, device=self._device, **self._options)

    def _blocks(self) -> tuple[Block, ...]:
        if self._fitted is not None:
            return self._fitted.blocks
        if self._checked_blocks is None:
            self._checked_blocks = make_blocks(self._structure, self._problem().parameters)
        return self._checked_blocks

    def _reference(self) -> Array:
        problem = self._fitted.problem if self._fitted is not None else self._problem()
        return hand_over(problem, problem.reference)


def _by_name(regularization: dict[str, float] | float) -> dict[str, float]:
    assert isinstance(regularization, dict)  # make_regularization was given the names
    return regularization


def _sides(
    fitted: FittedInfluence, call: str, x_test: Any, y_test: Any, x: Any, y: Any
) -> tuple[Batch, Batch]:
    if (x is None) != (y is None):
        given, missing = ("y", "x") if x is None else ("x", "y")
        raise DataError(
            f"`{call}` needs both `x` and `y`, or neither (the test points then stand on both "
            f"sides); got `{given}` without `{missing}`."
        )
    left = fitted.batch((x_test, y_test), f"{call}(x_test, y_test)")
    return left, left if x is None else fitted.batch((x, y), f"{call}(…, x, y)")


def _handed_over(fitted: FittedInfluence, answer: ByBlock) -> ByBlock:
    return OrderedDict((name, fitted.hand_over(share)) for name, share in answer.items())


def _sum(shares: Mapping[str, Tree]) -> Tree:
    first, *others = shares.values()
    return functools.reduce(lambda a, b: map_tree(_add, a, b), others, first)


def _add(a: Array, b: Array) -> Array:
    return namespace(a, b).add(a, b)
