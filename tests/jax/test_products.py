"""Every product of the problem, held against dense matrices of single points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import Case, N, labels, mlp_case, normal, squared
from jax_reference import close

from influence_core import problem as protocols

CASE = mlp_case
NAMES = {
    "all": ["first.bias", "first.kernel", "second.bias", "second.kernel"],
    "some": ["second.kernel", "first.bias"],
}
SHAPES = {
    "first.bias": (4,),
    "first.kernel": (3, 4),
    "second.bias": (3,),
    "second.kernel": (4, 3),
}


def columns(names):
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])
    places = {
        name: np.arange(end - np.prod(shape), end)
        for (name, shape), end in zip(SHAPES.items(), ends, strict=True)
    }
    return np.concatenate([places[name] for name in names])


@pytest.fixture(scope="module", params=[None, 4000], ids=["whole", "chunked"])
def setting(request):
    jax.config.update("jax_enable_x64", True)
    case = mlp_case()
    problem = case.problem(max_memory=request.param)
    return case.reference(), problem, problem.batch((case.x, case.y))


@pytest.fixture(params=NAMES)
def names(request):
    return NAMES[request.param]


def rows(count, names, seed=5):
    return jnp.asarray(normal(count, len(columns(names)), seed=seed))


def test_chunks_are_small():
    problem = mlp_case().problem(max_memory=4000)
    batch = problem.batch((mlp_case().x, mlp_case().y))
    assert 1 < len(list(problem._parts(batch))) < N


def test_parameters(setting):
    assert dict(setting[1].parameters) == SHAPES
    close(setting[1].values(list(SHAPES)), setting[0].theta)


def test_abilities(setting):
    for protocol in (
        protocols.ReadsData,
        protocols.ReadsByIndex,
        protocols.Validates,
        protocols.Movable,
        protocols.HandsOver,
        protocols.LinearizesHessian,
        protocols.GeneralizedGaussNewton,
        protocols.PointQuadratics,
        protocols.HasLayers,
        protocols.HasValues,
        protocols.Shelters,
    ):
        assert isinstance(setting[1], protocol)


def test_gradients(setting, names):
    reference, problem, batch = setting
    want = reference.gradients(batch.x, batch.y)[:, columns(names)]
    v, w = rows(6, names), jnp.asarray(normal(6, N, seed=6))
    close(problem.gradients(batch, names), want)
    close(problem.gradient_products(batch, v, names), np.asarray(v) @ want.T)
    close(problem.gradient_combinations(batch, w, names), np.asarray(w) @ want)


def test_hessian(setting, names):
    reference, problem, batch = setting
    place, v = columns(names), rows(6, names)
    want = np.asarray(v) @ reference.curvature()[np.ix_(place, place)]
    close(problem.hessian_product(batch, v, names), want)
    product = problem.linearize(batch, names)
    close(product(v), want)
    close(product(v[:2]), want[:2])


def test_generalized_gauss_newton(setting, names):
    reference, problem, batch = setting
    place, v = columns(names), rows(6, names)
    matrix = reference.curvature("generalized_gauss_newton")[np.ix_(place, place)]
    got = problem.generalized_gauss_newton_product(batch, v, names)
    close(got, np.asarray(v) @ matrix)


def test_quadratics(setting, names):
    reference, problem, batch = setting
    place, v = columns(names), rows(N, names)

    def quadratics(matrices):
        return np.einsum("np,npq,nq->n", v, matrices[:, place][:, :, place], v)

    close(
        problem.hessian_quadratics(batch, v, names),
        quadratics(reference.hessians(batch.x, batch.y)),
    )
    close(
        problem.generalized_gauss_newton_quadratics(batch, v, names),
        quadratics(reference.gauss_newtons(batch.x, batch.y)),
    )


def test_mixed(setting, names):
    reference, problem, batch = setting
    v = rows(6, names)
    mixed = np.asarray(reference.mixed(batch.x, batch.y))[:, columns(names)]
    close(problem.mixed_gradient_products(batch, v, names), np.einsum("kp,npx->knx", v, mixed))


def embed(params, x):
    """A model of a tree of inputs, with integers among them, and with a tree of outputs."""
    z = (params["table"][x["ids"]] + x["shift"][0]) @ params["w"]
    return {"z": z, "argmax": z.argmax(axis=-1), "scale": x["shift"][1]}


def scaled_squared(outputs, y):
    return (((outputs["z"] - y) * outputs["scale"]) ** 2).sum(axis=-1)


def test_trees():
    params = {"table": jnp.asarray(normal(5, 3)), "w": jnp.asarray(normal(3, 2, seed=1))}
    shift = (jnp.asarray(normal(N, 3, seed=2)), jnp.asarray(normal(N, 1, seed=3)))
    x = {"ids": labels(N, number=5), "shift": shift, "spare": (labels(N), normal(N))}
    case = Case(embed, params, scaled_squared, x, normal(N, 2, seed=4))
    problem = case.problem()
    batch, names = problem.batch((case.x, case.y)), ["table", "w"]
    v = jnp.asarray(normal(4, 21, seed=5))
    got = problem.mixed_gradient_products(batch, v, names)
    assert set(got) == {"shift", "spare"}
    assert got["spare"][0] is None
    close(got["spare"][1], np.zeros((4, N)))

    def slope(floats, row):
        first, second = floats

        def total(theta):
            p = {"table": theta[:15].reshape(5, 3), "w": theta[15:].reshape(3, 2)}
            inputs = {**x, "shift": (first, second)}
            return scaled_squared(embed(p, inputs), batch.y).sum()

        theta = jnp.concatenate([params["table"].ravel(), params["w"].ravel()])
        return jax.grad(total)(theta) @ row

    for k in range(4):
        want = jax.grad(slope)(shift, v[k])
        close(got["shift"][0][k], want[0])
        close(got["shift"][1][k], want[1])
    matrix = problem.generalized_gauss_newton_product(batch, jnp.eye(21), names)
    # the loss is quadratic in z, and z is bilinear: the matrix is 2/n Σ s² JᵀJ

    def z(theta):
        p = {"table": theta[:15].reshape(5, 3), "w": theta[15:].reshape(3, 2)}
        return embed(p, x)["z"]

    jacobian = jax.jacfwd(z)(jnp.concatenate([params["table"].ravel(), params["w"].ravel()]))
    close(matrix, 2 * np.einsum("nop,noq,n->pq", jacobian, jacobian, shift[1][:, 0] ** 2) / N)


def running(params, x):
    """A recurrent network by `scan`, whose loop has a derivative of second order."""

    def step(state, row):
        state = jnp.tanh(params["w"] @ state + params["u"] @ row)
        return state, None

    def of_point(rows):
        return jax.lax.scan(step, jnp.zeros(2), rows)[0]

    return jax.vmap(of_point)(x)


def test_scan():
    params = {"u": jnp.asarray(normal(2, 3)), "w": jnp.asarray(normal(2, 2, seed=1))}
    x, y = jnp.asarray(normal(N, 4, 3)), jnp.asarray(normal(N, 2))
    case = Case(running, params, squared, x, y)
    problem, reference = case.problem(), case.reference()
    batch, names = problem.batch((x, y)), ["u", "w"]
    close(problem.hessian_product(batch, jnp.eye(10), names), reference.curvature())
    matrix = problem.generalized_gauss_newton_product(batch, jnp.eye(10), names)
    close(matrix, reference.curvature("generalized_gauss_newton"))


@pytest.mark.parametrize("reduction", [jnp.mean, jnp.sum, lambda losses: losses])
def test_reductions(reduction):
    case = mlp_case()
    y = jax.nn.one_hot(case.y, 3)
    problem = Case(mlp_case().apply, case.params, lambda f, b: reduction(squared(f, b)), case.x, y)
    got = problem.problem()
    batch = got.batch((case.x, y))
    got.validate(batch, "fit")
    want = Case(case.apply, case.params, squared, case.x, y).reference()
    close(got.hessian_product(batch, jnp.eye(31), NAMES["all"]), want.curvature())
