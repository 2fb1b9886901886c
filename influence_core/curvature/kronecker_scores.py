"""Scores of a Kronecker-factored inverse, without per-sample gradients.

In the eigenbasis of a layer the gradient of a point is `Ĝ = Σ_s ĝ_s ⊗ â_s` with `ĝ = g Q_Sᵀ` and
`â = a' Q_Aᵀ`. With `W = 1/(Λ + λ)`, `(o, i')`, the score of two points is `Σ_{oi} W Ĝ_t Ĝ_j`.

- **Low rank**, for layers that are used once a point: with `W ≈ Σ_r u_r v_rᵀ` the whole matrix of
  scores is `Σ_r (Ĝ_t diag(u_r) Ĝ_jᵀ) ∘ (Â_t diag(v_r) Â_jᵀ)`, a few matrix products of the factors.
- **Exact**: `X = W ∘ Ĝ_t` for a few points of one side at a time, and `Σ_s ĝ_js · X â_js`.

The cheaper one is taken. The relative error of the low-rank form is a tolerance near the precision
of the numbers, for points of any length, see `low_rank`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influence_core.arrays import epsilon, from_host, namespace, unit_rows, zeros
from influence_core.curvature.low_rank import LowRank, low_rank
from influence_core.problem import Array

# numbers that the exact contraction forms at once
_ENTRIES = 2**24


@dataclass(frozen=True)
class Factors:
    """What a layer saw of some points, in its eigenbasis.

    Attributes:
        inputs: `â`, `(n, s, i')`.
        gradients: `ĝ`, `(n, s, o)`.
    """

    inputs: Array
    gradients: Array

    @property
    def size(self) -> int:
        """The number `n` of points."""
        return int(self.inputs.shape[0])

    @property
    def positions(self) -> int:
        """The number `s` of positions."""
        return int(self.inputs.shape[1])

    def sizes(self) -> tuple[Array, ...]:
        """Return the root mean squares of `ĝ`, `(o,)`, and of `â`, `(i',)`."""
        xp = namespace(self.inputs)
        squares = (xp.mean(rows**2, axis=(0, 1)) for rows in (self.gradients, self.inputs))
        return tuple(map(xp.sqrt, squares))

    def unit(self) -> tuple[Factors, Array]:
        """Return the factors of one position with length one, and what restores them, `(n, 2)`."""
        xp = namespace(self.inputs)
        inputs, input_peaks, input_lengths = unit_rows(self.inputs[:, 0, :])
        gradients, peaks, lengths = unit_rows(self.gradients[:, 0, :])
        lengths = xp.concat([peaks * input_peaks, lengths * input_lengths], axis=1)
        return Factors(inputs[:, None, :], gradients[:, None, :]), lengths

    def part(self, start: int, stop: int) -> Factors:
        """Return some of the points."""
        return Factors(self.inputs[start:stop, :, :], self.gradients[start:stop, :, :])

    def matrices(self) -> Array:
        """Return `Ĝ`, `(n, o, i')`."""
        return namespace(self.inputs).matrix_transpose(self.gradients) @ self.inputs


def layer_scores(left: Factors, right: Factors, weights: npt.NDArray[np.float64]) -> Array:
    """Return `Σ_{oi} W Ĝ_left Ĝ_right`, `(m, n)`, for `W`, `(o, i')`, on the host."""
    if left.positions == right.positions == 1:
        scores = _of_unit_length(left, right, weights)
        if scores is not None:
            return scores
    if right.size < left.size:
        return namespace(left.inputs).matrix_transpose(_exactly(right, left, weights))
    return _exactly(left, right, weights)


def self_scores(factors: Factors, weights: npt.NDArray[np.float64]) -> Array:
    """Return `Σ_{oi} W Ĝ²`, `(n,)`."""
    xp, w = namespace(factors.inputs), from_host(weights, factors.inputs)
    if factors.positions == 1:
        a, g = factors.inputs[:, 0, :], factors.gradients[:, 0, :]
        return xp.sum(((g * g) @ w) * (a * a), axis=-1)
    parts = [
        xp.sum(w * factors.part(start, stop).matrices() ** 2, axis=(1, 2))
        for start, stop in _chunks(factors.size, weights.size)
    ]
    return xp.concat(parts)


def _of_unit_length(
    left: Factors, right: Factors, weights: npt.NDArray[np.float64]
) -> Array | None:
    """Return the scores by the low-rank form, or None where the exact contraction is cheaper.

    The points are brought to length one before and back after, so that the tolerance holds for the
    smallest gradient as for the largest, and squares of small ones do not underflow.
    """
    xp, (o, i) = namespace(left.inputs), weights.shape
    (left, left_lengths), (right, right_lengths) = left.unit(), right.unit()
    rows, columns = (a * b for a, b in zip(left.sizes(), right.sizes(), strict=True))
    tolerance = epsilon(left.inputs) ** 0.65
    found = low_rank(weights, rows, columns, tolerance, o * i // (o + i))
    if found is None:
        return None
    scores = _by_rank(left, right, found)
    for column in range(2):
        scores = (
            scores
            * left_lengths[:, column, None]
            * xp.matrix_transpose(right_lengths[:, column, None])
        )
    return scores


def _by_rank(left: Factors, right: Factors, form: LowRank) -> Array:
    xp = namespace(left.inputs)
    g_left, a_left = left.gradients[:, 0, :], left.inputs[:, 0, :]
    g_right, a_right = (
        xp.matrix_transpose(factor[:, 0, :]) for factor in (right.gradients, right.inputs)
    )
    total = zeros((left.size, right.size), left.inputs)
    for r in range(form.rank):
        across = (g_left * form.left[r, :]) @ g_right
        total = total + across * ((a_left * form.right[r, :]) @ a_right)
    return total


def _exactly(few: Factors, many: Factors, weights: npt.NDArray[np.float64]) -> Array:
    xp, w = namespace(few.inputs), from_host(weights, few.inputs)
    n, s = many.size, many.positions
    o, i = weights.shape
    inputs = xp.reshape(many.inputs, (n * s, i))
    rows = []
    for start, stop in _chunks(few.size, o * max(i, n * s)):
        solved = few.part(start, stop).matrices() * w
        images = inputs @ xp.matrix_transpose(solved)  # (k, n·s, o)
        images = xp.reshape(images, (stop - start, n, s, o))
        rows.append(xp.sum(images * many.gradients, axis=(2, 3)))
    return xp.concat(rows)


def _chunks(count: int, each: int) -> list[tuple[int, int]]:
    size = max(1, _ENTRIES // each)
    return [(start, min(start + size, count)) for start in range(0, count, size)]
