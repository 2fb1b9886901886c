"""The closed forms of `influence_core.testing` against dense references, on every library."""

import pickle

import numpy as np
import oracle
import pytest
from namespaces import STRICT, STRICT_DEVICE
from problems import CONVEX_KINDS, FEW, HIDDEN, INPUTS, KINDS, OUTPUTS, N, make_data, make_setting

from influence_core.errors import (
    DataError,
    DataTypeError,
    ModelError,
    OptionError,
)
from influence_core.problem import (
    GeneralizedGaussNewton,
    HasPenalty,
    LinearizesHessian,
    Movable,
    Validates,
)
from influence_core.testing import BACKEND, ClosedFormProblem, LeastSquares, TanhNetwork

VECTORS = 6
WEIGHTS = np.linspace(0.0, 3.0, N)


@pytest.fixture(params=KINDS)
def setting(request, library):
    return make_setting(request.param, library)


def name_sets(setting):
    names = list(setting.parameters)
    subsets = [[name] for name in names] if len(names) > 2 else []
    return [names, names[::-1], names[:1], names[-1:], names[1:], *subsets]


def restricted(setting, array, names):
    return array[..., oracle.columns(setting.parameters, names)]


def vectors(setting, names, k=VECTORS):
    d = oracle.columns(setting.parameters, names).size
    host = np.random.default_rng(d).standard_normal((k, d))
    return host, setting.library.array(host)


def reference(fn, setting, **options):
    return fn(setting.parameters, setting.model.loss, *setting.host_train, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_agrees_with_itself(kind):
    setting = make_setting(kind)
    rows = reference(oracle.gradients, setting)
    np.testing.assert_allclose(reference(oracle.analytic_gradients, setting), rows, rtol=1e-12)
    hessian = reference(oracle.hessian, setting)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-14)
    if kind in CONVEX_KINDS:  # the outputs are linear in the parameters
        ggn = reference(oracle.generalized_gauss_newton, setting)
        np.testing.assert_allclose(ggn, hessian, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_influences_are_its_factors_times_gradients(kind):
    setting = make_setting(kind)
    first, *others = setting.parameters
    options = {
        "mode": "generalized_gauss_newton",
        "regularization": {"b": 0.1, "a": 0.3},
        "blocks": {"b": others, "a": [first]},
    }
    truth = setting.oracle(weights=WEIGHTS, penalty={first: 0.2})
    factors = truth.influence_factors(*setting.host_test(), **options)
    right = restricted(setting, reference(oracle.gradients, setting), [*others, first])
    got = truth.influences(*setting.host_test(), *setting.host_train, **options)
    np.testing.assert_allclose(got, factors @ right.T, rtol=1e-9)
    perturbed = truth.influences(
        *setting.host_test(), *setting.host_train, "perturbation", **options
    )
    assert perturbed.shape == (FEW, N, INPUTS)


def test_losses(setting):
    problem = setting.problem()
    got = problem.losses(problem.batch(setting.train))
    setting.library.close(got, reference(oracle.losses, setting))


def test_gradients(setting):
    problem = setting.problem()
    batch, want = problem.batch(setting.train), reference(oracle.gradients, setting)
    for names in name_sets(setting):
        got = problem.gradients(batch, names)
        setting.library.close(got, restricted(setting, want, names))


def test_gradient_products(setting):
    problem = setting.problem()
    batch, rows = problem.batch(setting.train), reference(oracle.gradients, setting)
    for names in name_sets(setting):
        host, v = vectors(setting, names)
        got = problem.gradient_products(batch, v, names)
        setting.library.close(got, host @ restricted(setting, rows, names).T)


def test_gradient_combinations(setting):
    problem = setting.problem()
    batch, rows = problem.batch(setting.train), reference(oracle.gradients, setting)
    host = np.random.default_rng(0).standard_normal((VECTORS, N))
    for names in name_sets(setting):
        got = problem.gradient_combinations(batch, setting.library.array(host), names)
        setting.library.close(got, host @ restricted(setting, rows, names))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("matrix", ["hessian", "generalized_gauss_newton"])
def test_curvature_products(setting, matrix, weights):
    library, problem = setting.library, setting.problem()
    data = setting.train if weights is None else (*setting.train, library.array(weights))
    batch = problem.batch(data)
    product = getattr(problem, f"{matrix}_product")
    whole = reference(oracle.CURVATURES[matrix], setting, weights=weights)
    for names in name_sets(setting):
        place = oracle.columns(setting.parameters, names)
        host, v = vectors(setting, names)
        library.close(product(batch, v, names), host @ whole[np.ix_(place, place)])


def test_linearize_serves_many_vectors(setting):
    problem, names = setting.problem(), list(setting.parameters)
    batch = problem.batch(setting.train)
    product, whole = problem.linearize(batch, names), reference(oracle.hessian, setting)
    for k in (1, 2, 60):
        host, v = vectors(setting, names, k)
        setting.library.close(product(v), host @ whole)


def test_mixed_gradient_products(setting):
    problem = setting.problem()
    batch, whole = problem.batch(setting.train), reference(oracle.mixed, setting)
    for names in name_sets(setting):
        host, v = vectors(setting, names)
        want = np.einsum("kd,nxd->knx", host, restricted(setting, whole, names))
        setting.library.close(problem.mixed_gradient_products(batch, v, names), want)


def test_inputs_may_have_any_shape(library):
    setting = make_setting("tanh_squared", library)
    problem, names = setting.problem(), list(setting.parameters)
    x, y = setting.host_train
    images = x.reshape(N, 1, 2, 2)
    batch = problem.batch((library.array(images), library.array(y)))
    host, v = vectors(setting, names)
    whole = oracle.mixed(setting.parameters, "squared", images, y)
    assert whole.shape[:-1] == images.shape
    want = np.einsum("kd,n...d->kn...", host, whole)
    library.close(problem.mixed_gradient_products(batch, v, names), want)


def test_biases_may_be_missing(library):
    full = TanhNetwork.random(INPUTS, HIDDEN, OUTPUTS, like=library.array(0.0)).parameters
    model = TanhNetwork({name: full[name] for name in ("hidden.weight", "output.weight")})
    problem, names = ClosedFormProblem(model), list(model.parameters)
    host = {name: library.host(a).astype(np.float64) for name, a in model.parameters.items()}
    x, y = make_data("squared", N, 1)
    batch = problem.batch((library.array(x), library.array(y)))
    library.close(problem.gradients(batch, names), oracle.gradients(host, "squared", x, y))
    whole = oracle.hessian(host, "squared", x, y)
    eye = library.array(np.eye(len(whole)))
    library.close(problem.hessian_product(batch, eye, names), whole)


def test_slices_are_batches(setting):
    library, problem, names = setting.library, setting.problem(), list(setting.parameters)
    batch = problem.batch((*setting.train, library.array(WEIGHTS)))
    part = batch[5:12]
    assert (batch.size, part.size) == (N, 7)
    x, y = setting.host_train
    want = oracle.gradients(setting.parameters, setting.model.loss, x[5:12], y[5:12])
    library.close(problem.gradients(part, names), want)
    library.close(part.weights, WEIGHTS[5:12])
    assert batch[N:].size == 0
    assert batch[20:40].size == 3


@pytest.mark.parametrize("size", [1, 5, 22])
def test_batches_add_up(setting, size):
    """`Σ (batch weight) · (batch mean)` is `N` times the mean, however the points are cut."""
    problem, names = setting.problem(), list(setting.parameters)
    host, v = vectors(setting, names)
    for product, fn in (
        (problem.hessian_product, oracle.hessian),
        (problem.generalized_gauss_newton_product, oracle.generalized_gauss_newton),
    ):
        batches = [problem.batch(pair) for pair in setting.loader(size)]
        assert sum(batch.size for batch in batches) == N
        total = sum(batch.size * product(batch, v, names) for batch in batches)
        setting.library.close(total / N, host @ reference(fn, setting))


def test_a_batch_of_weight_zero_adds_nothing(setting):
    problem, names = setting.problem(), list(setting.parameters)
    batch = problem.batch((*setting.train, setting.library.array(np.zeros(N))))
    host, v = vectors(setting, names)
    setting.library.close(problem.hessian_product(batch, v, names), 0 * host)


@pytest.mark.parametrize("product", ["hessian_product", "generalized_gauss_newton_product"])
def test_products_are_linear_and_symmetric(setting, product):
    library, problem, names = setting.library, setting.problem(), list(setting.parameters)
    apply, batch = getattr(problem, product), problem.batch(setting.train)
    (u, _), (v, _) = vectors(setting, names, 2), vectors(setting, names, 4)
    au, av, mixture = (
        library.host(apply(batch, library.array(w), names)).astype(np.float64)
        for w in (u, v, 2 * v[:2] - u)
    )
    tolerance = 100 * library.tolerance
    np.testing.assert_allclose(mixture, 2 * av[:2] - au, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(au @ v.T, u @ av.T, rtol=tolerance, atol=tolerance)


def test_no_vector_gives_no_row(setting):
    problem, names = setting.problem(), list(setting.parameters)
    batch, (_, v) = problem.batch(setting.train), vectors(setting, names, 0)
    assert problem.hessian_product(batch, v, names).shape == v.shape
    assert problem.gradient_products(batch, v, names).shape == (0, N)


def test_memory_limit_changes_no_number(setting):
    names = list(setting.parameters)
    host, v = vectors(setting, names)
    rows = reference(oracle.gradients, setting)
    for limit in (1, 20_000):
        problem = setting.problem(max_memory=limit)
        batch = problem.batch(setting.train)
        got = problem.hessian_product(batch, v, names)
        setting.library.close(got, host @ reference(oracle.hessian, setting))
        setting.library.close(problem.gradient_products(batch, v, names), host @ rows.T)


def test_penalty_is_a_diagonal(setting):
    first, second, *_ = names = list(setting.parameters)
    want = np.zeros(oracle.columns(setting.parameters, names).size)
    setting.library.close(setting.problem().penalty(names, 23.0), want)
    place = oracle.columns(setting.parameters, [second])
    want[place] = 0.25
    problem = setting.problem(penalty={second: 0.25})
    setting.library.close(problem.penalty(names, 23.0), want)
    setting.library.close(problem.penalty([second], 23.0), want[place])
    setting.library.close(problem.penalty([first], 23.0), restricted(setting, want, [first]))


def test_parameters_are_copied():
    setting = make_setting("tanh_squared")
    problem, names = setting.problem(), list(setting.parameters)
    batch = problem.batch(setting.train)
    before = problem.gradients(batch, names)
    kept = before.copy()
    setting.model.parameters["hidden.weight"][...] = 7.0
    np.testing.assert_array_equal(problem.gradients(batch, names), kept)
    before[...] = 7.0
    np.testing.assert_array_equal(problem.gradients(batch, names), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_alias_nothing(kind):
    setting = make_setting(kind)
    problem = setting.problem(penalty={})
    batch = problem.batch(setting.train)
    inputs = [*setting.train, problem.reference, batch.x, batch.targets]
    for names in name_sets(setting):
        _, v = vectors(setting, names, 2)
        for answer in (
            problem.gradients(batch, names),
            problem.gradient_products(batch, v, names),
            problem.gradient_combinations(batch, np.ones((1, N)), names),
            problem.hessian_product(batch, v, names),
            problem.generalized_gauss_newton_product(batch, v, names),
            problem.mixed_gradient_products(batch, v, names),
            problem.penalty(names, 23.0),
        ):
            assert not any(np.shares_memory(answer, other) for other in [*inputs, v])


def test_optional_protocols(setting):
    problem = setting.problem()
    wanted = (GeneralizedGaussNewton, HasPenalty, LinearizesHessian, Movable, Validates)
    assert all(isinstance(problem, protocol) for protocol in wanted)
    shapes = {name: a.shape for name, a in setting.parameters.items()}
    assert dict(problem.parameters) == shapes


def test_to_moves_everything():
    home = make_setting("tanh_cross_entropy", STRICT)
    target, names = STRICT_DEVICE.array(0.0).device, list(home.parameters)
    want = reference(oracle.hessian, home)
    for problem in (home.problem().to(target), home.problem(device=target)):
        batch = problem.batch(home.train)
        got = problem.hessian_product(batch, STRICT_DEVICE.array(np.eye(len(want))), names)
        STRICT_DEVICE.close(got, want)


def test_inputs_of_another_library_are_converted():
    setting = make_setting("logistic", STRICT_DEVICE)
    problem, names = setting.problem(), list(setting.parameters)
    got = problem.gradients(problem.batch(setting.host_train), names)
    STRICT_DEVICE.close(got, reference(oracle.gradients, setting))


def test_problems_pickle():
    setting = make_setting("tanh_squared")
    problem, names = setting.problem(penalty={"output.bias": 1.0}), list(setting.parameters)
    again = pickle.loads(pickle.dumps(problem))
    batch = problem.batch(setting.train)
    np.testing.assert_array_equal(again.gradients(batch, names), problem.gradients(batch, names))
    np.testing.assert_array_equal(again.penalty(names, 23.0), problem.penalty(names, 23.0))


def test_loss_can_be_chosen():
    setting = make_setting("logistic")
    problem = setting.problem(loss="squared")
    x, y = make_data("squared", N, 1)
    got = problem.losses(problem.batch((x, y)))
    np.testing.assert_allclose(got, oracle.losses(setting.parameters, "squared", x, y))


def test_backend_makes_the_problem():
    model = LeastSquares.random(INPUTS, OUTPUTS)
    problem = BACKEND.load()(model, None, device=None, max_memory=None)
    assert isinstance(problem, ClosedFormProblem)
    kinds = {type(make_setting(kind).model) for kind in KINDS}
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    assert names == set(BACKEND.model_types)


def test_every_library_draws_the_same_numbers(library):
    got = TanhNetwork.random(3, 4, 2, seed=5, like=library.array(0.0))
    for name, want in TanhNetwork.random(3, 4, 2, seed=5).parameters.items():
        library.close(got.parameters[name], want, 1e-7)


X, Y = make_data("squared", 6, 0)
LABELS = np.arange(6) % OUTPUTS


@pytest.mark.parametrize(
    ("kind", "data", "error", "words"),
    [
        ("least_squares", (X, Y[:5]), DataError, "same first axis"),
        ("least_squares", (X, Y, np.ones(5)), DataError, "same first axis"),
        ("least_squares", (X, Y, np.ones((6, 1))), DataError, "same first axis"),
        ("least_squares", (X[:0], Y[:0]), DataError, "one point or more"),
        ("least_squares", (X[:, :2], Y), DataError, "numbers a point"),
        ("least_squares", (X, Y[:, 0]), DataError, "one column an output"),
        ("least_squares", (X.astype(int), Y), DataTypeError, "floating-point"),
        ("least_squares", X, DataError, "yield pairs"),
        ("logistic", (X, LABELS[:, None]), DataError, "one-hot"),
        ("logistic", (X, LABELS / 2), DataTypeError, "integer labels"),
    ],
)
def test_batches_are_checked(kind, data, error, words):
    with pytest.raises(error, match=words):
        make_setting(kind).problem().batch(data)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("least_squares", (np.where(X > 1, np.nan, X), Y), "`x` must hold finite"),
        ("least_squares", (X, np.where(Y > 1, np.inf, Y)), "`y` must hold finite"),
        ("least_squares", (X, Y, np.arange(6) - 2.0), "`weights` must hold finite numbers, zero"),
        ("logistic", (X, LABELS + 1), "labels from 0 to 2"),
        ("logistic", (X, LABELS - 1), "labels from 0 to 2"),
    ],
)
def test_numbers_are_validated(library, kind, data, words):
    problem = make_setting(kind, library).problem()
    with pytest.raises(DataError, match=rf"`fit\(data\), batch 3`: .*{words}"):
        problem.validate(problem.batch(tuple(map(library.array, data))), "fit(data), batch 3")


def test_good_numbers_pass(setting):
    problem = setting.problem()
    problem.validate(problem.batch(setting.train), "fit(data), batch 0")


def test_bad_models_and_options_are_refused():
    model = LeastSquares.random(INPUTS, OUTPUTS)
    weight, bias = model.parameters.values()
    for parameters in (
        {"weight": weight * np.nan, "bias": bias},
        {"bias": bias},
        {"weight": weight, "bias": bias[:1]},
        {"weight": weight, "extra": bias},
    ):
        with pytest.raises(ModelError, match="model"):
            ClosedFormProblem(LeastSquares(parameters))
    with pytest.raises(ModelError, match="each `i` the `o` before it"):
        ClosedFormProblem(TanhNetwork({"hidden.weight": weight, "output.weight": weight}))
    for options in ({"loss": "hinge"}, {"max_memory": 0}, {"penalty": {"wieght": 1.0}}):
        with pytest.raises(OptionError, match=r"must|may"):
            ClosedFormProblem(model, **options)
