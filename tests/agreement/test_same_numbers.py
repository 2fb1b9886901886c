"""The same model through every backend: the same numbers, from every method."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
from same_models import BACKENDS, GPU, LOGISTIC, NETWORK, converter, parameters, points

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
    "cg ekfac, expected": Cg(preconditioner=EkfacPreconditioner(labels="expected"), **TIGHT),
    "lissa": Lissa(scale=4.0, maxiter=60, rtol=0.0, warn_on_max_iteration=False, seed=1),
    "lissa scale": Lissa(scale=None, maxiter=60, rtol=0.0, warn_on_max_iteration=False),
    "arnoldi": Arnoldi(rank=3, krylov_dimension=4, tol=1e-12),
    "arnoldi woodbury": Arnoldi(rank=3, krylov_dimension=4, tol=1e-12, use_woodbury=True),
    "nystroem": NystroemSketch(rank=3, seed=5),
    "harmonic mean": InverseHarmonicMean(),
    "kfac": Ekfac(labels="given"),
    "ekfac": Ekfac(update_diagonal=True, labels="given"),
    "kfac, expected": Ekfac(labels="expected"),
    "ekfac, expected": Ekfac(update_diagonal=True, labels="expected"),
    "kfac, sampled": Ekfac(labels="sampled", draws=2, seed=3),
    "ekfac, sampled": Ekfac(update_diagonal=True, labels="sampled", draws=2, seed=3),
}
# of the model's own distribution, which a function of JAX does not tell
OWN_LABELS = [name for name in METHODS if "expected" in name or "sampled" in name]
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
    convert = converter(backend, widths)
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


def close(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, answer in want.items():
        assert got[name].shape == answer.shape
        error = np.abs(got[name] - answer).max() / np.abs(answer).max()
        assert error <= 1e-8, f"{name}: {error:.1e}"


def compare(backend: str, model: str, method: str, array_backend: str | None = None) -> None:
    """Hold a backend against the closed form, or its refusal of a method against what it says."""
    if refusal := refused(backend, model, method):
        with pytest.raises(CapabilityError, match=refusal):
            answers(backend, model, method, array_backend)
        return
    close(answers(backend, model, method, array_backend), wanted(model, method))


@functools.cache
def wanted(model: str, method: str, curvature: str = CURVATURE) -> dict[str, np.ndarray]:
    """The answers of the closed form, which are compared with often."""
    return answers("closed form", model, method, curvature=curvature)


def refused(backend: str, model: str, method: str) -> str | None:
    """What the backend says where it does not serve a method; None where it does."""
    if backend == "plug-in" and "kfac" in method:
        return "layer_statistics"
    if backend.startswith("jax") and model == "logistic" and method in OWN_LABELS:
        return "a loss whose distribution is known: influence_jax.cross_entropy"
    return None


backends = pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=GPU.get(name, ())) for name in BACKENDS if name != "closed form"],
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
@backends
def test_every_backend_gives_the_same_numbers(backend, model, method):
    compare(backend, model, method)


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
        pytest.param("torch on the GPU", "cupy", marks=pytest.mark.gpu("torch", "cupy")),
        pytest.param("jax on the GPU", "cupy", marks=pytest.mark.gpu("jax", "cupy")),
    ],
)
def test_every_solver_library_gives_the_same_numbers(backend, array_backend, model, method):
    pytest.importorskip(array_backend)
    compare(backend, model, method, array_backend)


@pytest.mark.parametrize("method", ["direct", "cg", "lissa", "arnoldi", "nystroem"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("curvature", ["hessian", "generalized_gauss_newton"])
@backends
def test_every_backend_gives_the_same_curvature(backend, curvature, model, method):
    if backend == "plug-in" and curvature == "generalized_gauss_newton":
        pytest.skip("the plug-in offers no generalised Gauss-Newton products")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditioningWarning)  # a sketch of an indefinite matrix
        got = answers(backend, model, method, curvature=curvature)
        want = wanted(model, method, curvature)
    close(got, want)
