"""The JAX backend conforms, in both precisions, with trees as parameters and as inputs."""

import os

import numpy as np
import pytest
from subjects import cross_entropy, make_data, squared

from influence_core.testing import BackendConformance, FiniteDifferences, Subject

# the models are tiny: compiling them takes the time, not running them
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from influence_jax import Model  # noqa: E402
from influence_jax import cross_entropy as entropy  # noqa: E402

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
    def parameters():
        layers = params.items()
        return {f"{name}.{kind}": leaf for name, layer in layers for kind, leaf in layer.items()}

    def assign(values):
        for name, layer in by_layer(values).items():
            dtype = params[name]["bias"].dtype
            params[name].update({kind: jnp.asarray(leaf, dtype) for kind, leaf in layer.items()})

    return Subject(
        Model(forward, params),
        data,
        FiniteDifferences(lambda p, x, y: losses(outputs(p, x), y), outputs, losses),
        loss=loss,
        parameters=parameters,
        assign=assign,
    )


def regression():
    x, y = (jnp.asarray(a) for a in make_data("squared"))
    return subject_of(params_of("float64"), squared_mean, (x, y), squared)


def classification():
    x, y = make_data("labels")
    data = jnp.asarray(x, dtype="float32"), jnp.asarray(y, dtype="int32")
    return subject_of(params_of("float32"), entropy, data, cross_entropy)


@pytest.fixture(scope="module")
def _settings(tmp_path_factory):
    """Double precision, as users are told to ask for it; what was compiled is kept.

    Many problems are made for one model, and each compiles the same programs.
    """
    settings = {
        "jax_enable_x64": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


class TestConformance(BackendConformance):
    @pytest.fixture(scope="class", params=[regression, classification])
    @staticmethod
    def subject(request, _settings):
        return request.param()
