"""Preconditioners of CG: cheap positive definite approximations of `(C + λI)⁻¹`.

They are prepared once by `fit`, apart from λ, and serve every solve after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import epsilon, move, namespace
from influence_core.curvature import Curvature, sketch_curvature, spectral_product
from influence_core.errors import OptionError
from influence_core.methods.base import check_positive_integer
from influence_core.problem import Array


class PreparedPreconditioner(ABC):
    """A preconditioner of one block."""

    @abstractmethod
    def at(self, regularization: float) -> Callable[[Array], Array]:
        """Return `r ↦ M⁻¹ r` for rows `r`, `(k, d)`, with `M ≈ C + λI` positive definite."""

    @abstractmethod
    def to(self, target: Any) -> PreparedPreconditioner:
        """Return the same preconditioner on the device `target`."""


class Preconditioner(ABC):
    """Settings of a preconditioner; one instance serves any number of blocks and fits."""

    @abstractmethod
    def prepare(self, curvature: Curvature, seed: int) -> PreparedPreconditioner:
        """Do everything that does not depend on λ."""


def check_preconditioner(value: object) -> None:
    """Raise `OptionError` unless `value` is None or a `Preconditioner`."""
    if not isinstance(value, Preconditioner | None):
        raise OptionError(
            "`preconditioner` must be None or a Preconditioner such as "
            f"JacobiPreconditioner() or NystroemPreconditioner(rank=50); got {value!r}."
        )


@dataclass(frozen=True)
class JacobiPreconditioner(Preconditioner):
    """The diagonal: `M = diag(|c| + λ)` with `c` the diagonal of `C`, positive by construction.

    For the outer-product Gauss–Newton matrix `c` is exact. For the other curvatures it is the mean
    of `z ⊙ Cz` over random signs `z`, whose entries may come out negative: hence `|c|`, and no
    entry below `√ε · max |c|`. It pays where the diagonal dominates; the noise of few samples can
    cost more steps than the diagonal saves.

    Attributes:
        num_samples_estimator: products with `C` spent on the estimate, one pass over the data.

    Raises:
        OptionError: `num_samples_estimator` is less than one.
    """

    num_samples_estimator: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_integer("num_samples_estimator", self.num_samples_estimator)

    def prepare(self, curvature: Curvature, seed: int) -> PreparedPreconditioner:
        """Compute or estimate the diagonal of `C`."""
        return _Jacobi(abs(curvature.diagonal(self.num_samples_estimator, seed)))


@dataclass(frozen=True)
class _Jacobi(PreparedPreconditioner):
    magnitudes: Array

    def at(self, regularization: float) -> Callable[[Array], Array]:
        xp = namespace(self.magnitudes)
        floor = xp.max(self.magnitudes) * epsilon(self.magnitudes) ** 0.5
        damped = xp.maximum(self.magnitudes, floor) + regularization
        inverse = 1.0 / xp.where(damped > 0, damped, xp.ones_like(damped))
        return lambda rows: rows * inverse

    def to(self, target: Any) -> _Jacobi:
        return replace(self, magnitudes=move(self.magnitudes, target))


@dataclass(frozen=True)
class NystroemPreconditioner(Preconditioner):
    """The randomised Nyström preconditioner of Frangella, Tropp and Udell (2023).

    `M⁻¹ = (λ_r + λ) U (Λ + λ)⁻¹ Uᵀ + (I - UUᵀ)` with the eigenpairs of a Nyström sketch of `C` of
    the given rank, `λ_r` the smallest of them. The one to take for a small residual at small λ.

    Attributes:
        rank: number of random directions; `fit` spends two passes with as many products.

    Raises:
        OptionError: `rank` is less than one.
    """

    rank: int

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_integer("rank", self.rank)

    def prepare(self, curvature: Curvature, seed: int) -> PreparedPreconditioner:
        """Sketch `C`.

        Warns:
            ConditioningWarning: `C` is indefinite; the directions that show it are left out.
        """
        consequence = "They were left out: the solve stays right, only slower;"
        caller = f"NystroemPreconditioner(rank={self.rank})"
        sketch = sketch_curvature(curvature, self.rank, seed, caller, consequence)
        return _Nystroem(sketch.values, sketch.vectors)


@dataclass(frozen=True)
class _Nystroem(PreparedPreconditioner):
    values: npt.NDArray[np.float64]
    vectors: Array

    def at(self, regularization: float) -> Callable[[Array], Array]:
        if not self.values.size:
            return lambda rows: rows
        weights = (self.values[-1] + regularization) / (self.values + regularization)
        return lambda rows: spectral_product(self.vectors, weights, 1.0, rows)

    def to(self, target: Any) -> _Nystroem:
        return replace(self, vectors=move(self.vectors, target))
