"""The documented classes, one by one, with settings under which their answers are exact.

Each has a dense reference of its own: what the class promises to compute, by another way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from dense import Dense, double
from textbook import Textbook
from torch import Tensor, nn
from zoo import MODES, Case

from influence_torch import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    InverseHarmonicMeanInfluence,
    LissaInfluence,
    NystroemSketchInfluence,
    TorchInfluenceFunctionModel,
)

RANK = 6


class DenseTruncated(Dense):
    """`V (D + λ)⁻¹ Vᵀ` with the `RANK` eigenpairs that are largest in absolute value."""

    def _solve(self, place: Tensor, rows: Tensor, mode: str, regularization: float) -> Tensor:
        if len(place) <= RANK:
            return super()._solve(place, rows, mode, regularization)
        values, vectors = torch.linalg.eigh(self.curvature(mode)[place][:, place])
        kept = values.abs().argsort(descending=True)[:RANK]
        v = vectors[:, kept]
        return rows[:, place] @ v / (values[kept] + regularization) @ v.T


class DenseHarmonicMean(Dense):
    """`1/N Σᵢ (∇ℓᵢ∇ℓᵢᵀ + λI)⁻¹`."""

    def _solve(self, place: Tensor, rows: Tensor, mode: str, regularization: float) -> Tensor:
        damping = regularization * torch.eye(len(place), dtype=torch.float64)
        gradients = self.gradients(self.x, self.y)[:, place]
        inverses = [torch.linalg.inv(torch.outer(g, g) + damping) for g in gradients]
        return rows[:, place] @ (sum(inverses) / len(inverses))


class DenseEkfac(Textbook):
    """EK-FAC, whatever the curvature is called, for points of any dtype."""

    def _once(
        self, what: str, compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        return super()._once(what, compute, double(x), double(y))

    def _solve(self, place: Tensor, rows: Tensor, mode: str, regularization: float) -> Tensor:
        return super()._solve(place, rows, "ekfac", regularization)


@dataclass(frozen=True, eq=False)
class Solver:
    """A documented class with settings; called with `(model, loss, regularization)` like the most.

    Attributes:
        kind: the class.
        settings: its keywords.
        reference: the class of the dense reference.
        batch_size: at which `loader` reads, where the answers are to be exact.
        reads: whether a solve reads the training data.
    """

    kind: type[TorchInfluenceFunctionModel]
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: type[Dense] = Dense
    batch_size: int = 12
    reads: bool = False

    def __call__(
        self, model: Any, loss: Any, regularization: Any = None, **keywords: Any
    ) -> TorchInfluenceFunctionModel:
        keywords = {**self.settings, **keywords}
        if self.kind is EkfacInfluence:
            keywords = {"loss": loss, "hessian_regularization": regularization, **keywords}
            return self.kind(model, **keywords)
        return self.kind(model, loss, regularization, **keywords)

    @property
    def __name__(self) -> str:
        return self.kind.__name__

    @property
    def modes(self) -> tuple[str, ...]:
        """The curvatures that can be chosen; the empty string where there is no choice."""
        return MODES if self.takes("second_order_mode") else ("",)

    def takes(self, keyword: str) -> bool:
        """Whether the class has a keyword."""
        return keyword in inspect.signature(self.kind).parameters

    def known(self, **keywords: Any) -> dict[str, Any]:
        """Those of the keywords that the class has."""
        return {name: value for name, value in keywords.items() if self.takes(name)}

    def loader(self, case: Case) -> list[tuple[Any, Any]]:
        """The points of a case in batches."""
        return case.loader(self.batch_size)

    def dense(self, case: Case) -> Dense:
        """The reference for a case."""
        if self.reference is DenseEkfac:
            layers = case.model if list(case.model.children()) else nn.Sequential(case.model)
            return DenseEkfac(layers, case.loss, case.x, case.y)
        return self.reference(case.model, case.loss, case.x, case.y, case.forward)


SOLVERS = [
    Solver(DirectInfluence),
    Solver(CgInfluence, {"rtol": 1e-12, "atol": 0.0}, reads=True),
    Solver(
        LissaInfluence,
        {"rtol": 1e-12, "scale": None, "maxiter": 200, "warn_on_max_iteration": False},
        batch_size=1000,  # a single batch: no noise
        reads=True,
    ),
    Solver(ArnoldiInfluence, {"rank": RANK, "tol": 1e-12}, DenseTruncated),
    Solver(NystroemSketchInfluence, {"rank": 1000}),
    Solver(InverseHarmonicMeanInfluence, reference=DenseHarmonicMean, reads=True),
    Solver(EkfacInfluence, {"update_diagonal": True}, DenseEkfac),
]
NAMED = {solver.__name__: solver for solver in SOLVERS}
ROUTES = [(solver, mode) for solver in SOLVERS for mode in solver.modes]
WITH_BLOCKS = [solver for solver in SOLVERS if solver.takes("block_structure")]
WITH_MODES = [solver for solver in SOLVERS if solver.takes("second_order_mode")]
