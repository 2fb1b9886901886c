"""The same model through every backend: the same numbers, from every method."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from same_models import BACKENDS, LOGISTIC, NETWORK, parameters, points

from influence_core import (
    Arnoldi,
    CapabilityError,
    Cg,
    ConditioningWarning,
    Direct,
    Ekfac,
    EkfacPreconditioner,
    Influence,
    InverseHarmonicMean,
    JacobiPreconditioner,
    Lissa,
    NystroemPreconditioner,
    NystroemSketch,
    OptimalityWarning,
)
from influence_core.arrays import to_host

TIGHT = {"rtol": 1e-12, "atol": 0.0}
METHODS = {
    "direct": Direct(),
    "cg": Cg(**TIGHT),
    "block cg": Cg(solve_simultaneously=True, **TIGHT),
    "cg jacobi": Cg(preconditioner=JacobiPreconditioner(3), **TIGHT),
    "cg nystroem": Cg(preconditioner=NystroemPreconditioner(4), **TIGHT),
    "cg ekfac": Cg(preconditioner=EkfacPreconditioner(labels="given"), **TIGHT),
    "lissa": Lissa(scale=4.0, maxiter=60, rtol=0.0, warn_on_max_iteration=False, seed=1),
    "lissa scale": Lissa(scale=None, maxiter=60, rtol=0.0, warn_on_max_iteration=False),
    "arnoldi": Arnoldi(rank=3, krylov_dimension=4, tol=1e-12),
    "arnoldi woodbury": Arnoldi(rank=3, krylov_dimension=4, tol=1e-12, use_woodbury=True),
    "nystroem": NystroemSketch(rank=3, seed=5),
    "harmonic mean": InverseHarmonicMean(),
    "kfac": Ekfac(labels="given"),
    "ekfac": Ekfac(update_diagonal=True, labels="given"),
}
MODELS = {"logistic": LOGISTIC, "network": NETWORK}
# Positive semi-definite, and known to every backend.
CURVATURE = "gauss_newton"
# the Hessian of the network is positive definite with the largest of them only
REGULARIZATION = {"gauss_newton": 0.1, "generalized_gauss_newton": 0.1, "hessian": 2.0}


def answers(
    backend: str,
    model: str,
    method: str,
    array_backend: str | None = None,
    curvature: str = CURVATURE,
) -> dict[str, np.ndarray]:
    """Everything that a user would ask, on the host."""
    widths = MODELS[model]
    subject, loss, options = BACKENDS[backend](widths, parameters(widths))
    (x, y), test = points(23, widths, 1), points(6, widths, 2)
    convert = converter(backend)
    loader = [convert(x[i : i + 9], y[i : i + 9]) for i in range(0, 23, 9)]
    damping = REGULARIZATION[curvature]
    influence = Influence(
        subject,
        loss,
        METHODS[method],
        regularization=damping,
        second_order_mode=curvature,
        array_backend=array_backend,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimalityWarning)
        influence.fit(loader)
    sides = (*convert(*test), *convert(x, y))
    found: dict[str, Any] = {
        "factors": influence.influence_factors(*sides[:2]),
        "scores": influence.influences(*sides),
        "perturbation": influence.influences(*sides, mode="perturbation"),
        "own": influence.self_influences(loader),
        "path": influence.influences_over([damping, 1.5 * damping], *sides),
    }
    return {name: to_host(answer) for name, answer in found.items()}


def converter(backend: str) -> Any:
    """NumPy data to what the backend takes."""
    if backend == "torch":
        import torch

        return lambda x, y: (torch.from_numpy(x), torch.from_numpy(y))
    return lambda x, y: (x, y)


def close(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, answer in want.items():
        assert got[name].shape == answer.shape
        error = np.abs(got[name] - answer).max() / np.abs(answer).max()
        assert error <= 1e-8, f"{name}: {error:.1e}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "closed form"])
def test_every_backend_gives_the_same_numbers(backend, model, method):
    if backend == "plug-in" and "kfac" in method:
        with pytest.raises(CapabilityError, match="layer_statistics"):
            answers(backend, model, method)
        return
    close(answers(backend, model, method), answers("closed form", model, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("backend", "array_backend"),
    [
        ("torch", "numpy"),
        ("torch", "array_api_strict"),
        ("jax", "numpy"),
        ("jax", "torch"),
        ("scikit-learn", "torch"),
        ("plug-in", "array_api_strict"),
    ],
)
def test_every_solver_library_gives_the_same_numbers(backend, array_backend, model, method):
    if backend == "plug-in" and "kfac" in method:
        pytest.skip("the plug-in shows no layers")
    pytest.importorskip(array_backend)
    close(answers(backend, model, method, array_backend), answers("closed form", model, method))


@pytest.mark.parametrize("method", ["direct", "cg", "lissa", "arnoldi", "nystroem"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("curvature", ["hessian", "generalized_gauss_newton"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "closed form"])
def test_every_backend_gives_the_same_curvature(backend, curvature, model, method):
    if backend == "plug-in" and curvature == "generalized_gauss_newton":
        pytest.skip("the plug-in offers no generalised Gauss-Newton products")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditioningWarning)  # a sketch of an indefinite matrix
        got, want = (
            answers(name, model, method, curvature=curvature) for name in (backend, "closed form")
        )
    close(got, want)
