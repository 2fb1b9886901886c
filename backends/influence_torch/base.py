"""The base of all influence function models of torch modules."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from influence_core import Influence, InfluenceFunctionModel
from influence_core.arrays import Exchange, exchange_for
from influence_core.blocks import make_blocks
from influence_core.curvature import Inverse, Solution, closed_form_report
from influence_core.facade import Settings
from influence_core.fitted import FittedInfluence
from influence_core.modes import BlockMode
from influence_core.problem import Array, Problem
from influence_torch.losses import Loss
from influence_torch.plugin import influence_backends
from influence_torch.problem import TorchProblem
from influence_torch.snapshot import Forward


class TorchInfluenceFunctionModel(InfluenceFunctionModel):
    """Influence function model of a torch module; subclass it with a method of your own.

    Abstract are `fit`, `is_fitted` and `solve_rows`. A `fit` that is called again after the
    parameters changed starts with `self.snapshot()`.

    Args:
        model: the trained module, in eval mode.
        loss: `loss(output, y)` of a batch: the mean, the sum or the vector over its points.

    Example:
        >>> class Identity(TorchInfluenceFunctionModel):
        ...     "Score by the plain product of gradients."
        ...
        ...     is_fitted = False
        ...
        ...     def fit(self, data):
        ...         self.snapshot()
        ...         self.is_fitted = True
        ...         return self
        ...
        ...     def solve_rows(self, rows):
        ...         return rows
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        """Take the module and the loss; nothing is copied yet."""
        self.model = model
        self.loss = loss
        self._problem_of_snapshot: TorchProblem | None = None

    @abstractmethod
    def solve_rows(self, rows: Tensor) -> Tensor:
        """Return `(C + λI)⁻¹` of every row, `(k, p)`, for rows over all parameters."""

    def snapshot(self) -> None:
        """Read the parameters of the module now; otherwise the first call after `fit` does."""
        self._problem_of_snapshot = TorchProblem(self.model, self.loss)

    def _state(self) -> tuple[FittedInfluence, dict[str, float]]:
        if self._problem_of_snapshot is None:
            self.snapshot()
        problem = self._problem_of_snapshot
        assert problem is not None  # snapshot made it
        (block,) = make_blocks(BlockMode.FULL, problem.parameters)
        inverses = {block.name: _Rows(self)}
        exchange = exchange_for(problem.reference, None)
        return FittedInfluence(problem, (block,), inverses, exchange), {block.name: 0.0}


class TorchInfluence(Influence, TorchInfluenceFunctionModel):
    """A method of the core on a torch module: what the documented classes share.

    Args:
        model: the trained module, in eval mode. It is copied by `fit` and stays untouched.
        loss: `loss(output, y)` of a batch: the mean, the sum or the vector over its points.
        settings: method, regularisation, blocks and curvature.
        max_memory: bytes that one product may hold; None allows 1 GiB.
        array_backend: the library of the solver's arithmetic; None is torch.
        forward: `fn(model, x)` where the call is not `model(x)`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: Settings,
        *,
        max_memory: int | None,
        array_backend: str | None,
        forward: Forward | None,
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        TorchInfluenceFunctionModel.__init__(self, model, loss)
        Influence.__init__(
            self,
            model,
            loss,
            settings.method,
            regularization=settings.regularization,
            block_structure=settings.block_structure,
            second_order_mode=settings.second_order_mode,
            backend=influence_backends(),
            array_backend=array_backend,
            max_memory=max_memory,
            forward=forward,
        )

    @Influence.fit_required
    def solve_rows(self, rows: Tensor) -> Tensor:
        """Return `(C + λI)⁻¹` of every row, `(k, p)`, with `p` the parameters of all blocks."""
        return self.apply_inverse(rows)


@dataclass(frozen=True)
class _Rows(Inverse):
    """The inverse that a user's `solve_rows` is; it knows its own regularisation."""

    model: TorchInfluenceFunctionModel

    def solve(self, rows: Array, regularization: float) -> Solution:
        nothing_known = np.full(rows.shape[0], np.nan)
        return Solution(self.model.solve_rows(rows), closed_form_report(nothing_known))

    def on(self, problem: Problem, exchange: Exchange) -> Inverse:
        return copy.copy(self)
