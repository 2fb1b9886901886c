"""What cannot be used is refused with a message that says what to do."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import Case, N, convex_case, labels, linear, mlp_case, normal
from jax_reference import close

from influence_core.errors import (
    BackendImportError,
    DataError,
    DataTypeError,
    DeviceError,
    LossError,
    ModelError,
    OptionError,
)
from influence_jax import DirectInfluence, Model, cross_entropy

needs_torch = pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="torch is not installed"
)


def fitted(x=None, y=None, loss=None, apply=None, params=None):
    case = mlp_case()
    x, y = case.x if x is None else x, case.y if y is None else y
    model = DirectInfluence(apply or case.apply, params or case.params, loss or case.loss, 2.0)
    return model.fit([(x, y)])


@needs_torch
def test_torch_tensors():
    import torch

    tensor, y = torch.zeros(N, 3), torch.zeros(N, dtype=torch.int64)
    case = mlp_case()
    for x, target, name in ((tensor, y, "x"), (case.x, y, "y"), (tensor, case.y, "x")):
        with pytest.raises(DataTypeError, match=rf"`{name}` must be an array of JAX.*torch.Tensor"):
            fitted(x, target)
    weights = {"bias": torch.zeros(3), "kernel": torch.zeros(3, 3)}
    with pytest.raises(ModelError, match=r"JAX arrays; 'bias' is a torch.Tensor"):
        fitted(apply=linear, params=weights)
    with pytest.raises(ModelError, match="`apply` must be callable"):
        DirectInfluence(weights, torch.nn.Linear(3, 3), cross_entropy)


@needs_torch
def test_jax_arrays_to_torch():
    import torch

    import influence_torch

    case = mlp_case()
    y = torch.zeros(N, dtype=torch.int64)
    model = influence_torch.DirectInfluence(
        torch.nn.Linear(3, 3), torch.nn.functional.cross_entropy, 2.0
    )
    for x, target, name in (
        (case.x, case.y, "x"),
        (case.x, y, "x"),
        (torch.zeros(N, 3), case.y, "y"),
    ):
        with pytest.raises(DataTypeError, match=f"`{name}` must be a tensor"):
            model.fit([(x, target)])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (normal(N, 3), DataTypeError, "must be a pair"),
        ((normal(N, 3), labels(N - 1)), DataError, "same number of points.*23 and 22"),
        ((normal(0, 3), labels(0)), DataError, "at least one"),
        ((normal(N, 3), 1.0), DataTypeError, "`y` must be an array of JAX or NumPy.*float"),
        ((normal(N, 3), np.int64(1)), DataTypeError, "`y` must be an array"),
        ((np.array(1.0), labels(N)), DataError, "got a scalar"),
        ((np.array(["a"] * N), labels(N)), DataTypeError, "must hold numbers"),
        (([], labels(N)), DataError, "at least one array|same number"),
    ],
)
def test_data(data, error, message):
    case = mlp_case()
    with pytest.raises(error, match=message):
        DirectInfluence(*case.model).fit([data])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value):
    x = normal(N, 3)
    x[7, 1] = value
    with pytest.raises(DataError, match=r"batch 1.*x holds NaN or infinity.*\[7\]"):
        fitted(x)
    params = jax.tree.map(jnp.array, mlp_case().params)
    params["first"]["bias"] = params["first"]["bias"].at[0].set(value)
    with pytest.raises(ModelError, match=r"'first.bias' holds NaN"):
        fitted(params=params)


def weighted(f, y):
    weights = jnp.asarray([1.0, 2.0, 3.0])[y]
    each = -jnp.take_along_axis(jax.nn.log_softmax(f), y[:, None], axis=1)[:, 0]
    return (each * weights).sum() / weights.sum()


def mixing(f, y):
    return ((f - f.mean(axis=0)) ** 2).mean()


@pytest.mark.parametrize("loss", [weighted, mixing, lambda f, y: f.mean() / len(f)])
def test_losses_of_no_points(loss):
    with pytest.raises(LossError, match=r"neither|mean, the sum or the vector.*one number a point"):
        fitted(loss=loss)


def test_well_fitted_models_are_told_apart_too():
    case = mlp_case()
    params = jax.tree.map(lambda p: p.astype(jnp.float32), case.params)

    def confident(p, x):
        return x[:, 1:] * jax.nn.one_hot(x[:, 0].astype(int), 3) + 0 * case.apply(p, x[:, :1])

    y = labels(N)
    x = np.stack([y, np.linspace(10, 40, N)], axis=1).astype("float32")
    params["first"]["kernel"] = params["first"]["kernel"][:1]
    assert weighted(confident(params, x), y) < 1e-4
    with pytest.raises(LossError, match="mean, the sum or the vector"):
        fitted(x, y, loss=weighted, apply=confident, params=params)


def test_reduction_must_stay():
    def whimsical(f, y):
        each = (f**2).sum(axis=1)
        return each.mean() if len(f) > 11 else each.sum()

    case = mlp_case()
    with pytest.raises(LossError, match="batch 2"):
        DirectInfluence(*case.model[:2], whimsical).fit([case.part(0, 12), case.part(12, None)])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda f, y: f, LossError, r"scalar, or one number a point; got \(23, 3\)"),
        (lambda f, y: y.sum(), LossError, "scalar, or one number"),
        (lambda f, y: jnp.log(-jnp.abs(f)).mean(), LossError, "NaN or infinite"),
        (lambda f, y: float(f.mean()), ModelError, "ConcretizationTypeError"),
        (lambda f, y: f.undefined, ModelError, "AttributeError"),
    ],
)
def test_losses(loss, error, message):
    with pytest.raises(error, match=message):
        fitted(loss=loss)


def test_models_of_whole_batches_only():
    with pytest.raises(ModelError, match="a batch of one point"):
        fitted(apply=lambda p, x: mlp_case().apply(p, x.reshape(N, 3)))


def test_no_derivative():
    def looping(p, x):
        def halved(z):
            return jax.lax.while_loop(lambda z: z.max() > 1, lambda z: z / 2, z)

        return jax.vmap(halved)(x @ p["kernel"]) + p["bias"]

    case = mlp_case()
    params = {"bias": jnp.ones(3), "kernel": jnp.eye(3)}
    with pytest.raises(ModelError, match="while_loop"):
        DirectInfluence(looping, params, case.loss, 2.0).fit(case.loader())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": 3}, "at least one floating-point array"),
        ({}, "at least one floating-point array"),
        ({"w": jnp.ones(3, jnp.complex64)}, "real floating-point"),
        ({"w": jnp.ones(3), "scale": 0.5}, r"'scale' is the Python float 0.5.*jnp.asarray.*close"),
        ({"w": [jnp.ones(3), 1j]}, r"'w\.1' is the Python complex 1j.*jnp.asarray"),
        ({"w": np.float32(0.5)}, r"'w' is a numpy.float32.*jnp.asarray"),
        ({"a.b": jnp.ones(3), "a": {"b": jnp.ones(3)}}, "dotted path of its own"),
    ],
)
def test_parameters(params, message):
    with pytest.raises(ModelError, match=message):
        DirectInfluence(linear, params, cross_entropy).fit([(normal(N, 3), labels(N))])


def test_what_is_no_parameter_reaches_the_function_as_it_is():
    case, seen = convex_case(), []
    constants = {"power": 2, "shift": True, "nonlinearity": jnp.tanh, "table": np.arange(3)}

    def apply(params, x):
        seen.append({name: params[name] for name in constants})
        return params["nonlinearity"](linear(params["dense"], x)) ** params["power"]

    problem = Case(apply, {"dense": case.params, **constants}, case.loss, case.x, case.y).problem()
    assert list(problem.parameters) == ["dense.bias", "dense.kernel"]
    problem.gradients(problem.batch((case.x, case.y)), ["dense.bias"])
    assert seen
    for one in seen:
        assert all(one[name] is value for name, value in constants.items())


def test_donated_and_traced_parameters():
    params = {"bias": jnp.ones(3), "kernel": jnp.ones((3, 3))}
    params["bias"].delete()
    with pytest.raises(ModelError, match="'bias' was donated"):
        fitted(apply=linear, params=params)

    def inside(w):
        return DirectInfluence(linear, {"bias": w, "kernel": w}, cross_entropy).n_parameters

    with pytest.raises(ModelError, match="'bias' is being traced"):
        jax.jit(inside)(jnp.ones(3))


def test_settings():
    case = mlp_case()
    for memory in (0, -1, 2.5, "much"):
        with pytest.raises(OptionError, match="max_memory"):
            DirectInfluence(*case.model, max_memory=memory)
    with pytest.raises(OptionError, match="'forward'"):
        case.problem(forward=None)
    with pytest.raises(LossError, match="callable"):
        DirectInfluence(case.apply, case.params, "mse")
    with pytest.raises(ModelError, match="callable"):
        Model(case.params, case.apply)


def test_devices():
    case = mlp_case()
    model = DirectInfluence(*case.model, 2.0)
    for device in ("warp", "cpu:77", "cpu:x"):
        with pytest.raises(DeviceError, match=r"needs a device.*'cpu:0'"):
            model.to(device)
    before = model.fit(case.loader()).influences(*case.part(4))
    for device in ("cpu:0", jax.devices()[0]):
        close(model.to(device).influences(*case.part(4)), before)


def test_perturbed_integers():
    case = mlp_case()
    table = {"table": jnp.asarray(normal(5, 3))}
    model = DirectInfluence(lambda p, x: p["table"][x], table, case.loss, 2.0)
    x, y = labels(N), labels(N)
    model.fit([(x, y)])
    with pytest.raises(DataTypeError, match="floating-point inputs"):
        model.influences(x, y, mode="perturbation")


def test_without_jax(monkeypatch):
    import sys

    import influence_jax

    for module in [name for name in sys.modules if name.startswith("influence_jax.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(BackendImportError, match=r'pip install "influence-core\[jax\]"'):
        _ = influence_jax.DirectInfluence
