"""Dense layers in the traced program, and what they see, held against per-sample gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import Case, N, affine, dense, labels, mlp_case, normal, squared
from jax_reference import close

from influence_core.errors import CapabilityError, NotImplementedLayerRepresentationException
from influence_core.modes import LabelKind
from influence_core.problem import Labels, Layer
from influence_jax import EkfacInfluence, cross_entropy
from influence_jax.likelihoods import expected, sampled

GIVEN = Labels(LabelKind.GIVEN, lambda positions: np.zeros((1, N, positions)))


def kernel(*shape, seed=3):
    return np.asarray(normal(*shape, seed=seed))


def jitted(p, x):
    return jax.jit(affine)(p["second"], jnp.tanh(jax.checkpoint(affine)(p["first"], x)))


def left(p, x):
    """`W x`, with the points last."""
    return (p["w"] @ x.T + p["b"][:, None]).T


def einsum(p, x):
    """Heads: a weight and a bias of three axes."""
    heads = jnp.tanh(jnp.einsum("bsi,ihd->bshd", x, p["in"]["w"]) + p["in"]["b"])
    return jnp.einsum("bshd,hdo->bso", heads, p["out"]["w"]) + p["out"]["b"]


def cast(p, x):
    return x @ p["w"].astype(jnp.float32).astype(jnp.float64).T


def vector(p, x):
    """Logistic regression: one output, a bias without axes."""
    return x @ p["w"] + p["b"]


def reshaped(p, x):
    """A weight that is stored flat."""
    return x @ p["w"].reshape(3, 4)


FOUND = {
    "jitted": (
        jitted,
        {"first": dense(3, 4, 1), "second": dense(4, 3, 3)},
        (N, 3),
        {
            "first": Layer("first.kernel", "first.bias", 3, 4, True),
            "second": Layer("second.kernel", "second.bias", 4, 3, True),
        },
    ),
    "left": (left, {"w": kernel(2, 3), "b": kernel(2)}, (N, 3), {"w": Layer("w", "b", 3, 2)}),
    "einsum": (
        einsum,
        {
            "in": {"b": kernel(2, 2, seed=4), "w": kernel(3, 2, 2)},
            "out": {"b": kernel(3, seed=5), "w": kernel(2, 2, 3, seed=6)},
        },
        (N, 5, 3),
        {"in": Layer("in.w", "in.b", 3, 4, True), "out": Layer("out.w", "out.b", 4, 3, True)},
    ),
    "cast": (cast, {"w": kernel(2, 3)}, (N, 3), {"w": Layer("w", None, 3, 2)}),
    "vector": (vector, {"w": kernel(3), "b": kernel()}, (N, 3), {"w": Layer("w", "b", 3, 1)}),
    "reshaped": (reshaped, {"w": kernel(12)}, (N, 3), {"w": Layer("w", None, 3, 4, True)}),
}


def total(outputs, y):
    return jnp.sin(outputs).reshape(len(outputs), -1).sum(axis=1)


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    apply, params, shape, layers = FOUND[name]
    case = Case(apply, params, total, jnp.asarray(normal(*shape)), jnp.zeros(N))
    problem = case.problem()
    batch = problem.batch((case.x, case.y))
    assert {layer.weight: layer for layer in problem.layers().values()} == {
        layer.weight: layer for layer in layers.values()
    }
    statistics = problem.layer_statistics(batch, list(problem.layers()), GIVEN)
    for key, layer in problem.layers().items():
        a, g = np.asarray(statistics[key].inputs), np.asarray(statistics[key].output_gradients[0])
        own = np.einsum("nsi,nso->nio" if layer.transposed else "nsi,nso->noi", a, g)
        tolerance = 1e-6 if name == "cast" else 1e-8
        close(problem.gradients(batch, [layer.weight]), own.reshape(N, -1), tolerance)
        if layer.bias:
            close(problem.gradients(batch, [layer.bias]), g.sum(axis=1))


def normalised(p, x):
    return affine(p["last"], x / jnp.linalg.norm(x, axis=1, keepdims=True) * p["scale"])


def tied(p, x):
    return x @ p["w"] @ p["w"].T + p["b"]


def convolution(p, x):
    z = jax.lax.conv_general_dilated(x[:, None], p["conv"], (1,), "SAME")
    return affine(p["last"], z[:, 0])


def looped(p, x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, None, length=2)[0]


def penalised(p, x):
    return affine(p["last"], x) + (p["last"]["kernel"] ** 2).sum()


def aside(p, x):
    """The product is used without the bias as well."""
    z = x @ p["w"]
    return jnp.tanh(z + p["b"]) + z


def sliced(p, x):
    return x @ p["w"][:, :2]


OTHERWISE = {
    "normalised": (normalised, {"last": dense(3, 2, 1), "scale": kernel(3)}, ["scale"]),
    "tied": (tied, {"w": kernel(3, 2), "b": kernel(3)}, ["w", "b"]),
    "convolution": (convolution, {"conv": kernel(1, 1, 3), "last": dense(3, 2, 1)}, ["conv"]),
    "looped": (looped, {"w": kernel(3, 3)}, ["w"]),
    "penalised": (penalised, {"last": dense(3, 2, 1)}, ["last.kernel"]),
    "aside": (aside, {"b": kernel(2), "w": kernel(3, 2)}, ["b"]),
    "sliced": (sliced, {"w": kernel(3, 4)}, ["w"]),
    "unused": (lambda p, x: x @ p["w"], {"spare": kernel(3), "w": kernel(3, 2)}, ["spare"]),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_used_otherwise(name):
    apply, params, named = OTHERWISE[name]
    model = EkfacInfluence(apply, params, hessian_regularization=1.0, loss=total, labels="given")
    with pytest.raises(NotImplementedLayerRepresentationException) as caught:
        model.fit([(normal(N, 3), np.zeros(N))])
    for parameter in named:
        assert repr(parameter) in str(caught.value)


def test_layers_need_data():
    with pytest.raises(CapabilityError, match="Read a batch first"):
        mlp_case().problem().layers()


def test_unknown_distribution():
    case = mlp_case()
    model = EkfacInfluence(case.apply, case.params, loss=squared)
    with pytest.raises(CapabilityError, match=r"influence_jax.cross_entropy.*labels='given'"):
        model.fit([(case.x, jax.nn.one_hot(case.y, 3))])


def test_cross_entropy():
    outputs, y = jnp.asarray(normal(2, 4, 3)), jnp.asarray([[0, 1, 2, -100], [2, -100, -100, 1]])
    logs = np.asarray(jax.nn.log_softmax(outputs))
    first = -(logs[0, 0, 0] + logs[0, 1, 1] + logs[0, 2, 2]) / 3
    second = -(logs[1, 0, 2] + logs[1, 3, 1]) / 2
    close(cross_entropy(outputs, y), (first + second) / 2)
    hard = jnp.asarray(labels(2, 4))
    close(cross_entropy(outputs, jax.nn.one_hot(hard, 3)), cross_entropy(outputs, hard))
    assert bool(jnp.isnan(cross_entropy(outputs, hard.at[0, 0].set(3))))
    with pytest.raises(ValueError, match="Bring them into this form"):
        cross_entropy(outputs, hard[:, :3])


def test_slices_of_sequences():
    """Second moments of the slices against all outcomes, one after the other."""
    outputs = jnp.asarray(normal(1, 3, 2))
    y = jnp.asarray([[1, -100, 0]])
    p, want = np.asarray(jax.nn.softmax(outputs))[0], np.zeros((6, 6))
    for outcome in np.ndindex(2, 2, 2):
        gradient = np.stack([(p[t] - np.eye(2)[c]) / 2 * (t != 1) for t, c in enumerate(outcome)])
        chance = np.prod([p[t, c] for t, c in enumerate(outcome)])
        want += chance * np.outer(gradient, gradient)
    slices = expected(outputs, y)
    rows = jax.vmap(slices.cotangent)(slices.rows).reshape(-1, 6)
    close(rows.T @ rows, want)
    uniforms = jnp.asarray(np.random.default_rng(0).random((20000, 3)))
    slices = sampled(outputs, y, uniforms)
    rows = jax.vmap(slices.cotangent)(slices.rows).reshape(-1, 6)
    close(rows.T @ rows, want, 0.05)


def test_sequences():
    """Statistics of a layer with shared positions, at expected labels."""

    def apply(p, x):
        return affine(p, x)

    case = Case(apply, dense(4, 3, 1), cross_entropy, normal(N, 2, 4), labels(N, 2))
    problem = case.problem()
    batch = problem.batch((case.x, case.y))
    kind = Labels(LabelKind.EXPECTED, lambda positions: np.zeros((1, N, positions)))
    ((_, seen),) = problem.layer_statistics(batch, list(problem.layers()), kind).items()
    close(seen.inputs, case.x)
    p = np.asarray(jax.nn.softmax(apply(case.params, batch.x)))
    g = np.asarray(seen.output_gradients)
    assert g.shape == (6, N, 2, 3)
    want = (np.einsum("ntc,cd->ntcd", p, np.eye(3)) - np.einsum("ntc,ntd->ntcd", p, p)) / 4
    close(jnp.asarray(np.einsum("cnto,cntp->ntop", g, g)), want)
