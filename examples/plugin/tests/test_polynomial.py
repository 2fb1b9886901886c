import numpy as np
from influence_polynomial import PolynomialRegression
from influence_polynomial.problem import PolynomialProblem

import influence_core

NAMES = ("intercept", "slopes")
X = np.linspace(-1.0, 1.0, 30)
Y = np.sin(3.0 * X) + 0.1 * np.cos(40.0 * X)


def model_at(theta: np.ndarray) -> PolynomialRegression:
    model = PolynomialRegression(theta.size - 1)
    model.intercept, model.slopes = theta[:1], theta[1:]
    return model


def losses(theta: np.ndarray, x: np.ndarray = X) -> np.ndarray:
    return 0.5 * (np.polynomial.polynomial.polyval(x, theta) - Y) ** 2


def central(function, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    moves = step * np.eye(at.size)
    return np.stack([(function(at + e) - function(at - e)) / (2 * step) for e in moves])


def test_derivatives_equal_finite_differences():
    theta = np.array([0.2, 1.5, -0.3, 0.4])
    problem = PolynomialProblem(model_at(theta))
    batch = problem.batch((X, Y))
    v, w = np.eye(4)[:3] + 0.5, np.cos(np.arange(60.0)).reshape(2, 30)

    def gradients(theta: np.ndarray, x: np.ndarray = X) -> np.ndarray:
        problem = PolynomialProblem(model_at(theta))
        return problem.gradients(problem.batch((x, Y)), NAMES)

    g = central(losses, theta).T
    h = central(lambda theta: gradients(theta).mean(axis=0), theta)
    # Each loss depends on its own point alone, so one common step moves every point.
    mixed = v @ central(lambda step: gradients(theta, X + step), np.zeros(1))[0].T
    near = {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(problem.gradients(batch, NAMES), g, **near)
    np.testing.assert_allclose(problem.gradients(batch, ["slopes"]), g[:, 1:], **near)
    np.testing.assert_allclose(problem.gradient_products(batch, v, NAMES), v @ g.T, **near)
    np.testing.assert_allclose(problem.gradient_combinations(batch, w, NAMES), w @ g, **near)
    np.testing.assert_allclose(problem.hessian_product(batch, v, NAMES), v @ h, **near)
    np.testing.assert_allclose(problem.mixed_gradient_products(batch, v, NAMES), mixed, **near)


def test_model_is_served_without_registration():
    model = PolynomialRegression(3).fit(X, Y)
    influence = influence_core.Influence(
        model, None, influence_core.Direct(), regularization=1e-3
    ).fit([(X[:20], Y[:20]), (X[20:], Y[20:])])

    scores = influence.influences(X[:5], Y[:5], X, Y)

    theta = np.concatenate([model.intercept, model.slopes])
    features = np.vander(X, 4, increasing=True)
    g = (features @ theta - Y)[:, None] * features
    inverse = np.linalg.inv(features.T @ features / 30 + 1e-3 * np.eye(4))
    np.testing.assert_allclose(scores, g[:5] @ inverse @ g.T, rtol=1e-8, atol=1e-12)
