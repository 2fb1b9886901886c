"""The losses that the estimators minimise, on the outputs `f = x Wᵀ + b` of a linear model.

LinearRegression, Ridge       ℓ = ‖f - y‖², summed over the targets
LogisticRegression, binary    ℓ = log(1 + exp(f)) - t f, one output
LogisticRegression            ℓ = log Σ exp(f) - f_y, an output a class
"""

from __future__ import annotations

from typing import Any

from influence_core.arrays import namespace
from influence_core.problem import Array
from influence_core.testing import BinaryCrossEntropy, CrossEntropy, Loss, Squared


class CentredCrossEntropy(CrossEntropy):
    """Cross-entropy of the softmax, with curvature also along what the softmax does not see.

    The softmax ignores a shift that all outputs share. The intercepts of a multinomial
    `LogisticRegression` (and the coefficients, where nothing is penalised) are therefore free along
    it, and the Hessian is singular. The term `½ m(f - f̂)²`, with the mean `m` over the `o` outputs
    and `f̂` the outputs at the fit, chooses one of the equal minima: its value and slope at the fit
    are zero, and its curvature `1 1ᵀ / o²` is orthogonal to every gradient of the cross-entropy.
    Scores stay what they are with the pseudo-inverse of the singular Hessian.
    """

    def curvature(self, f: Array, u: Array) -> Array:
        """Return `π ∘ u - π ⟨π, u⟩ + 1 m(u) / o`, `(k, n, o)`."""
        shift = namespace(u).mean(u, axis=-1, keepdims=True) / u.shape[-1]
        return super().curvature(f, u) + shift


def loss_of(classes: list[Any] | None) -> Loss:
    """Return the loss of a regression (None) or of a classification into these classes."""
    if classes is None:
        return Squared(2.0)
    return BinaryCrossEntropy() if len(classes) == 2 else CentredCrossEntropy()
