"""Plain JAX, Flax and Equinox: how each becomes `apply(params, x)`, and that the numbers are right.

Under test are names, layers and scores; the examples are those of the documentation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import Case, N, labels, mlp_case, normal
from jax_reference import close

import influence_jax
from influence_core.problem import Labels, Layer
from influence_jax import DirectInfluence, EkfacInfluence, cross_entropy

GGN = "generalized_gauss_newton"


def plain():
    def apply(params, x):
        *hidden, (weight, bias) = params
        for w, b in hidden:
            x = jax.nn.relu(x @ w.T + b)
        return x @ weight.T + bias

    sizes = [(4, 3), (3, 4)]
    params = [(jnp.asarray(normal(o, i, seed=o)), jnp.asarray(normal(o, seed=9))) for o, i in sizes]
    layers = {"0": Layer("0.0", "0.1", 3, 4), "1": Layer("1.0", "1.1", 4, 3)}
    return apply, params, layers


def linen():
    flax = pytest.importorskip("flax.linen")

    class Classifier(flax.Module):
        @flax.compact
        def __call__(self, x):
            x = flax.relu(flax.Dense(4, param_dtype=jnp.float64)(x))
            return flax.Dense(3, param_dtype=jnp.float64)(x)

    model = Classifier()
    params = model.init(jax.random.key(0), jnp.zeros((1, 3)))
    names = [f"params.Dense_{i}" for i in range(2)]
    return model.apply, params, kernels(names)


def nnx():
    flax = pytest.importorskip("flax.nnx")

    class Classifier(flax.Module):
        def __init__(self, rngs):
            self.first = flax.Linear(3, 4, param_dtype=jnp.float64, rngs=rngs)
            self.second = flax.Linear(4, 3, param_dtype=jnp.float64, rngs=rngs)

        def __call__(self, x):
            return self.second(jax.nn.relu(self.first(x)))

    graph, params = flax.split(Classifier(flax.Rngs(0)))
    return lambda p, x: flax.merge(graph, p)(x), params, kernels(["first", "second"])


def equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 3, 4, 1, key=jax.random.key(0), dtype=jnp.float64)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    layers = {
        f"layers.{i}": Layer(f"layers.{i}.weight", f"layers.{i}.bias", *sizes)
        for i, sizes in enumerate([(3, 4), (4, 3)])
    }
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), params, layers


def kernels(names):
    return {
        name: Layer(f"{name}.kernel", f"{name}.bias", *sizes, transposed=True)
        for name, sizes in zip(names, [(3, 4), (4, 3)], strict=True)
    }


@pytest.mark.parametrize("make", [plain, linen, nnx, equinox], ids=lambda make: make.__name__)
def test_frameworks(make):
    apply, params, layers = make()
    x, y = jnp.asarray(normal(N, 3)), jnp.asarray(labels(N))
    case = Case(apply, params, cross_entropy, x, y)
    reference, problem = case.reference(), case.problem()
    problem.batch((x, y))
    assert problem.layers() == layers
    model = DirectInfluence(*case.model, 1e-1, second_order_mode=GGN).fit(case.loader())
    close(model.influences(x, y), reference.influences(x, y, x, y, 1e-1, GGN))
    # of one point with expected labels, the Fisher of the last layer is `E[g gᵀ] ⊗ a aᵀ` exactly
    last = list(layers)[-1]
    one = x[:1], y[:1]
    ekfac = EkfacInfluence(apply, params, hessian_regularization=1e-1).fit([one])
    assert ekfac.block_names == list(layers)
    size = layers[last].outputs * (layers[last].inputs + 1)  # the last columns are the layer's
    matrix = Case(apply, params, cross_entropy, *one).reference().curvature(GGN)[-size:, -size:]
    rows = reference.gradients(x, y)[:, -size:]
    want = np.linalg.solve(matrix + 1e-1 * np.eye(size), rows.T).T
    close(ekfac.influence_factors_by_layer(x, y)[last], want)


def test_a_whole_equinox_module_serves_as_parameters():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 3, 4, 1, key=jax.random.key(0), dtype=jnp.float64)
    x, y = jnp.asarray(normal(N, 3)), jnp.asarray(labels(N))
    whole = DirectInfluence(lambda m, x: jax.vmap(m)(x), model, cross_entropy, 1.0)
    parts, rest = eqx.partition(model, eqx.is_inexact_array)
    parted = DirectInfluence(
        lambda p, x: jax.vmap(eqx.combine(p, rest))(x), parts, cross_entropy, 1.0
    )
    got, want = (each.fit([(x, y)]).influences(x, y) for each in (whole, parted))
    close(got, want)


def test_batch_normalisation():
    flax = pytest.importorskip("flax.linen")

    class Normalised(flax.Module):
        @flax.compact
        def __call__(self, x, train=False):
            x = flax.Dense(4, param_dtype=jnp.float64)(x)
            x = flax.BatchNorm(not train, param_dtype=jnp.float64)(x)
            return flax.Dense(3, param_dtype=jnp.float64)(x)

    net, (x, y) = Normalised(), (normal(N, 3), labels(N))
    variables = net.init(jax.random.key(0), x)
    stats = variables["batch_stats"]

    def evaluating(params, x):
        return net.apply({"params": params, "batch_stats": stats}, x)

    def training(params, x):
        both = {"params": params, "batch_stats": stats}
        return net.apply(both, x, train=True, mutable=["batch_stats"])[0]

    model = DirectInfluence(evaluating, variables["params"], cross_entropy, 2.0).fit([(x, y)])
    case = Case(evaluating, variables["params"], cross_entropy, jnp.asarray(x), jnp.asarray(y))
    close(model.influences(x, y), case.reference().influences(case.x, case.y, case.x, case.y, 2.0))
    with pytest.raises(influence_jax.problem.InfluenceError, match="batch normalisation"):
        DirectInfluence(training, variables["params"], cross_entropy, 2.0).fit([(x, y)])


def test_optax_losses():
    optax = pytest.importorskip("optax")
    case, seen = mlp_case(), []
    labels = Labels(None, lambda positions: np.zeros((1, N, positions)))
    for loss in (cross_entropy, optax.softmax_cross_entropy_with_integer_labels):
        problem = Case(*case.model[:2], loss, case.x, case.y).problem()
        batch = problem.batch((case.x, case.y))
        problem.validate(batch, "fit")
        seen.append(problem.layer_statistics(batch, ["first"], labels)["first"])
    close(seen[1].output_gradients, seen[0].output_gradients)


def test_names_of_a_bare_array():
    case = Case(lambda w, x: x @ w, jnp.ones(3), lambda f, y: (f - y) ** 2, normal(N, 3), normal(N))
    problem = case.problem()
    assert dict(problem.parameters) == {"params": (3,)}
    batch = problem.batch((case.x, case.y))
    want = 2 * (case.x.sum(axis=1) - case.y)[:, None] * case.x
    close(problem.gradients(batch, ["params"]), want)
    assert problem.layers() == {"": Layer("params", None, 3, 1)}
    assert np.isfinite(DirectInfluence(*case.model, 1.0).fit(case.loader()).gradient_norm)
