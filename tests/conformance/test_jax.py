"""The JAX backend conforms, in both precisions, with trees as parameters and as inputs."""

import numpy as np
import pytest
from subjects import cross_entropy, make_data, squared

from influence_core.testing import BackendConformance, FiniteDifferences, Subject

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from influence_jax import Model  # noqa: E402

WIDTHS = {"Dense_0": (3, 2), "Dense_1": (2, 2)}


def forward(params, x):
    """Two layers `x W + b` with tanh between, on JAX as on NumPy."""
    first, second = (params[name] for name in WIDTHS)
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


def by_layer(parameters):
    """The tree of parameters from their dotted names."""
    return {
        name: {kind: parameters[f"{name}.{kind}"] for kind in ("bias", "kernel")} for name in WIDTHS
    }


def squared_mean(outputs, y):
    return jnp.mean(jnp.sum((outputs - y) ** 2, axis=1) / 2)


def entropy(outputs, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1))


def params_of(dtype):
    rng = np.random.default_rng(2)
    return {
        name: {
            "bias": jnp.asarray(rng.standard_normal(outputs) / 2, dtype=dtype),
            "kernel": jnp.asarray(rng.standard_normal((inputs, outputs)), dtype=dtype),
        }
        for name, (inputs, outputs) in WIDTHS.items()
    }


def outputs(parameters, x):
    return forward(by_layer(parameters), x)


def subject_of(params, loss, data, losses):
    leaves = {
        f"{name}.{kind}": leaf for name, layer in params.items() for kind, leaf in layer.items()
    }
    oracle = FiniteDifferences(lambda p, x, y: losses(outputs(p, x), y), outputs, losses)
    return Subject(Model(forward, params), loss, data, lambda: leaves, oracle)


def regression():
    x, y = (jnp.asarray(a) for a in make_data("squared"))
    return subject_of(params_of("float64"), squared_mean, (x, y), squared)


def classification():
    x, y = make_data("labels")
    data = jnp.asarray(x, dtype="float32"), jnp.asarray(y, dtype="int32")
    return subject_of(params_of("float32"), entropy, data, cross_entropy)


@pytest.fixture(scope="module")
def _wide():
    """Double precision in every thread, as users are told to ask for it."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module", params=[regression, classification])
def subject(request, _wide):
    return request.param()


class TestConformance(BackendConformance):
    pass
