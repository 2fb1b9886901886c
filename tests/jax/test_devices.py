"""Parameters on another device than the default one: a second CPU, and a GPU where JAX sees one.

The default is the first CPU, which computes the references: what forgot to say where to lie comes
out there.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import N, convex_case, labels, mlp_case, normal
from jax_reference import close

import influence_jax
from influence_core.arrays import exchange_for
from influence_core.modes import LabelKind
from influence_core.problem import Labels
from influence_jax.snapshot import find_device

GGN = "generalized_gauss_newton"
SOLVERS = {
    "DirectInfluence": {},
    "CgInfluence": {"rtol": 1e-12, "atol": 0.0},
    "LissaInfluence": {"maxiter": 40, "scale": None, "warn_on_max_iteration": False},
    "ArnoldiInfluence": {"rank": 31},
    "NystroemSketchInfluence": {"rank": 31},
    "InverseHarmonicMeanInfluence": {},
    "EkfacInfluence": {"update_diagonal": True},
}
gpu = pytest.mark.gpu("jax")
on_gpu = pytest.mark.parametrize("device", [pytest.param("gpu:0", marks=gpu)], indirect=True)
wherever = pytest.mark.parametrize("where", ["parameters there", "to before fit", "to after fit"])


@pytest.fixture(params=["cpu:1", pytest.param("gpu:0", marks=gpu)])
def device(request):
    """A device that is not the default one."""
    if request.param == "cpu:1" and len(jax.devices("cpu")) < 2:
        pytest.skip("JAX was started with one CPU: XLA_FLAGS names no second one")
    with jax.default_device(jax.devices("cpu")[0]):
        yield find_device(request.param)


def make(name, case, params, **settings):
    settings = {**SOLVERS[name], **settings}
    solver = getattr(influence_jax, name)
    if name == "EkfacInfluence":
        return solver(case.apply, params, hessian_regularization=0.5, **settings)
    if name != "InverseHarmonicMeanInfluence":
        settings["second_order_mode"] = GGN
    return solver(case.apply, params, case.loss, 0.5, **settings)


def fitted(name, case, device, where="parameters there", **settings):
    """The data stays on the default device: it is moved."""
    there = where == "parameters there"
    params = jax.device_put(case.params, device) if there else case.params
    model = make(name, case, params, **settings)
    if where == "to before fit":
        model.to(device)
    model.fit(case.loader(12))
    if where == "to after fit":
        model.to(device)
    assert model.device == device
    return model


def answers(model, case):
    """Everything that a user would ask."""
    test, train = case.part(4), (case.x, case.y)
    return {
        "scores": model.influences(*test, *train),
        "perturbation": model.influences(*test, *train, mode="perturbation"),
        "factors": model.influence_factors(*test),
        "own": model.self_influences(case.loader(12)),
        "path": model.influences_over([0.5, 1.0], *test),
        "removed": model.removal_effects(*test, *train),
    }


def hold(got, want, device, tolerance=1e-8):
    for name, answer in want.items():
        assert got[name].devices() == {device}, name
        close(got[name], answer, tolerance)


def test_products(device):
    case = mlp_case()
    reference, problem = case.reference(), case.problem(device=device)
    batch, names = problem.batch((case.x, case.y)), list(problem.parameters)
    v, w = np.asarray(normal(3, 31)), np.asarray(normal(3, N))
    rows, there = reference.gradients(case.x, case.y), jax.device_put(jnp.asarray(v), device)
    mixed = np.einsum("kp,npx->knx", v, np.asarray(reference.mixed(case.x, case.y)))
    hold(
        {
            "gradients": problem.gradients(batch, names),
            "products": problem.gradient_products(batch, there, names),
            "combinations": problem.gradient_combinations(batch, jax.device_put(w, device), names),
            "hessian": problem.hessian_product(batch, there, names),
            "kept": problem.linearize(batch, names)(there),
            "gauss_newton": problem.generalized_gauss_newton_product(batch, there, names),
            "mixed": problem.mixed_gradient_products(batch, there, names),
            "values": problem.values(names),
        },
        {
            "gradients": rows,
            "products": v @ rows.T,
            "combinations": w @ rows,
            "hessian": v @ reference.curvature(),
            "kept": v @ reference.curvature(),
            "gauss_newton": v @ reference.curvature(GGN),
            "mixed": mixed,
            "values": reference.theta,
        },
        device,
    )


def test_what_numpy_computed_comes_back(device):
    """However it lies in memory: as a transpose, or as columns of a wider matrix."""
    if device.platform != "cpu":
        pytest.skip("NumPy reaches no GPU")
    exchange = exchange_for(jax.device_put(jnp.zeros(1), device), "numpy")
    for host in (normal(4, 3), normal(3, 4).T, normal(4, 5)[:, :3], normal(8, 3)[::2]):
        got = {"doubled": 2 * exchange.to_model(host)}
        hold(got, {"doubled": 2 * host}, device)


@pytest.mark.parametrize("kind", LabelKind)
def test_layer_statistics(device, kind):
    case = convex_case()
    draws = np.random.default_rng(0).random((2, N, 1))
    seen = []
    for problem in (case.problem(device=device), case.problem()):
        batch = problem.batch((case.x, case.y))
        found = problem.layer_statistics(batch, [""], Labels(kind, lambda positions: draws))[""]
        seen.append({"inputs": found.inputs, "slopes": found.output_gradients})
    hold(*seen, device)


@wherever
def test_scores(device, where):
    case = convex_case()
    model = fitted("DirectInfluence", case, device, where)
    if where == "to after fit":
        model = pickle.loads(pickle.dumps(model))
    test, train = case.part(4), (case.x, case.y)
    want = case.reference().influences(*test, *train, 0.5, GGN)
    hold({"scores": model.influences(*test, *train)}, {"scores": want}, device)
    home = jax.devices("cpu")[0]
    hold({"scores": model.to("cpu:0").influences(*test, *train)}, {"scores": want}, home)


@on_gpu
@wherever
@pytest.mark.parametrize("name", SOLVERS)
def test_every_class(device, where, name):
    case = mlp_case()
    want = answers(make(name, case, case.params).fit(case.loader(12)), case)
    model = fitted(name, case, device, where)
    hold(answers(model, case), want, device)
    hold(answers(model.to("cpu:0"), case), want, jax.devices("cpu")[0])


@on_gpu
@pytest.mark.parametrize("name", SOLVERS)
def test_float32_is_not_shortened(device, name):
    """Also where matrices are multiplied in fewer bits by default."""
    case = mlp_case()
    want = answers(make(name, case, case.params).fit(case.loader(12)), case)
    settings = {"rtol": 1e-6} if name == "CgInfluence" else {}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), case.params)
    short = type(case)(case.apply, params, case.loss, case.x.astype(jnp.float32), case.y)
    got = answers(fitted(name, short, device, **settings), short)
    assert {str(answer.dtype) for answer in got.values()} == {"float32"}
    hold(got, want, device, 1e-4)


@on_gpu
@pytest.mark.gpu("cupy")
@pytest.mark.parametrize("name", SOLVERS)
def test_cupy_solves(device, name):
    case = mlp_case()
    want = answers(make(name, case, case.params).fit(case.loader(12)), case)
    hold(answers(fitted(name, case, device, array_backend="cupy"), case), want, device)


@on_gpu
@pytest.mark.gpu("cupy")
def test_eigenpairs_by_cupy(device):
    case = mlp_case()
    want = answers(make("ArnoldiInfluence", case, case.params).fit(case.loader(12)), case)
    model = fitted("ArnoldiInfluence", case, device, eigen_computation_on_gpu=True)
    hold(answers(model, case), want, device)


@on_gpu
@pytest.mark.gpu("cupy")
def test_cupy_needs_a_model_on_the_gpu(device):
    case = mlp_case()
    with pytest.raises(influence_jax.problem.InfluenceError, match="cannot be handed to 'cupy'"):
        make("DirectInfluence", case, case.params, array_backend="cupy").fit(case.loader(12))


@on_gpu
@pytest.mark.parametrize("mode", ["hessian", "gauss_newton", GGN])
def test_sequences(device, mode):
    """A loop, in both precisions."""

    def running(params, x):
        def step(state, row):
            return jnp.tanh(state @ params["w"] + row @ params["u"]), None

        start = jnp.zeros((len(x), 3), x.dtype)
        return jax.lax.scan(step, start, x.swapaxes(0, 1))[0]

    params = {"u": jnp.asarray(normal(2, 3)), "w": jnp.asarray(normal(3, 3, seed=1))}
    x, y = jnp.asarray(normal(N, 4, 2)), jnp.asarray(labels(N))
    case = type(mlp_case())(running, params, influence_jax.cross_entropy, x, y)
    want = case.reference().influences(x, y, x, y, 2.0, mode)
    for dtype, tolerance in ((jnp.float64, 1e-8), (jnp.float32, 1e-4)):
        there = jax.device_put(jax.tree.map(lambda p, d=dtype: p.astype(d), params), device)
        model = influence_jax.DirectInfluence(
            running, there, case.loss, 2.0, second_order_mode=mode
        ).fit([(x.astype(dtype), y)])
        hold({"scores": model.influences(x.astype(dtype), y)}, {"scores": want}, device, tolerance)
