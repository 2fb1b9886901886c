"""Scores of a Kronecker-factored inverse, without the gradients of all points.

In the eigenbasis of a layer the gradient of a point is `M̂ = Q_S (Σ_s g_s ⊗ a'_s) Q_Aᵀ`. With
`W = 1/(Λ + λ)`, `(o, i')`, the score of two points is `Σ_{oi} W M̂_t M̂_j = ⟨X_t, M_j⟩`, where
`X_t = Q_Sᵀ (W ∘ M̂_t) Q_A` is the solution for a point of the smaller side.

- **Low rank**, for affine layers that are used once a point: with `W ≈ Σ_r u_r v_rᵀ` the whole
  matrix of scores is `Σ_r (Ĝ_t diag(u_r) Ĝ_jᵀ) ∘ (Â_t diag(v_r) Â_jᵀ)`, a few matrix products of
  what the layer saw, turned.
- **Solved**: `X` of a few points at a time, and its products with what the others saw.
- **Matched**, for lookups: only columns of `M` that both points ask for count. The columns of `X_t`
  are solved one by one, and looked up for every position of the other side.

Of the first two the cheaper one is taken. The relative error of the low-rank form is a tolerance
near the precision of the numbers, for points of any length, see `low_rank`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from influence_core.arrays import epsilon, from_host, namespace, unit_rows, zeros
from influence_core.curvature.low_rank import LowRank, low_rank
from influence_core.layers import AffineSeen, Bases, LookupSeen, Seen
from influence_core.layers.seen import MatrixSeen
from influence_core.problem import Array

Host = npt.NDArray[np.float64]


def layer_scores(
    left: Seen, right: Seen, bases: Bases, weights: Sequence[Host], entries: int
) -> Array:
    """Return `Σ_{oi} W M̂_left M̂_right` for every `W`, `(r, m, n)`.

    Args:
        left: what the layer saw of `m` points, at one label each.
        right: what it saw of `n` points.
        bases: in which `W` is diagonal.
        weights: `W`, `(o, i')` each, on the host.
        entries: how many numbers may be formed at once.
    """
    xp = namespace(left.gradients)
    if right.size < left.size:
        return xp.matrix_transpose(layer_scores(right, left, bases, weights, entries))
    if isinstance(left, LookupSeen) and isinstance(right, LookupSeen):
        solved = _solved_columns(left, bases, weights)
        rows = [xp.sum(right.matches(point), axis=-1) for point in solved.points()]
        return xp.stack(rows, axis=1)
    once = left.positions == right.positions == 1
    if once and isinstance(left, AffineSeen) and isinstance(right, AffineSeen):
        return xp.stack([_once(left, right, bases, each, entries) for each in weights])
    return _solved(left, right, bases, weights, entries)


def layer_scores_by_position(
    left: Seen, right: Seen, bases: Bases, weights: Host, entries: int
) -> Array:
    """Return the share of every position of the points on the right, `(m, n, s)`."""
    if isinstance(left, LookupSeen) and isinstance(right, LookupSeen):
        solved = _solved_columns(left, bases, [weights])
        return namespace(left.gradients).concat([right.matches(p) for p in solved.points()])
    assert isinstance(right, MatrixSeen)
    w = from_host(weights, left.gradients)
    parts = []
    for start, stop in left.chunks(entries, weights.size):
        solutions = bases.turn_back(left.part(start, stop).turned(bases) * w)
        parts.append(right.products_by_position(solutions, entries))
    return namespace(left.gradients).concat(parts)


def self_scores(seen: Seen, bases: Bases, weights: Array, entries: int) -> Array:
    """Return `Σ_{oi} W M̂²`, `(n,)`, for `W`, `(o, i')`."""
    return seen.self_products(weights, bases, entries)


def _solved(few: Seen, many: Seen, bases: Bases, weights: Sequence[Host], entries: int) -> Array:
    """Return the scores from solutions `X` for a few points at a time, `(r, k, n)`."""
    assert isinstance(many, MatrixSeen)
    xp, (o, i) = namespace(few.gradients), weights[0].shape
    turn_many = _cheaper_turned(few, many, bases, len(weights))
    others = many.in_bases(bases) if turn_many else many
    assert isinstance(others, MatrixSeen)
    ws = [from_host(each, few.gradients) for each in weights]
    parts = []
    for start, stop in few.chunks(entries, len(weights) * o * i):
        turned = few.part(start, stop).turned(bases)
        solved = xp.concat([turned * w for w in ws])
        solved = solved if turn_many else bases.turn_back(solved)
        products = others.products(solved, entries)
        parts.append(xp.reshape(products, (len(ws), stop - start, many.size)))
    return xp.concat(parts, axis=1)


def _cheaper_turned(few: Seen, many: Seen, bases: Bases, count: int) -> bool:
    """Tell whether to turn what many points saw is less work than to turn solutions back."""
    i, o = bases.work()
    back = count * few.size * few.outputs * few.width * (i + o)
    return many.size * many.positions * (many.width * i + many.outputs * o) < back


def _solved_columns(few: LookupSeen, bases: Bases, weights: Sequence[Host]) -> LookupSeen:
    """Return the solutions for the columns that were asked for, `(r, n, t, o)`."""
    xp = namespace(few.gradients)
    g = bases.turn_outputs(few.gradients[0, ...])
    each = [g * few.columns(from_host(w, few.gradients)) for w in weights]
    return few.with_gradients(bases.turn_outputs_back(xp.stack(each)))


def _once(left: AffineSeen, right: AffineSeen, bases: Bases, weights: Host, entries: int) -> Array:
    """Return the scores by the low-rank form, or from solutions where that is cheaper.

    The points are brought to length one before and back after, so that the tolerance holds for the
    smallest gradient as for the largest, and squares of small ones do not underflow.
    """
    o, i = weights.shape
    sides = _Once(left.in_bases(bases)), _Once(right.in_bases(bases))
    rows, columns = (a * b for a, b in zip(*(side.sizes() for side in sides), strict=True))
    tolerance = epsilon(left.gradients) ** 0.65
    found = low_rank(weights, rows, columns, tolerance, o * i // (o + i))
    if found is None:
        return _solved(left, right, bases, [weights], entries)[0, ...]
    return _by_rank(*sides, found)


class _Once:
    """What a layer saw of some points at one position, with length one, and its lengths."""

    def __init__(self, seen: AffineSeen) -> None:
        self.inputs, self.input_peaks, self.input_lengths = unit_rows(seen.inputs[:, 0, :])
        self.gradients, self.peaks, self.lengths = unit_rows(seen.gradients[0, :, 0, :])

    def sizes(self) -> tuple[Array, Array]:
        """Return the root mean squares of `ĝ`, `(o,)`, and of `â`, `(i',)`."""
        xp = namespace(self.inputs)
        squares = (xp.mean(rows**2, axis=0) for rows in (self.gradients, self.inputs))
        first, second = map(xp.sqrt, squares)
        return first, second

    def scales(self) -> tuple[Array, Array]:
        """Return two factors that restore the length of every point, `(n, 1)` each."""
        return self.peaks * self.input_peaks, self.lengths * self.input_lengths


def _by_rank(left: _Once, right: _Once, form: LowRank) -> Array:
    xp = namespace(left.inputs)
    g, a = (xp.matrix_transpose(factor) for factor in (right.gradients, right.inputs))
    scores = zeros((left.inputs.shape[0], right.inputs.shape[0]), left.inputs)
    for r in range(form.rank):
        across = (left.gradients * form.left[r, :]) @ g
        scores = scores + across * ((left.inputs * form.right[r, :]) @ a)
    for one, other in zip(left.scales(), right.scales(), strict=True):
        scores = scores * one * xp.matrix_transpose(other)
    return scores
