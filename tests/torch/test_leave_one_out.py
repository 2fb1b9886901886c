"""Predicted against actual changes: every training point is removed and the model solved anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from influence_torch import CgInfluence, DirectInfluence

TRAIN, PENALTY = 400, 1e-2
HARDEST = 20


@dataclass(frozen=True)
class Study:
    """Logistic regression on breast cancer data, with the actual effect of every removal.

    Attributes:
        model: at the minimum of `1/N Σ ℓ + PENALTY/2 ‖θ‖²`.
        train: `(x, y)`.
        test: `(x, y)`.
        losses: of the test points, `(m,)`.
        effects: change of every test loss when a training point's term is dropped, `(m, n)`.
    """

    model: nn.Linear
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    losses: np.ndarray
    effects: np.ndarray


def minimum(a, y, weights, theta):
    """Newton's method for `Σ wᵢ ℓᵢ + PENALTY/2 ‖θ‖²`."""
    for _ in range(50):
        p = 1 / (1 + np.exp(-a @ theta))
        gradient = a.T @ (weights * (p - y)) + PENALTY * theta
        hessian = (a * (weights * p * (1 - p))[:, None]).T @ a + PENALTY * np.eye(theta.size)
        step = np.linalg.solve(hessian, gradient)
        theta = theta - step
        if np.abs(step).max() < 1e-13:
            return theta
    raise AssertionError("Newton's method has not converged")


@pytest.fixture(scope="module")
def study():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order].astype(np.float64)
    x = (x - x[:TRAIN].mean(axis=0)) / x[:TRAIN].std(axis=0)
    a = np.column_stack([x, np.ones(len(x))])
    weights = np.full(TRAIN, 1 / TRAIN)
    theta = minimum(a[:TRAIN], y[:TRAIN], weights, np.zeros(a.shape[1]))

    def losses(theta):
        logits = a[TRAIN:] @ theta
        return np.logaddexp(0, logits) - y[TRAIN:] * logits

    def without(j):
        kept = np.where(np.arange(TRAIN) == j, 0.0, weights)
        return losses(minimum(a[:TRAIN], y[:TRAIN], kept, theta))

    before = losses(theta)
    effects = np.stack([without(j) - before for j in range(TRAIN)], axis=1)
    model = nn.Linear(x.shape[1], 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(theta[None, :-1]))
        model.bias.copy_(torch.from_numpy(theta[-1:]))
    pairs = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    train, test = ([t[part] for t in pairs] for part in (slice(TRAIN), slice(TRAIN, None)))
    return Study(model, tuple(train), tuple(test), before, effects)


def fitted(study, cls, **options):
    x, y = study.train
    batches = list(zip(x.split(64), y.split(64), strict=True))  # the last one is short
    return cls(study.model, binary_cross_entropy_with_logits, PENALTY, **options).fit(batches)


METHODS = [
    pytest.param(DirectInfluence, {}, id="direct"),
    pytest.param(CgInfluence, {"rtol": 1e-8, "atol": 0.0}, id="cg"),
    pytest.param(
        DirectInfluence, {"second_order_mode": "generalized_gauss_newton"}, id="generalized"
    ),
]


@pytest.mark.parametrize(("cls", "options"), METHODS)
def test_predictions_follow_the_actual_changes(study, cls, options):
    model = fitted(study, cls, **options)
    assert model.gradient_norm < 1e-10
    hardest = np.argsort(-study.losses)[:HARDEST]

    def correlations(leverage):
        effects = model.removal_effects(*study.test, *study.train, leverage=leverage).numpy()
        return np.array(
            [np.corrcoef(*pair)[0, 1] for pair in zip(effects, study.effects, strict=True)]
        )

    plain, corrected = correlations(False), correlations(True)
    assert plain[hardest].mean() >= 0.97
    assert plain.mean() >= 0.96
    assert corrected[hardest].mean() >= 0.998
    assert corrected.mean() > plain.mean()


def test_the_numbers_are_losses(study):
    """Not only correlated: with leverage, right in size; and the sign is that of the change."""
    model = fitted(study, DirectInfluence)
    hardest = np.argsort(-study.losses)[:HARDEST]
    actual = study.effects[hardest]
    effects = model.removal_effects(*study.test, *study.train, leverage=True).numpy()[hardest]
    large = np.abs(actual) > 0.1 * np.abs(actual).max()
    assert np.median(np.abs(effects[large] / actual[large] - 1)) < 0.05
    assert (np.sign(effects) == np.sign(actual))[large].all()
