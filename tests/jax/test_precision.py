"""64 bits are respected or refused, never silently halved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import N, labels, linear, normal
from jax_reference import Reference, close

from influence_core.errors import DataTypeError, ModelError
from influence_jax import CgInfluence, DirectInfluence, cross_entropy

SHORT = pytest.mark.parametrize("x64", [False], indirect=True)
BOTH = pytest.mark.parametrize("x64", [False, True], indirect=True)


def params(dtype):
    kernel, bias = normal(4, 3).astype(dtype), normal(3, seed=1).astype(dtype)
    return {"bias": bias, "kernel": kernel}


def points(dtype="float32"):
    return normal(N, 4).astype(dtype), labels(N)


def reference():
    """Of the float32 model, in float64."""
    exact = jax.tree.map(lambda p: jnp.asarray(p.astype("float32"), jnp.float64), params("float64"))
    x, y = points()
    return Reference(linear, exact, cross_entropy, jnp.asarray(x, jnp.float64), jnp.asarray(y))


@BOTH
@pytest.mark.parametrize("solver", [DirectInfluence, CgInfluence])
def test_float32(solver, x64):
    settings = {"rtol": 1e-6, "atol": 0.0} if solver is CgInfluence else {}
    model = solver(linear, params("float32"), cross_entropy, 1e-1, **settings)
    (x, y), short = points(), jax.config.jax_enable_x64
    got = model.fit([(x, y)]).influences(x, y)
    assert got.dtype == jnp.float32
    jax.config.update("jax_enable_x64", True)
    want = reference().influences(
        jnp.asarray(x, jnp.float64), y, jnp.asarray(x, jnp.float64), y, 1e-1
    )
    jax.config.update("jax_enable_x64", short)
    close(got, want, 1e-4)


@SHORT
def test_float64_is_refused(x64):
    x, y = points("float64")
    for wide in (params("float64"), {**params("float32"), "bias": normal(3)}):
        with pytest.raises(DataTypeError, match=r"jax_enable_x64.*float32"):
            DirectInfluence(linear, wide, cross_entropy).fit([(x, y)])
    model = DirectInfluence(linear, params("float32"), cross_entropy, 1.0)
    with pytest.raises(DataTypeError, match=r"`x`.*float64.*jax_enable_x64.*cast it to float32"):
        model.fit([(x, y)])
    assert not model.is_fitted


@SHORT
def test_integers_keep_their_values(x64):
    x, y = points()
    assert y.dtype == np.int64
    model = DirectInfluence(linear, params("float32"), cross_entropy, 1.0).fit([(x, y)])
    assert model.influences(x, y).dtype == jnp.float32
    with pytest.raises(DataTypeError, match="fit into int32"):
        model.fit([(x, y + 2**40)])


def test_switched_off_after_fit():
    x, y = points("float64")
    model = DirectInfluence(linear, params("float64"), cross_entropy, 1.0).fit([(x, y)])
    want = model.influences(x, y)
    assert want.dtype == jnp.float64
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(DataTypeError, match="jax_enable_x64"):
        model.influences(x, y)
    jax.config.update("jax_enable_x64", True)
    close(model.influences(x, y), want, 0.0)


def test_float64_data_and_float32_parameters():
    x, y = points("float64")
    model = DirectInfluence(linear, params("float32"), cross_entropy, 1.0).fit([(x, y)])
    assert model.influences(x, y).dtype == jnp.float32
    assert model.influences(x, y, mode="perturbation").dtype == jnp.float32


@BOTH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype, x64):
    halved = jax.tree.map(lambda p: jnp.asarray(p, dtype), params("float32"))
    model = DirectInfluence(linear, halved, cross_entropy, 1.0)
    x, y = jnp.asarray(points()[0], dtype), points()[1]
    got = model.fit([(x, y)]).influences(x, y)
    assert got.dtype == model.dtype == dtype
    again = jax.tree.map(lambda p: p.astype(jnp.float32), halved)
    wide = DirectInfluence(linear, again, cross_entropy, 1.0)
    wide.fit([(x.astype(jnp.float32), y)])
    close(got, wide.influences(x.astype(jnp.float32), y), 0.01)


def test_mixed_dtypes():
    mixed = {**params("float64"), "bias": normal(3).astype("float32")}
    with pytest.raises(ModelError, match=r"share one dtype.*float32.*float64"):
        DirectInfluence(linear, mixed, cross_entropy).fit([points()])
