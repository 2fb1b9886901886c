"""The entry point for any model: a model, its loss and a method."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Self

from influence_core import storage
from influence_core.arrays import check_array_backend, concatenate_trees, device, exchange_for
from influence_core.blocks import (
    Block,
    BlockStructure,
    Regularization,
    make_blocks,
    make_regularization,
)
from influence_core.calls import InfluenceFunctionModel
from influence_core.curvature import make_curvature
from influence_core.errors import OptionError, RegularizationError, StorageError
from influence_core.fitted import (
    ByBlock,
    FittedInfluence,
    Training,
    hand_over,
    measured_problem,
    shelter,
)
from influence_core.methods import Method
from influence_core.modes import BlockMode, SecondOrderMode, parse_mode
from influence_core.objective import Objective
from influence_core.optimality import Gauge
from influence_core.plugins import BackendSpec, find_backend
from influence_core.problem import Array, Problem
from influence_core.removal import (
    corrected_removal_effects,
    parameter_changes,
    removal_effects,
)


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
        self._quantity: Any = None
        if isinstance(block_structure, Mapping):
            self._blocks()
        else:
            parse_mode(BlockMode, block_structure, "block_structure")
        check_array_backend(array_backend)
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

        Warns:
            OptimalityWarning: the parameters are far from a minimum of the loss; see
                `gradient_norm`.

        Raises:
            DataError: there is no data, or it cannot be used.
            DataTypeError: `data` is no iterable, or can be iterated only once.
            LossError: the loss is neither the mean nor the sum nor the vector of the point losses.
            ModelError: the model cannot be used in its present state.
        """
        self._fitted = self._report = None
        problem = self._problem()
        with shelter(problem):
            self._fitted = self._fit(problem, data)
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
        positive = self._method.needs_damping
        try:
            checked = make_regularization(regularization, names, positive=positive)
        except RegularizationError:  # say it again, with the names of the blocks: they cost a copy
            make_regularization(regularization, self.block_names, positive=positive)
            raise
        self._regularization = checked
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
    def measuring(self, quantity: Any) -> Self:
        """Return a copy whose test points are measured by `quantity` instead of the loss.

        In every call of the copy, `quantity(output, y_test)` takes the place of the test loss: a
        logit margin, say, or the log-probability of given tokens. The training points keep their
        loss, and so does the curvature; nothing is fitted again. A positive score then says that
        the quantity rises when the training point is removed.

        Args:
            quantity: a function like the loss: of a batch, its mean, sum or vector over the points.

        Raises:
            NotFittedException: before `fit`.
            CapabilityError: the backend cannot differentiate another quantity.
        """
        fitted, _ = self._state()
        copied = copy.copy(self)
        copied._quantity = quantity
        copied._fitted = replace(fitted, measured=measured_problem(fitted.problem, quantity))
        copied._report = None
        return copied

    @property
    @InfluenceFunctionModel.fit_required
    def gradient_norm(self) -> float:
        """`‖∇ mean ℓ + λθ‖` at the parameters that `fit` read: zero at a minimum.

        For the present λ, over the parameters that the blocks cover, with the penalty of the
        objective where it has one. A backend that hands out no parameter values leaves out λθ.
        """
        fitted, regularization = self._state()
        return _training(fitted).optimality.gradient_norm(regularization)

    @InfluenceFunctionModel.fit_required
    def removal_effects(
        self, x_test: Any, y_test: Any, x: Any, y: Any, leverage: bool = False
    ) -> Array:
        """Return the predicted change of every test loss when a training point is removed.

        Removing drops the point's term from `1/N Σ ℓᵢ + λ/2 ‖θ‖²`; the mean stays one over `N`.

        Args:
            x_test: test inputs, `(m, …)`.
            y_test: test targets, `(m, …)`.
            x: training inputs, `(n, …)`; points of the data that was fitted.
            y: training targets, `(n, …)`.
            leverage: divide by `1 - h`, `h = d Cⱼ dᵀ / (N ⟨∇ℓⱼ, d⟩)` with `d = (C + λI)⁻¹ ∇ℓⱼ` by
                the method, and `Cⱼ` the curvature of the point by `second_order_mode`: the Newton
                step for the objective without the point, with the exact length along `d`. The
                change of the parameters is then exact for ridge regression. Every training point
                is solved for, and `Cⱼ` costs a product a point.

        Returns:
            `(m, n)`, in units of the loss: score / N. Positive: the test loss rises.

        Warns:
            ConditioningWarning: a leverage of one or more; the point is left uncorrected.

        Raises:
            NotFittedException: before `fit`.
            DataError: the points cannot be used.
        """
        fitted, regularization = self._state()
        sides = fitted.sides("removal_effects", x_test, y_test, x, y)
        effects = corrected_removal_effects if leverage else removal_effects
        answer, self._report = effects(fitted, _training(fitted), *sides, regularization)
        return fitted.hand_over(answer)

    @InfluenceFunctionModel.fit_required
    def parameter_changes(self, x: Any, y: Any, leverage: bool = False) -> Array:
        """Return the predicted change of the parameters when a training point is removed, `(n, p)`.

        `(C + λI)⁻¹ ∇ℓⱼ / N`, which are the `influence_factors` of the points over `N`; with
        `leverage` over `N (1 - h)`, see `removal_effects`. Exact for ridge regression then.

        Warns:
            ConditioningWarning: a leverage of one or more; the point is left uncorrected.

        Raises:
            NotFittedException: before `fit`.
            DataError: the points cannot be used.
        """
        fitted, regularization = self._state()
        points = fitted.points((x, y), "parameter_changes(x, y)")
        changes, self._report = parameter_changes(
            fitted, _training(fitted), points, regularization, leverage=leverage
        )
        return fitted.hand_over(concatenate_trees(list(changes.values()), axis=1))

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
        The regularisation of the instance stays as it is. `report` then has the right-hand sides of
        the first λ, followed by those of the second, and so on.

        Raises:
            NotFittedException: before `fit`.
            OptionError: there are no regularisations, or not a sequence of them.
            RegularizationError: one of them is none.
        """
        fitted, shares = self._influences_over(
            "influences_over", regularizations, x_test, y_test, x, y
        )
        return fitted.whole(shares)

    @InfluenceFunctionModel.fit_required
    def influences_over_by_block(
        self,
        regularizations: Sequence[Regularization],
        x_test: Any,
        y_test: Any,
        x: Any = None,
        y: Any = None,
    ) -> OrderedDict[str, Array]:
        """Return the share of each block in `influences_over`, `(r, m, n)`, by block name."""
        call = "influences_over_by_block"
        fitted, shares = self._influences_over(call, regularizations, x_test, y_test, x, y)
        return fitted.by_block(shares)

    def _influences_over(
        self, call: str, regularizations: Any, x_test: Any, y_test: Any, x: Any, y: Any
    ) -> tuple[FittedInfluence, ByBlock]:
        fitted, _ = self._state()
        each = [self._by_block(value) for value in as_path(call, regularizations)]
        left, right = fitted.sides(call, x_test, y_test, x, y)
        shares, self._report = fitted.scores(left, right, each)
        return fitted, shares

    @InfluenceFunctionModel.fit_required
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what `fit` prepared to the directory `path`, for `influence_core.load`.

        The arrays are written as safetensors, everything else as readable JSON. The directory
        appears as a whole or not at all; state that was saved there before is replaced. Model and
        data are not written, only hashes of their content: CG, LiSSA and the harmonic mean need
        the data again, and make one pass over it here.

        Args:
            path: in an existing directory.

        Raises:
            NotFittedException: before `fit`.
            StorageError: writing fails, there is something else at `path`, or a method or class of
                the user's holds something that cannot be stored.
            CapabilityError: the backend does not hand out its parameters.
            MissingExtraError: safetensors is not installed.
        """
        if self._quantity is not None:
            raise StorageError(
                "`save` writes what `fit` prepared; what `measuring` takes is code and no part of "
                "it. Save the instance that it was called on, and call it again after `load`."
            )
        fitted, regularization = self._state()
        setup = storage.Setup(
            kind=type(self),
            backend=self._spec,
            method=self._method,
            regularization=regularization,
            block_structure=self._structure,
            second_order_mode=self._mode,
            array_backend=self._array_backend,
            options=self._options,
        )
        storage.save(path, setup, self._loss, fitted, _training(fitted))

    @classmethod
    def _unfitted(
        cls, model: Any, loss: Any, *, options: Mapping[str, Any], **settings: Any
    ) -> Self:
        """Return an instance with settings that were saved; a class with others overrides this."""
        instance = cls.__new__(cls)
        Influence.__init__(instance, model, loss, **settings, **options)
        return instance

    def _resume(self, restored: Callable[[Problem], FittedInfluence]) -> None:
        """Take what was saved of a fit, restored for the problem of the present parameters."""
        problem = self._problem()
        with shelter(problem):
            self._fitted = restored(problem)

    def _fit(self, problem: Problem, data: Any) -> FittedInfluence:
        blocks = make_blocks(self._structure, problem.parameters)
        regularization = self._by_block(self._regularization, blocks)
        gauge = Gauge(problem, blocks)
        objective = Objective.of(problem, data, gauge.see)
        optimality = gauge.reading(objective.points, objective.weight)
        optimality.tell(regularization)
        exchange = exchange_for(problem.reference, self._array_backend)
        curvatures = {
            block.name: make_curvature(self._mode, objective, block, exchange) for block in blocks
        }
        prepared = self._method.prepare_blocks(list(curvatures.values()))
        inverses = dict(zip(curvatures, prepared, strict=True))
        training = Training(curvatures, objective.weight, optimality)
        measured = measured_problem(problem, self._quantity)
        return FittedInfluence(problem, blocks, inverses, exchange, training, measured)

    def _state(self) -> tuple[FittedInfluence, dict[str, float]]:
        assert self._fitted is not None  # every caller is decorated with fit_required
        return self._fitted, self._by_block(self._regularization)

    def _shelter(self) -> AbstractContextManager[None]:
        return nullcontext() if self._fitted is None else shelter(self._fitted.problem)

    def _by_block(
        self, regularization: Regularization, blocks: Sequence[Block] | None = None
    ) -> dict[str, float]:
        names = [block.name for block in blocks or self._blocks()]
        positive = self._method.needs_damping
        each = make_regularization(regularization, names, positive=positive)
        assert isinstance(each, dict)  # it was given the names
        return each

    def _problem(self) -> Problem:
        factory = self._spec.load()
        return factory(self._model, self._loss, device=self._device, **self._options)

    def _blocks(self) -> tuple[Block, ...]:
        if self._fitted is not None:
            return self._fitted.blocks
        return make_blocks(self._structure, self._problem().parameters)

    def _reference(self) -> Array:
        problem = self._fitted.problem if self._fitted is not None else self._problem()
        return hand_over(problem, problem.reference)


def as_path(call: str, regularizations: Any) -> list[Regularization]:
    """Return what a user passed as several regularisations, as a list.

    Raises:
        OptionError: it is a single one, or none.
    """
    if isinstance(regularizations, str | Mapping) or not hasattr(regularizations, "__iter__"):
        raise OptionError(
            f"`{call}` needs a list of numbers or of mappings for λ; got {regularizations!r}. For "
            f"a single one, pass [{regularizations!r}]."
        )
    path = list(regularizations)
    if not path:
        raise OptionError(f"`{call}` needs at least one regularisation; got none.")
    return path


def _training(fitted: FittedInfluence) -> Training:
    assert fitted.training is not None  # `fit` of this class sets it
    return fitted.training
