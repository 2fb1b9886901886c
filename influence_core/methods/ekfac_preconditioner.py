"""EK-FAC as a preconditioner of conjugate gradient.

`M⁻¹ = (F + λI)⁻¹` with the Kronecker-factored Fisher matrix `F` of the layers. It helps early: the
first step is the answer of EK-FAC, and the next few correct it. For a small residual at small λ,
the Nyström preconditioner is the one to take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from influence_core.arrays import epsilon, from_host, move
from influence_core.curvature import (
    Curvature,
    KroneckerInverse,
    KroneckerSettings,
    kronecker_inverses,
)
from influence_core.methods.ekfac import fisher_labels
from influence_core.methods.preconditioners import Preconditioner, PreparedPreconditioner
from influence_core.modes import LabelKind
from influence_core.problem import Array

# In units of rounding of the largest eigenvalue, the least that an eigenvalue counts. Less lets the
# rounding of a null space of `C` grow; more wastes what the factors know about small eigenvalues.
_ROUNDING = 100.0


@dataclass(frozen=True)
class EkfacPreconditioner(Preconditioner):
    """The Kronecker-factored Fisher matrix plus λ, layer by layer; positive by construction.

    Close to the generalised Gauss–Newton matrix; for other curvatures the solve stays right, only
    slower. Every parameter of the block must belong to a layer.

    Attributes:
        update_diagonal: measure the eigenvalues in the eigenbasis: a second pass over the data.
        labels: a `LabelKind`; None leaves it to the backend.
        draws: random labels for each distribution, where they are sampled.

    Raises:
        OptionError: a value outside these meanings.
    """

    update_diagonal: bool = True
    labels: LabelKind | str | None = None
    draws: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        fisher_labels(self.labels, self.draws, 0)

    def prepare(self, curvature: Curvature, seed: int) -> PreparedPreconditioner:
        """Learn the factors of the block's layers.

        Raises:
            CapabilityError: the backend does not show its layers.
            NotImplementedLayerRepresentationException: a parameter belongs to no layer.
        """
        labels = fisher_labels(self.labels, self.draws, seed)
        settings = KroneckerSettings(labels, self.update_diagonal)
        (inverse,) = kronecker_inverses([curvature], settings)
        return _Ekfac(inverse, curvature.reference)


@dataclass(frozen=True)
class _Ekfac(PreparedPreconditioner):
    inverse: KroneckerInverse
    reference: Array

    def at(self, regularization: float) -> Callable[[Array], Array]:
        like = self.reference
        largest = max(layer.values.max() for layer in self.inverse.layers) + regularization
        floor = _ROUNDING * epsilon(like) * largest or 1.0
        weights = [
            from_host(1.0 / np.maximum(layer.values + regularization, floor), like)
            for layer in self.inverse.layers
        ]
        return lambda rows: self.inverse.scale(rows, weights)

    def to(self, target: Any) -> _Ekfac:
        return replace(
            self, inverse=self.inverse.to(target), reference=move(self.reference, target)
        )
