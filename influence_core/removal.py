"""What a score means as a number: the change of the test loss when a training point is removed.

Removal drops the point's own term from `1/N Σ ℓᵢ + λ/2 ‖θ‖²`; the mean stays one over `N`. With
`d = (C + λI)⁻¹ ∇ℓⱼ`, the parameters move by `d/N` to first order, and the test loss by score / N.

The curvature that leaves with the point is missing in that step. The objective without the point,
taken as quadratic, has its minimum along `d` at `d / (N (1 - h))` with the leverage

    h = d Cⱼ dᵀ / (N ⟨∇ℓⱼ, d⟩)

where `Cⱼ` is the point's own share of the curvature. For least squares and for logistic regression
with one output `Cⱼ` has rank one along the gradient, so that this is the full Newton step (exact
for ridge regression, up to the change of the test loss along it): Pregibon, Logistic regression
diagnostics, Annals of Statistics 9 (1981).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import reduce

from influence_core.arrays import epsilon, masked_reciprocal, namespace, read_float, row_dots
from influence_core.errors import ConditioningWarning, warn
from influence_core.fitted import ByBlock, FittedInfluence, Reports, Training
from influence_core.problem import Array, Batch
from influence_core.sources import Points


def removal_effects(
    fitted: FittedInfluence,
    training: Training,
    left: Points,
    right: Points,
    regularization: Mapping[str, float],
) -> tuple[Array, Reports]:
    """Return the change of the loss of every test point, `(m, n)`, to first order."""
    shares, reports = fitted.scores(left, right, [regularization])
    scores = reduce(_add, [share[0, ...] for share in shares.values()])
    return scores * point_weights(training, right.batch, scores), reports


def corrected_removal_effects(
    fitted: FittedInfluence,
    training: Training,
    left: Points,
    right: Points,
    regularization: Mapping[str, float],
) -> tuple[Array, Reports]:
    """Return the same with the leverage of every training point, all of which are solved for.

    Warns:
        ConditioningWarning: a point has a leverage of one or more; it is left uncorrected.
    """
    changes, reports = parameter_changes(fitted, training, right, regularization, leverage=True)
    products = fitted.products(changes, left)
    effects = reduce(_add, products.values())
    return namespace(effects).matrix_transpose(effects), reports


def parameter_changes(
    fitted: FittedInfluence,
    training: Training,
    points: Points,
    regularization: Mapping[str, float],
    *,
    leverage: bool,
) -> tuple[ByBlock, Reports]:
    """Return how the parameters move when a point is removed, `(n, d)` for each block.

    Warns:
        ConditioningWarning: a point has a leverage of one or more; it is left uncorrected.
    """
    rows = {block.name: points.of(block.names).rows() for block in fitted.blocks}
    steps, reports = fitted.solve(rows, regularization)
    weights = point_weights(training, points.batch, fitted.exchange.solver)
    if leverage:
        slopes = reduce(_add, [row_dots(rows[name], steps[name]) for name in rows])
        bends = reduce(
            _add,
            [training.curvatures[name].quadratics(points.batch, steps[name]) for name in rows],
        )
        ratios = weights * bends * masked_reciprocal(slopes, slopes != 0)
        weights = weights * _correction(ratios)
    lengths = weights if isinstance(weights, float) else weights[:, None]
    return OrderedDict((name, step * lengths) for name, step in steps.items()), reports


def point_weights(training: Training, batch: Batch, like: Array) -> Array | float:
    """Return the part of the objective's weight that each point has, `(n,)`, or one number."""
    if batch.weights is None:
        return 1.0 / training.weight
    return namespace(like).astype(batch.weights, like.dtype) / training.weight


def _correction(leverage: Array) -> Array:
    """Return `1 / (1 - h)`, and 1 where the objective without the point has no minimum."""
    xp = namespace(leverage)
    bounded = leverage < 1.0 - epsilon(leverage) ** 0.5  # one, up to rounding, is one
    unbounded = leverage.shape[0] - int(read_float(xp.sum(xp.astype(bounded, leverage.dtype))))
    if unbounded:
        warn(
            f"`leverage=True`: {unbounded} of {leverage.shape[0]} points have "
            "a leverage of one or more: without them the objective has no minimum along their "
            "influence. They are left uncorrected; use a larger `regularization`, or a curvature "
            "that is positive semi-definite.",
            ConditioningWarning,
        )
    return xp.where(bounded, masked_reciprocal(1.0 - leverage, bounded), xp.ones_like(leverage))


def _add(a: Array, b: Array) -> Array:
    return a + b
