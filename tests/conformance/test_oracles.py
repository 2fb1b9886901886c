"""The oracles agree with each other, and refuse losses of another form."""

import numpy as np
import pytest
from subjects import KINDS, make_data, make_model, make_subject, squared

from influence_core.errors import LossError
from influence_core.testing import ClosedForm, FiniteDifferences


@pytest.mark.parametrize("kind", KINDS)
def test_differences_agree_with_closed_forms(kind):
    subject = make_subject(kind)
    model = make_model(kind)
    kinds = {"loss": model.loss} if kind.startswith("tanh") else {}
    closed = ClosedForm(lambda p: type(model)(dict(p), **kinds))
    want = closed.derivatives(subject.values, *subject.host_data)
    for name in ("gradients", "hessians", "mixed", "gauss_newton"):
        got, exact = getattr(subject.truth, name), getattr(want, name)
        assert got.shape == exact.shape
        error = np.max(np.abs(got - exact)) / np.max(np.abs(exact))
        assert error < (1e-9 if name == "gradients" else 1e-7), name


def test_differences_in_trees_leave_integers_alone():
    """`ℓ = (a + b²) θ₁[k] + θ₀²/2` for a dict of `a` and a pair of labels `k` and `b`."""
    parameters = {"shift": np.array([0.4]), "table": np.array([0.5, -1.0])}
    a, k, b = np.array([[0.1], [0.2]]), np.array([1, 0]), np.array([[1.0, 2.0], [3.0, 4.0]])

    def losses(p, x, y):
        k, b = x["rest"]
        return (x["a"][:, 0] + np.sum(b**2, axis=1)) * p["table"][k] + p["shift"][0] ** 2 / 2

    oracle = FiniteDifferences(losses)
    truth = oracle.derivatives(parameters, {"a": a, "rest": (k, b)}, np.zeros(2))
    size = 0.1 + 1 + 4, 0.2 + 9 + 16
    np.testing.assert_allclose(truth.gradients, [[0.4, 0, size[0]], [0.4, size[1], 0]], atol=1e-9)
    np.testing.assert_allclose(truth.hessians, 2 * [np.diag([1.0, 0, 0])], atol=1e-7)
    np.testing.assert_allclose(truth.mixed["a"], [[[0, 0, 1]], [[0, 1, 0]]], atol=1e-7)
    labels, numbers = truth.mixed["rest"]
    assert labels is None
    want = [[[0, 0, 2], [0, 0, 4]], [[0, 6, 0], [0, 8, 0]]]
    np.testing.assert_allclose(numbers, want, atol=1e-7)
    assert truth.gauss_newton is None


@pytest.mark.parametrize(
    "losses",
    [
        lambda p, x, y: np.mean(squared(x @ p["weight"].T, y)),
        lambda p, x, y: squared(x @ p["weight"].T, y)[:, None],
        lambda p, x, y: np.log(-np.ones(len(x)) * np.nan),
    ],
    ids=["mean", "column", "nan"],
)
def test_losses_of_another_form_are_refused(losses):
    x, y = make_data("squared")
    with pytest.raises(LossError, match=r"a finite number for each of the 7 points, \(7,\)"):
        FiniteDifferences(losses).derivatives({"weight": np.ones((2, 3))}, x, y)
