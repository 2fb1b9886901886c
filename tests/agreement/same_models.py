"""One logistic model and one two-layer network, for every backend, with the same columns.

Each function takes the parameters as NumPy arrays and returns what `Influence` takes first: the
model, its loss and the backend. Columns are the weights and biases of the layers, first to last.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from influence_core.testing import BACKEND, ClosedFormProblem, LeastSquares, TanhNetwork

Host = npt.NDArray[np.float64]
Subject = tuple[Any, Any, dict[str, Any]]
LOGISTIC, NETWORK = (4, 1), (4, 5, 3)


def parameters(widths: tuple[int, ...]) -> list[Host]:
    """Weights `(o, i)` and biases `(o,)` of every layer."""
    rng = np.random.default_rng(0)
    shapes = [s for i, o in itertools.pairwise(widths) for s in ((o, i), (o,))]
    return [rng.standard_normal(shape) / 2 for shape in shapes]


def points(count: int, widths: tuple[int, ...], seed: int) -> tuple[Host, npt.NDArray[Any]]:
    """Inputs and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(widths[-1], 2), count)
    return rng.standard_normal((count, widths[0])), labels


def converter(backend: str, widths: tuple[int, ...]) -> Any:
    """NumPy data to what the backend takes."""
    if not backend.startswith("torch"):
        return lambda x, y: (x, y)
    import torch

    if widths[-1] > 1:
        return lambda x, y: (torch.from_numpy(x), torch.from_numpy(y))
    return lambda x, y: (torch.from_numpy(x), torch.from_numpy(y).double()[:, None])


def in_torch(widths: tuple[int, ...], values: list[Host], device: str = "cpu") -> Subject:
    """A `torch.nn` module under its usual loss."""
    torch = pytest.importorskip("torch")
    layers: list[Any] = []
    for i, o in itertools.pairwise(widths):
        layers += [torch.nn.Tanh()] * bool(layers) + [torch.nn.Linear(i, o)]
    module = torch.nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(value))
    losses = torch.nn.functional
    binary, several = losses.binary_cross_entropy_with_logits, losses.cross_entropy
    return module.to(device), binary if widths[-1] == 1 else several, {}


def in_jax(widths: tuple[int, ...], values: list[Host], device: str = "cpu") -> Subject:
    """A function and a list of arrays."""
    pytest.importorskip("jax")
    import jax
    import jax.numpy as jnp

    from influence_jax import Model, cross_entropy

    def apply(params: Any, x: Any) -> Any:
        *hidden, weight, bias = params
        for w, b in zip(hidden[::2], hidden[1::2], strict=True):
            x = jnp.tanh(x @ w.T + b)
        return x @ weight.T + bias

    def binary(f: Any, y: Any) -> Any:
        return jnp.mean(jnp.logaddexp(0.0, f[:, 0]) - y * f[:, 0])

    params = jax.device_put([jnp.asarray(value) for value in values], jax.devices(device)[0])
    return Model(apply, params), binary if widths[-1] == 1 else cross_entropy, {}


def in_sklearn(widths: tuple[int, ...], values: list[Host]) -> Subject:
    """Logistic regression without a penalty, as if it had been fitted."""
    if len(widths) > 2:
        pytest.skip("scikit-learn's estimators have one layer")
    linear_model = pytest.importorskip("sklearn.linear_model")
    estimator = linear_model.LogisticRegression(C=np.inf)
    x, y = points(23, widths, 1)
    estimator.fit(x, y)
    estimator.coef_, estimator.intercept_ = values[0].copy(), values[1].copy()
    return estimator, None, {}


def in_sklearn_on_cupy(widths: tuple[int, ...], values: list[Host]) -> Subject:
    """The same, computed in CuPy."""
    import cupy

    estimator, loss, options = in_sklearn(widths, values)
    return estimator, loss, {**options, "like": cupy.zeros(1)}


def in_the_plugin(widths: tuple[int, ...], values: list[Host]) -> Subject:
    """The example of a third party: a model that brings its derivatives along."""
    from influence_explicit import ExplicitModel
    from influence_explicit.plugin import influence_backends

    model, _, _ = in_closed_form(widths, values)

    def problem(theta: Host) -> ClosedFormProblem:
        ends = np.cumsum([value.size for value in values])[:-1]
        parts = [p.reshape(v.shape) for p, v in zip(np.split(theta, ends), values, strict=True)]
        return ClosedFormProblem(_closed_form(widths, parts))

    def gradients(theta: Host, x: Host, y: Any) -> Host:
        inside = problem(theta)
        return inside.gradients(inside.batch((x, y)), list(inside.parameters))

    def hessians(theta: Host, x: Host, y: Any) -> Host:
        inside = problem(theta)
        eye = np.eye(theta.size)
        names = list(inside.parameters)
        return np.stack(
            [
                inside.hessian_product(inside.batch((x[i : i + 1], y[i : i + 1])), eye, names)
                for i in range(len(x))
            ]
        )

    def mixed(theta: Host, x: Host, y: Any) -> Host:
        inside = problem(theta)
        names = list(inside.parameters)
        moved = inside.mixed_gradient_products(inside.batch((x, y)), np.eye(theta.size), names)
        return np.moveaxis(moved, 0, -1)

    explicit = ExplicitModel(dict(model.parameters), gradients, hessians, mixed)
    return explicit, None, {"backend": influence_backends()}


def in_closed_form(widths: tuple[int, ...], values: list[Host]) -> Subject:
    """The core's own problem."""
    return _closed_form(widths, values), None, {"backend": BACKEND}


def _closed_form(widths: tuple[int, ...], values: list[Host]) -> Any:
    if len(widths) == 2:
        return Binary({"weight": values[0], "bias": values[1]})
    names = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
    return TanhNetwork(dict(zip(names, values, strict=True)), loss="cross_entropy")


class Binary(LeastSquares):
    """An affine layer with one output, under the logistic loss."""

    @property
    def loss(self) -> Any:  # type: ignore[override]
        from influence_core.testing.losses import BinaryCrossEntropy

        return BinaryCrossEntropy()


BACKENDS = {
    "closed form": in_closed_form,
    "torch": in_torch,
    "jax": in_jax,
    "scikit-learn": in_sklearn,
    "plug-in": in_the_plugin,
    "torch on the GPU": functools.partial(in_torch, device="cuda"),
    "jax on the GPU": functools.partial(in_jax, device="gpu"),
    "scikit-learn on CuPy": in_sklearn_on_cupy,
}
GPU = {
    "torch on the GPU": pytest.mark.gpu("torch"),
    "jax on the GPU": pytest.mark.gpu("jax"),
    "scikit-learn on CuPy": pytest.mark.gpu("cupy"),
}
