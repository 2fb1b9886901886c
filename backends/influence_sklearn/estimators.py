"""A fitted estimator, read once: parameters, loss, penalty, and the transformers before it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
)
from sklearn.pipeline import Pipeline

from influence_core.arrays import from_host, is_array, namespace, widen
from influence_core.errors import ModelError, OptionError
from influence_core.problem import Array
from influence_core.testing import Loss
from influence_core.testing.chain import Layer
from influence_sklearn.data import on_host
from influence_sklearn.losses import loss_of
from influence_sklearn.penalties import Host, second_derivatives


@dataclass(frozen=True)
class LinearModel:
    """What is needed of an estimator, as copies.

    Attributes:
        parameters: ``"coef"`` `(o, i)` and, where one is fitted, ``"intercept"`` `(o,)`.
        loss: of a point, in the outputs `f = x Wᵀ + b`.
        penalties: parameter name to the second derivative of its penalty, on the sum of the losses.
        classes: the labels in the order of the outputs; None for a regression.
        class_weights: `(number of classes,)`; None for ones.
        feature_names: of the columns of `X`; None where they had none.
        steps: name and transformer of everything that comes before, in a pipeline.
    """

    parameters: dict[str, Array]
    loss: Loss
    penalties: dict[str, Host]
    classes: list[Any] | None
    class_weights: Host | None
    feature_names: list[str] | None
    steps: tuple[tuple[str, Any], ...]
    layers: ClassVar[tuple[Layer, ...]] = (Layer("coef", "intercept"),)

    def transform(self, data: Any) -> Any:
        """Return the data as the transformers of the pipeline hand it on."""
        for _, step in self.steps:
            data = step.transform(data)
        return data


def read(
    estimator: Any, like: Array | None, class_weight: Mapping[Any, float] | None
) -> LinearModel:
    """Return what is needed of a fitted estimator.

    Args:
        estimator: fitted; one of the supported, or a pipeline that ends in one.
        like: gives library, dtype and device; None for those of the coefficients, in float64 where
            the device has it.
        class_weight: label to weight; replaces the estimator's own.

    Raises:
        ModelError: the estimator is not supported or not fitted.
        CapabilityError: its penalty is not quadratic.
        OptionError: `like` is no floating-point array, or `class_weight` does not fit.
    """
    steps, final = split(estimator)
    check_estimator(final, estimator)
    classes = on_host(final.classes_).tolist() if isinstance(final, LogisticRegression) else None
    if classes is not None:
        _check_one_objective(final, classes)
    names = getattr(final, "feature_names_in_", None)
    return LinearModel(
        parameters=_parameters(final, like),
        loss=loss_of(classes),
        penalties=second_derivatives(final),
        classes=classes,
        class_weights=_class_weights(final, classes, class_weight),
        feature_names=None if names is None or steps else [str(name) for name in names],
        steps=copy.deepcopy(steps),  # `fit` of the pipeline changes its transformers in place
    )


def split(estimator: Any) -> tuple[tuple[tuple[str, Any], ...], Any]:
    """Return the transformers before the final estimator, and that one.

    Raises:
        ModelError: a step of the pipeline cannot transform.
    """
    steps: list[tuple[str, Any]] = []
    while isinstance(estimator, Pipeline):
        steps += [
            (n, step) for n, step in estimator.steps[:-1] if step not in (None, "passthrough")
        ]
        estimator = estimator.steps[-1][1]
    for name, step in steps:
        if not hasattr(step, "transform"):
            raise ModelError(
                f"`estimator`: all steps of a pipeline but the last must have `transform`; {name!r}"
                f" is {type(step).__name__}, which has none. Apply it to the data first, and pass "
                "a pipeline without it."
            )
    return tuple(steps), estimator


def check_estimator(final: Any, estimator: Any) -> None:
    """Raise unless `final`, the last step of `estimator` or itself, is fitted and supported.

    Raises:
        ModelError: it is not.
    """
    if isinstance(final, LogisticRegressionCV):
        raise ModelError(
            "`estimator` must be fitted with one penalty; LogisticRegressionCV is a search for "
            "one. Fit `LogisticRegression(C=…)` with the `C_` that it found."
        )
    if not isinstance(final, LinearRegression | Ridge | LogisticRegression):
        ends = "" if final is estimator else ", at the end of the pipeline"
        raise ModelError(
            "`estimator` must be a LinearRegression, Ridge or LogisticRegression, or a pipeline "
            f"that ends in one; got {final if isinstance(final, str) else type(final).__name__}"
            f"{ends}. For other models, choose another backend."
        )
    if not hasattr(final, "coef_"):
        raise ModelError(
            f"`estimator` must be fitted; this {type(estimator).__name__} is not. "
            "Call its `fit(X, y)` first."
        )
    if getattr(final, "positive", False):
        raise ModelError(
            f"`estimator` must stand at a free minimum; {type(final).__name__}(positive=True) may "
            "be held by its constraint, where influence functions do not apply. Fit it with "
            "positive=False."
        )


def _check_one_objective(final: LogisticRegression, classes: list[Any]) -> None:
    # newer versions of scikit-learn have no `multi_class`
    kind, many = getattr(final, "multi_class", "auto"), len(classes) > 2
    if many and (final.solver == "liblinear" or kind == "ovr"):
        raise ModelError(
            "`estimator` must minimise one objective; this LogisticRegression fitted one "
            f"classifier for each of its {len(classes)} classes (one against the rest). Fit it "
            "with solver='lbfgs' for the multinomial loss, or pass the binary classifiers one by "
            "one."
        )
    if not many and kind == "multinomial":
        raise ModelError(
            "`estimator` with two classes must have the binary loss; got "
            "LogisticRegression(multi_class='multinomial'). Fit it without `multi_class`."
        )


def _parameters(final: Any, like: Array | None) -> dict[str, Array]:
    coef = final.coef_.toarray() if hasattr(final.coef_, "toarray") else final.coef_
    like = widen(coef) if like is None else like
    if not is_array(like) or not namespace(like).isdtype(like.dtype, "real floating"):
        raise OptionError(
            "`like` must be a floating-point array, of the library, dtype and device to compute "
            f"in; got {getattr(like, 'dtype', like)!r}. Pass `numpy.zeros(1)`, say."
        )
    parameters = {"coef": from_host(np.atleast_2d(on_host(coef)), like)}
    if final.fit_intercept:
        parameters["intercept"] = from_host(on_host(final.intercept_).reshape(-1), like)
    return parameters


def _class_weights(
    final: Any, classes: list[Any] | None, given: Mapping[Any, float] | None
) -> Host | None:
    weights = getattr(final, "class_weight", None) if given is None else given
    if weights is None:
        return None
    if classes is None:
        raise OptionError(
            f"`class_weight` is for a classification; got {weights!r} for a "
            f"{type(final).__name__}. Leave it out, or pass weights with the data."
        )
    if not isinstance(weights, Mapping):
        raise OptionError(
            f"`class_weight` must be known by its numbers; the estimator has {weights!r}, which "
            "depends on the data that it was fitted with. Pass `class_weight={label: weight, …}` "
            "(`sklearn.utils.class_weight.compute_class_weight` has the numbers); "
            "`influence_sklearn.influences` and `leave_one_out` do so."
        )
    unknown = [label for label in weights if label not in classes]
    if given is not None and unknown:
        raise OptionError(
            f"`class_weight` may name the classes of the estimator only; got {unknown}. The "
            f"classes are {classes}."
        )
    return np.asarray([weights.get(label, 1.0) for label in classes], dtype=np.float64)
