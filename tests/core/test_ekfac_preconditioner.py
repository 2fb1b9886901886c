"""EK-FAC as a preconditioner of CG: the same answers, nearer after the first steps."""

import dataclasses

import numpy as np
import pytest
from abilities import BARE
from loaders import CountingLoader
from namespaces import NUMPY, NUMPY_FLOAT32, TORCH
from problems import INPUTS, OUTPUTS, REPRESENTATIVE, N, fitted, influence, make_setting, tight

from influence_core import Cg, Direct, Influence, OptionError
from influence_core.errors import CapabilityError
from influence_core.methods.ekfac_preconditioner import EkfacPreconditioner
from influence_core.testing import BACKEND, LeastSquares, TanhNetwork

both_forms = pytest.mark.parametrize("together", [False, True], ids=["rows", "block"])
needs_torch = pytest.mark.skipif(not TORCH.installed, reason="torch is not installed")


@both_forms
@pytest.mark.parametrize("update_diagonal", [False, True])
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_answers_stay_right(kind, curvature, update_diagonal, together):
    setting = make_setting(kind)
    preconditioner = EkfacPreconditioner(update_diagonal)
    method = tight(preconditioner=preconditioner, solve_simultaneously=together)
    options = {"regularization": 1e-2}
    model = fitted(setting, method, second_order_mode=curvature, **options)
    got = model.influence_factors(*setting.test())
    want = setting.oracle().influence_factors(*setting.host_test(), mode=curvature, **options)
    setting.library.close(got, want, 1e-8)
    assert model.report.converged.all()


def test_every_library(library):
    setting = make_setting("tanh_cross_entropy", library)
    method = tight(library, preconditioner=EkfacPreconditioner())
    options = {"regularization": 1e-2}
    model = fitted(setting, method, second_order_mode="gauss_newton", **options)
    got = model.influence_factors(*setting.test())
    want = setting.oracle().influence_factors(*setting.host_test(), mode="gauss_newton", **options)
    library.close(got, want, library.accuracy())


@pytest.mark.parametrize(
    ("library", "solver"),
    [
        pytest.param(NUMPY, "array_api_strict", id="numpy-strict"),
        pytest.param(NUMPY_FLOAT32, "array_api_strict", id="float32-strict"),
        pytest.param(NUMPY, "torch", id="numpy-torch", marks=needs_torch),
        pytest.param(TORCH, "numpy", id="torch-numpy", marks=needs_torch),
    ],
)
def test_another_library_solves(library, solver):
    setting = make_setting("logistic", library)
    method = tight(library, preconditioner=EkfacPreconditioner())
    options = {"regularization": 0.1, "second_order_mode": "generalized_gauss_newton"}
    got = fitted(setting, method, array_backend=solver, **options)
    want = setting.oracle().influence_factors(
        *setting.host_test(), mode="generalized_gauss_newton", regularization=0.1
    )
    library.close(got.influence_factors(*setting.test()), want, library.accuracy())


@pytest.mark.parametrize("structure", ["layer_wise", "parameter_wise"])
def test_one_instance_serves_every_block(structure):
    setting = make_setting("tanh_squared")
    options = {
        "regularization": 1e-2,
        "second_order_mode": "generalized_gauss_newton",
        "block_structure": structure,
    }
    got = fitted(setting, tight(preconditioner=EkfacPreconditioner()), **options)
    want = fitted(setting, Direct(), **options).influence_factors(*setting.test())
    setting.library.close(got.influence_factors(*setting.test()), want, 1e-7)


@pytest.mark.parametrize("update_diagonal", [False, True])
@pytest.mark.parametrize("regularization", [1e-6, 1e-3, 1e-1])
def test_one_step_where_the_factors_are_exact(update_diagonal, regularization):
    """Least squares at expected labels: the preconditioner is the inverse."""
    setting = make_setting("least_squares")
    method = Cg(rtol=1e-8, atol=0.0, preconditioner=EkfacPreconditioner(update_diagonal))
    model = fitted(setting, method, regularization=regularization)
    model.influence_factors(*setting.test())
    assert model.report.iterations.max() <= 2
    assert model.report.converged.all()


def trained_like():
    """A network whose layers see inputs of very different scales, as trained ones do."""
    rng = np.random.default_rng(0)
    inputs, hidden, outputs, points = 12, 10, 4, 300
    net = TanhNetwork.random(inputs, hidden, outputs, loss="cross_entropy", seed=1)
    x = rng.standard_normal((points, inputs)) * 10.0 ** np.linspace(-1.5, 1.0, inputs)
    y = rng.integers(0, outputs, points)
    return net, x, y


def scores(case, method, dtype=np.float64):
    net, x, y = case
    parameters = {name: a.astype(dtype) for name, a in net.parameters.items()}
    net, x = dataclasses.replace(net, parameters=parameters), x.astype(dtype)
    options = {"second_order_mode": "generalized_gauss_newton", "regularization": 1e-3}
    model = Influence(net, None, method, backend=BACKEND, **options)
    model.fit([(x[:128], y[:128]), (x[128:], y[128:])])
    return model.influences(x[:20], y[:20], x, y)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("ignore::influence_core.ConvergenceWarning")
def test_first_steps_come_closer(dtype):
    """After five steps, at most 0.4 of the error that plain CG has left."""
    case = trained_like()
    want = scores(case, Direct())

    def error(preconditioner):
        method = Cg(rtol=0.0, atol=0.0, maxiter=5, preconditioner=preconditioner)
        return np.linalg.norm(scores(case, method, dtype) - want) / np.linalg.norm(want)

    plain, helped = error(None), error(EkfacPreconditioner())
    assert plain > 0.1
    assert helped <= 0.4 * plain
    assert helped < error(EkfacPreconditioner(update_diagonal=False))


@pytest.mark.parametrize(("update_diagonal", "passes"), [(False, 1), (True, 2)])
def test_prepared_once(update_diagonal, passes):
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader())
    method = tight(preconditioner=EkfacPreconditioner(update_diagonal))
    options = {"regularization": 1e-2, "second_order_mode": "generalized_gauss_newton"}
    model = influence(setting, method, **options).fit(loader)
    assert loader.since() == 1 + passes  # one to check the data
    for regularization in (1e-2, 1e-1):  # a new λ prepares nothing
        model.with_regularization(regularization).influence_factors(*setting.test())
        assert loader.since() <= model.report.iterations.max() + 3


@pytest.mark.parametrize("update_diagonal", [False, True])
def test_positive_definite_without_regularization(library, update_diagonal):
    """The softmax leaves a null space in `S`; the preconditioner has none."""
    setting = make_setting("logistic", library)
    model = fitted(setting, tight(library), second_order_mode="generalized_gauss_newton")
    curvature = model._fitted.inverses[""].curvature
    prepared = EkfacPreconditioner(update_diagonal).prepare(curvature, 0)
    identity = library.array(np.eye(curvature.block.size))
    matrix = library.host(prepared.at(0.0)(identity)).astype(np.float64)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5 * np.abs(matrix).max())
    assert np.linalg.eigvalsh((matrix + matrix.T) / 2)[0] > 0


def test_zero_curvature():
    """Zero inputs and no bias: `C = 0`, and only λ is left."""
    net = LeastSquares({"weight": np.ones((OUTPUTS, INPUTS))})
    loader = [(np.zeros((N, INPUTS)), np.ones((N, OUTPUTS)))]
    method = tight(preconditioner=EkfacPreconditioner())
    model = Influence(net, None, method, backend=BACKEND, regularization=0.5).fit(loader)
    rows = np.ones((1, OUTPUTS * INPUTS))
    np.testing.assert_allclose(model.apply_inverse(rows), 2 * rows)
    prepared = EkfacPreconditioner().prepare(model._fitted.inverses[""].curvature, 0)
    np.testing.assert_allclose(prepared.at(0.0)(rows), rows)


@pytest.mark.filterwarnings("ignore::influence_core.ConvergenceWarning")
def test_seed_decides_sampled_labels():
    setting = make_setting("tanh_cross_entropy")
    options = {"regularization": 1e-2, "second_order_mode": "generalized_gauss_newton"}

    def factors(seed):
        preconditioner = EkfacPreconditioner(labels="sampled", draws=3)
        method = Cg(rtol=1e-4, preconditioner=preconditioner, seed=seed)
        return fitted(setting, method, **options).influence_factors(*setting.test())

    np.testing.assert_array_equal(factors(3), factors(3))
    assert np.any(factors(3) != factors(4))


def test_a_backend_without_layers():
    method = tight(preconditioner=EkfacPreconditioner())
    with pytest.raises(CapabilityError, match="offers `layers`"):
        fitted(make_setting("logistic"), method, backend=BARE)


@pytest.mark.parametrize("options", [{"labels": "mine"}, {"draws": 0}])
def test_settings_are_checked(options):
    with pytest.raises(OptionError, match=f"`{next(iter(options))}` must be"):
        EkfacPreconditioner(**options)
