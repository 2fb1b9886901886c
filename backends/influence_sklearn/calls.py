"""Answers in one call: scores, and the changes of the test loss without each training point."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.class_weight import compute_class_weight

from influence_core import Direct, Influence, InfluenceMode, Method
from influence_core.arrays import to_host
from influence_core.errors import DataError
from influence_core.memory import points_in_memory
from influence_core.modes import parse_mode
from influence_sklearn.data import Weighted, in_parts, labels, on_host
from influence_sklearn.estimators import check_estimator, split
from influence_sklearn.problem import SklearnProblem
from influence_sklearn.targets import targets_apart

Host = npt.NDArray[Any]

# arrays `(n, d)` that moves of the parameters take: gradients, solutions and what comes between
_MOVED = 5


def influences(
    estimator: Any,
    X_train: Any,
    y_train: Any,
    X_test: Any = None,
    y_test: Any = None,
    *,
    sample_weight: Any = None,
    method: Method | None = None,
    regularization: float = 0.0,
    mode: InfluenceMode | str = InfluenceMode.Up,
    max_memory: int | None = None,
) -> Host:
    """Return the influence of every training point on the loss at every test point.

    The objective is the estimator's own. Without test points, the training points stand on both
    sides.

    Args:
        estimator: a fitted `LinearRegression`, `Ridge` or `LogisticRegression`, or a pipeline that
            ends in one.
        X_train: what it was fitted with, `(n, i)`.
        y_train: what it was fitted with, `(n,)` or `(n, o)`.
        X_test: `(m, i)`.
        y_test: `(m,)` or `(m, o)`.
        sample_weight: what it was fitted with, `(n,)`; None for ones.
        method: how the curvature is inverted; None is `Direct()`.
        regularization: damping λ beside the penalty of the estimator.
        mode: `Up`, to remove a training point, or `Perturbation`, to change its input.
        max_memory: bytes that one product may hold, beside the data, the answer and what the method
            keeps; None allows 1 GiB.

    Returns:
        Up: `(m, n)`, entry `wⱼ ⟨(H + λI)⁻¹ ∇ℓ(test_i), ∇ℓ(train_j)⟩`. Positive: removing the
        training point raises the test loss, by about entry / Σw (n where there are no weights).
        Perturbation: `(m, n, i)`, the same with `∇ₓ∇ℓ(train_j)`.

    Raises:
        ModelError: the estimator is not fitted or not supported.
        CapabilityError: its penalty is not quadratic, or it is a pipeline to be perturbed.
        DataError: the data does not fit the estimator.
    """
    check_estimator(split(estimator)[1], estimator)
    if (X_test is None) != (y_test is None):
        given, missing = ("y_test", "X_test") if X_test is None else ("X_test", "y_test")
        raise DataError(
            "`influences` needs both `X_test` and `y_test`, or neither (the training points then "
            f"stand on both sides); got `{given}` without `{missing}`."
        )
    parse_mode(InfluenceMode, mode, "mode")
    options = _options(estimator, y_train, sample_weight, max_memory)
    targets = Weighted(y_train, sample_weight)
    influence = Influence(
        estimator, None, method or Direct(), regularization=regularization, **options
    ).fit([(X_train, targets)])
    sides = (X_train, y_train) if X_test is None else (X_test, y_test)
    scores = to_host(influence.influences(*sides, X_train, y_train, mode=mode))
    weights = SklearnProblem(estimator, **options).batch((X_train, targets)).weights
    if weights is None:
        return scores
    return scores * np.reshape(to_host(weights), (-1,) + (1,) * (scores.ndim - 2))


def leave_one_out(
    estimator: Any,
    X_train: Any,
    y_train: Any,
    X_test: Any,
    y_test: Any,
    *,
    sample_weight: Any = None,
    max_memory: int | None = None,
) -> Host:
    """Return the change of every test loss when a training point is removed, `(m, n)`.

    The estimator that is fitted without the point keeps its settings; weights of balanced classes
    stay those of all points. For `LinearRegression` and `Ridge` the answer is exact: the residual
    is divided by one minus the leverage (Allen, The relationship between variable selection and
    data augmentation and a method for prediction, 1974). For `LogisticRegression` the parameters
    take one Newton step of the objective without the point, of the exact length along the point's
    influence (Pregibon, Logistic regression diagnostics, 1981).

    Args:
        estimator: as for `influences`.
        X_train: what it was fitted with, `(n, i)`.
        y_train: what it was fitted with, `(n,)` or `(n, o)`.
        X_test: `(m, i)`.
        y_test: `(m,)` or `(m, o)`.
        sample_weight: what it was fitted with, `(n,)`; None for ones.
        max_memory: bytes that the gradients, moves and changes of some points may take, beside the
            data, the answer and the Hessian; None allows 1 GiB.

    Returns:
        `(m, n)`: log-losses, or squared errors summed over the targets. Positive: the test loss is
        higher without the training point.

    Raises:
        ModelError: the estimator is not fitted or not supported.
        CapabilityError: its penalty is not quadratic.
        DataError: the data does not fit the estimator.

    Warns:
        ConditioningWarning: without some point the objective has no single minimum; its leverage
            is then one, and it is left uncorrected.
    """
    check_estimator(split(estimator)[1], estimator)
    apart = targets_apart(estimator, y_train, y_test)
    return np.sum(
        [
            _leave_one_out(one, (X_train, y, sample_weight), (X_test, t), max_memory)
            for one, y, t in apart
        ],
        axis=0,
    )


def _leave_one_out(
    estimator: Any, training: tuple[Any, ...], test: tuple[Any, ...], max_memory: int | None
) -> Host:
    options = _options(estimator, *training[1:], max_memory)
    influence = Influence(estimator, None, Direct(), **options).fit([training])
    problem = SklearnProblem(estimator, **options)
    batch = problem.batch(test)
    problem.validate(batch, "leave_one_out(…, X_test, y_test)")

    def changes(x: Any, y: Any, weights: Any) -> Host:
        moves = influence.parameter_changes(x, Weighted(y, weights), leverage=True)
        return to_host(problem.loss_changes(batch, moves)).T

    size = points_in_memory(problem, _MOVED * influence.n_parameters)
    return np.concatenate([changes(*part) for part in in_parts(training, size)], axis=1)


def _options(estimator: Any, y: Any, sample_weight: Any, max_memory: int | None) -> dict[str, Any]:
    """Return the memory, and the weights of balanced classes as `fit` of scikit-learn has them."""
    known = {"max_memory": max_memory}
    _, final = split(estimator)
    if getattr(final, "class_weight", None) != "balanced" or not hasattr(final, "classes_"):
        return known
    classes = on_host(final.classes_).tolist()
    weights = compute_class_weight(
        "balanced",
        classes=np.arange(len(classes)),
        y=labels(y, classes),
        sample_weight=None if sample_weight is None else on_host(sample_weight),
    )
    return {**known, "class_weight": dict(zip(classes, weights.tolist(), strict=True))}
