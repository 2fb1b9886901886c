"""The whole job: the backend is found, and removing a point changes what was predicted."""

import numpy as np
import pytest
from influence_explicit import poisson_regression

from influence_core import Direct, Influence
from influence_core.errors import DataError, DeviceError, LossError
from influence_core.plugins import find_backend

X = np.random.default_rng(1).normal(size=(40, 2))
Y = np.random.default_rng(2).poisson(np.exp(X @ [0.5, -0.3] + 0.2))


def trained(x, y):
    """Newton's method with the model's own derivatives."""
    theta = np.zeros(3)
    for _ in range(20):
        model = poisson_regression(theta[:2], theta[2])
        hessian = model.hessians(theta, x, y).mean(axis=0)
        theta = theta - np.linalg.solve(hessian, model.gradients(theta, x, y).mean(axis=0))
    return poisson_regression(theta[:2], theta[2])


def theta_of(model):
    return np.concatenate(list(model.parameters.values()))


def test_model_is_served_without_registration():
    model = trained(X, Y)
    influence = Influence(model, None, Direct()).fit([(X[:30], Y[:30]), (X[30:], Y[30:])])

    scores = influence.influences(X[:5], Y[:5], X, Y)

    rows = model.gradients(theta_of(model), X, Y)
    hessian = model.hessians(theta_of(model), X, Y).mean(axis=0)
    np.testing.assert_allclose(scores, rows[:5] @ np.linalg.solve(hessian, rows.T), atol=1e-10)


def test_predicted_changes_are_those_of_training_again():
    model = trained(X, Y)
    influence = Influence(model, None, Direct()).fit([(X, Y)])
    predicted = influence.parameter_changes(X, Y, leverage=True)
    kept = [np.delete(np.arange(len(X)), point) for point in range(len(X))]
    actual = np.stack([theta_of(trained(X[k], Y[k])) - theta_of(model) for k in kept])
    assert np.corrcoef(predicted.ravel(), actual.ravel())[0, 1] > 0.99


def test_what_cannot_be_used_is_refused():
    model = trained(X, Y)
    make = find_backend(model).load()
    with pytest.raises(LossError, match="has its loss"):
        make(model, "poisson")
    with pytest.raises(DeviceError, match="only 'cpu'"):
        make(model, device="cuda")
    with pytest.raises(DataError, match="Pair each x with its y"):
        make(model).batch((X, Y[:3]))
