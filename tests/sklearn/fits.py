"""Estimators of every supported kind, fitted to random data; and dense references in NumPy.

The references share nothing with the code under test: Jacobians are written out point by point,
losses are those that scikit-learn's own predictions have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

N, M, INPUTS = 60, 7, 3
NAMES = np.array(["ant", "bee", "cat"])


def logistic(**options: Any) -> LogisticRegression:
    return LogisticRegression(**{"tol": 1e-11, "max_iter": 10_000, **options})


@dataclass(frozen=True)
class Kind:
    """How an estimator is made: `targets` columns for a regression, or `classes`."""

    estimator: Any
    targets: int = 0
    classes: int = 0


KINDS = {
    "linear": Kind(LinearRegression(), 1),
    "linear without intercept": Kind(LinearRegression(fit_intercept=False), 1),
    "linear, three targets": Kind(LinearRegression(), 3),
    "ridge": Kind(Ridge(3.0), 1),
    "ridge without intercept": Kind(Ridge(3.0, fit_intercept=False), 1),
    "ridge, three targets": Kind(Ridge(3.0), 3),
    "ridge, a penalty a target": Kind(Ridge(np.array([0.5, 5.0, 20.0])), 3),
    "binary": Kind(logistic(solver="newton-cholesky"), classes=2),
    "binary, strong penalty": Kind(logistic(C=0.05, solver="newton-cholesky"), classes=2),
    "binary without penalty": Kind(logistic(C=np.inf, solver="newton-cholesky"), classes=2),
    "binary without intercept": Kind(logistic(fit_intercept=False, solver="newton-cg"), classes=2),
    "binary, classes weighted": Kind(
        logistic(class_weight={"ant": 3.0}, solver="newton-cholesky"), classes=2
    ),
    "binary, liblinear": Kind(
        logistic(C=0.3, intercept_scaling=2.5, solver="liblinear"), classes=2
    ),
    "multinomial": Kind(logistic(C=0.7, solver="newton-cholesky"), classes=3),
    "multinomial without penalty": Kind(logistic(C=np.inf, solver="newton-cg"), classes=3),
    "multinomial without intercept": Kind(
        logistic(fit_intercept=False, solver="newton-cholesky"), classes=3
    ),
    "multinomial, classes weighted": Kind(
        logistic(class_weight={"bee": 2.0, "cat": 0.5}, solver="newton-cholesky"), classes=3
    ),
}
EXACT = [name for name, kind in KINDS.items() if kind.targets]
ONE_OF_EACH = ["linear", "ridge, a penalty a target", "binary", "multinomial"]


@dataclass(frozen=True)
class Fit:
    """A fitted estimator and its data; `weights` is None or `(N,)`."""

    estimator: Any
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    weights: np.ndarray | None = None

    @property
    def classes(self) -> np.ndarray | None:
        return getattr(self.estimator, "classes_", None)

    @property
    def train(self) -> tuple[np.ndarray, ...]:
        return (self.x, self.y) if self.weights is None else (self.x, self.y, self.weights)

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x_test, self.y_test

    def batches(self, size: int) -> list[tuple[np.ndarray, ...]]:
        return [tuple(a[at : at + size] for a in self.train) for at in range(0, N, size)]

    def again(self, kept: np.ndarray) -> Any:
        """The estimator, fitted to some of the points only."""
        weights = None if self.weights is None else self.weights[kept]
        return clone(self.estimator).fit(self.x[kept], self.y[kept], sample_weight=weights)

    def losses(self, estimator: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """By scikit-learn's predictions."""
        if self.classes is None:
            f = estimator.predict(x).reshape(len(x), -1)
            return np.sum((f - y.reshape(len(x), -1)) ** 2, axis=1)
        places = np.searchsorted(self.classes, y)
        return -estimator.predict_log_proba(x)[np.arange(len(x)), places]

    # dense references: columns are the coefficients, row-major, and then the intercepts

    @property
    def outputs(self) -> int:
        return np.atleast_2d(self.estimator.coef_).shape[0]

    @property
    def theta(self) -> np.ndarray:
        intercept = np.reshape(self.estimator.intercept_, -1)
        intercept = intercept if self.estimator.fit_intercept else intercept[:0]
        return np.concatenate([np.ravel(self.estimator.coef_), intercept])

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """`∂f/∂θ` of a point, `(o, p)`."""
        eye = np.eye(self.outputs)
        parts = [np.kron(eye, x[None, :])]
        return np.hstack([*parts, eye] if self.estimator.fit_intercept else parts)

    def bent(self, x: np.ndarray, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Slope `(o,)` and Hessian `(o, o)` of the loss of a point in its outputs."""
        if self.classes is None:
            f = self.estimator.predict(x[None, :]).reshape(-1)
            return 2 * (f - y), 2 * np.eye(len(f))
        p = self.estimator.predict_proba(x[None, :])[0]
        slope, bend = p - (self.classes == y), np.diag(p) - np.outer(p, p)
        return (slope[1:], bend[1:, 1:]) if len(p) == 2 else (slope, bend)

    def gradients(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack(
            [self.jacobian(a).T @ self.bent(a, b)[0] for a, b in zip(x, y, strict=True)]
        )

    def hessians(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                self.jacobian(a).T @ self.bent(a, b)[1] @ self.jacobian(a)
                for a, b in zip(x, y, strict=True)
            ]
        )

    @property
    def point_weights(self) -> np.ndarray:
        """Sample weights times class weights."""
        weights = np.ones(N) if self.weights is None else self.weights
        by_class = getattr(self.estimator, "class_weight", None)
        return weights * [by_class.get(y, 1.0) for y in self.y.tolist()] if by_class else weights

    @property
    def penalty(self) -> np.ndarray:
        """Second derivative of the penalty on the sum of the losses, `(p,)`."""
        estimator, o = self.estimator, self.outputs
        coef, intercept = np.zeros((o, INPUTS)), np.zeros(o)
        if isinstance(estimator, Ridge):
            coef += 2 * np.reshape(estimator.alpha, (-1, 1))
        if isinstance(estimator, LogisticRegression):
            coef += 1 / estimator.C
            if estimator.solver == "liblinear":
                intercept += 1 / (estimator.C * estimator.intercept_scaling**2)
        return np.concatenate([coef.ravel(), intercept if estimator.fit_intercept else []])

    def curvature(self) -> np.ndarray:
        """Of the mean: `(Σ wᵢ ∇²ℓᵢ + penalty) / Σ wᵢ`."""
        weights = self.point_weights
        total = np.tensordot(weights, self.hessians(self.x, self.y), axes=1)
        return (total + np.diag(self.penalty)) / weights.sum()

    def inverse(self, regularization: float = 0.0) -> np.ndarray:
        """The pseudo-inverse: the softmax leaves directions free that no gradient has."""
        matrix = self.curvature() + regularization * np.eye(self.theta.size)
        return np.linalg.pinv(matrix, rcond=1e-11, hermitian=True)

    def influences(self, regularization: float = 0.0) -> np.ndarray:
        left, right = self.gradients(*self.test), self.gradients(self.x, self.y)
        return left @ self.inverse(regularization) @ right.T


def fit(name: str, *, weighted: bool = False, seed: int = 0) -> Fit:
    kind, rng = KINDS[name], np.random.default_rng(seed)
    x = rng.standard_normal((N + M, INPUTS)) * [1.0, 2.0, 0.5] + [0.0, 1.0, -0.5]
    signal = x @ rng.standard_normal((INPUTS, kind.targets or kind.classes))
    signal = signal + 1.5 * rng.standard_normal(signal.shape)
    y = NAMES[signal.argmax(axis=1)] if kind.classes else signal
    y = y[:, 0] if kind.targets == 1 else y
    weights = rng.uniform(0.3, 2.0, N) if weighted else None
    estimator = clone(kind.estimator).fit(x[:N], y[:N], sample_weight=weights)
    return Fit(estimator, x[:N], y[:N], x[N:], y[N:], weights)
