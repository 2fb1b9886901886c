"""The base of all influence function models of torch modules."""

from __future__ import annotations

import copy
import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from influence_core import Influence, InfluenceFunctionModel
from influence_core.arrays import Exchange, exchange_for
from influence_core.blocks import Regularization, make_blocks, make_regularization
from influence_core.curvature import Inverse, Solution
from influence_core.facade import Settings
from influence_core.fitted import FittedInfluence
from influence_core.layer_calls import LayerCalls
from influence_core.memory import check_memory
from influence_core.modes import BlockMode
from influence_core.plugins import BackendSpec
from influence_core.problem import Array, Problem
from influence_torch.likelihoods import cross_entropy
from influence_torch.losses import Loss, check_loss
from influence_torch.plugin import influence_backends
from influence_torch.problem import TorchProblem
from influence_torch.snapshot import Forward, check_device, check_forward, check_module

_R = TypeVar("_R")


class TorchInfluenceFunctionModel(InfluenceFunctionModel):
    """Influence function model of a torch module; subclass it with a method of your own.

    Abstract are `fit`, `is_fitted` and `solve_rows`. All parameters are one block, named ``""``.
    The parameters are read when `fit` is entered; if it raises, the ones that were read before
    stay.

    Args:
        model: the trained module, in eval mode.
        loss: `loss(output, y)` of a batch: the mean, the sum or the vector over its points.

    Attributes:
        regularization: λ, as `with_regularization` was given it, for `solve_rows` to use.

    Example:
        >>> class Scaled(TorchInfluenceFunctionModel):
        ...     "Take the curvature for zero: divide the gradients by λ."
        ...
        ...     is_fitted = False
        ...
        ...     def fit(self, data):
        ...         self.is_fitted = True
        ...         return self
        ...
        ...     def solve_rows(self, rows):
        ...         return rows / self.regularization
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        """Take the module and the loss; nothing is copied yet."""
        check_module(model)
        check_loss(loss)
        self.model = model
        self.loss = loss
        self.regularization = 0.0

    _problem_of_fit: TorchProblem | None = None
    _device_of_fit: Any = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Make the `fit` of a user's class read the parameters first."""
        super().__init_subclass__(**keywords)
        if "fit" in vars(cls) and not issubclass(cls, Influence):
            cls.fit = _reading_the_parameters(cls.fit)  # type: ignore[method-assign]

    @abstractmethod
    def solve_rows(self, rows: Tensor) -> Tensor:
        """Return `(C + λI)⁻¹` of every row, `(k, p)`, for rows over all parameters."""

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks: the only one is ``""``."""
        return [""]

    @property
    def n_parameters(self) -> int:
        """The number `p` of parameters that want gradients."""
        return sum(math.prod(shape) for shape in self._snapshot().parameters.values())

    @property
    def device(self) -> torch.device:
        """The device that the snapshot lies on, or where `fit` will put it."""
        return self._snapshot().reference.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's parameters."""
        problem = self._snapshot()
        return problem.hand_over(problem.reference).dtype

    @property
    def is_thread_safe(self) -> bool:
        """Whether several threads may call a fitted instance; False unless a subclass says so."""
        return False

    def with_regularization(self, regularization: Regularization) -> Self:
        """Replace λ, a number or `{"": number}`; it stands in `self.regularization`.

        Raises:
            RegularizationError: it is negative or not finite, or another block is named.
        """
        (self.regularization,) = _by_block(regularization, self.block_names).values()
        return self

    def to(self, device: Any) -> Self:
        """Move the snapshot to `device`, where a later `fit` puts it too.

        A subclass that keeps tensors of its own overrides this and moves them as well.

        Raises:
            DeviceError: torch has no such device here.
        """
        check_device(device)
        self._device_of_fit = device
        if self._problem_of_fit is not None:
            self._problem_of_fit = self._problem_of_fit.to(device)
        return self

    def _snapshot(self) -> TorchProblem:
        """Return the parameters as `fit` read them, or as they are now."""
        if self._problem_of_fit is not None:
            return self._problem_of_fit
        return TorchProblem(self.model, self.loss, device=self._device_of_fit)

    def _state(self) -> tuple[FittedInfluence, dict[str, float]]:
        problem = self._problem_of_fit = self._snapshot()
        (block,) = make_blocks(BlockMode.FULL, problem.parameters)
        inverses = {block.name: _Rows(self)}
        exchange = exchange_for(problem.reference, None)
        return FittedInfluence(problem, (block,), inverses, exchange), {block.name: 0.0}


class TorchInfluence(Influence, TorchInfluenceFunctionModel):
    """A method of the core on a torch module: what the documented classes share.

    Args:
        model: the trained module, in eval mode. It is copied by `fit` and stays untouched.
        loss: `loss(output, y)` of a batch: the mean, the sum or the vector over its points.
        settings: method, regularisation, blocks, curvature and the library of the solver.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        forward: `fn(model, x)` where the call is not `model(x)`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: Settings,
        *,
        max_memory: int | None,
        forward: Forward | None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        check_module(model)
        check_loss(loss)
        check_forward(forward)
        check_memory(max_memory)
        self.model, self.loss = model, loss
        Influence.__init__(
            self,
            model,
            loss,
            settings.method,
            regularization=settings.regularization,
            block_structure=settings.block_structure,
            second_order_mode=settings.second_order_mode,
            backend=influence_backends(),
            array_backend=settings.array_backend,
            max_memory=max_memory,
            forward=forward,
        )

    @classmethod
    def _unfitted(
        cls,
        model: nn.Module,
        loss: Loss | None,
        *,
        backend: BackendSpec,
        options: Mapping[str, Any],
        **settings: Any,
    ) -> Self:
        del backend  # the class knows its own
        instance = cls.__new__(cls)
        if loss is None and issubclass(cls, LayerCalls):
            loss = cross_entropy  # what these classes take where they are given none
        TorchInfluence.__init__(instance, model, loss, Settings(**settings), **options)
        return instance

    def to(self, device: Any) -> Self:
        """Move the snapshot and everything fitted to `device`; a later `fit` works there too.

        The user's model stays where it is.

        Raises:
            DeviceError: torch has no such device here.
        """
        check_device(device)
        return super().to(device)

    @Influence.fit_required
    def solve_rows(self, rows: Tensor) -> Tensor:
        """Return `(C + λI)⁻¹` of every row, `(k, p)`, with `p` the parameters of all blocks."""
        return self.apply_inverse(rows)


@dataclass(frozen=True)
class _Rows(Inverse):
    """The inverse that a user's `solve_rows` is; it knows its own regularisation."""

    model: TorchInfluenceFunctionModel

    def solve(self, rows: Array, regularization: float) -> Solution:
        return Solution(self.model.solve_rows(rows), None)

    def on(self, problem: Problem, exchange: Exchange) -> Inverse:
        return copy.copy(self)


def _reading_the_parameters(fit: Callable[..., _R]) -> Callable[..., _R]:
    @functools.wraps(fit)
    def reading(self: TorchInfluenceFunctionModel, *args: Any, **kwargs: Any) -> _R:
        before = self._problem_of_fit
        self._problem_of_fit = None
        self._problem_of_fit = self._snapshot()
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            self._problem_of_fit = before
            raise

    return reading


def _by_block(regularization: Regularization, names: list[str]) -> dict[str, float]:
    each = make_regularization(regularization, names)
    assert isinstance(each, dict)  # it was given the names
    return each
