"""What the closed forms show of their layers, against dense references; and their values."""

import numpy as np
import oracle
import pytest
from namespaces import NUMPY
from problems import FEW, HIDDEN, INPUTS, KINDS, OUTPUTS, N, make_data, make_setting

from influence_core.layers import columns_of_layers, join_pieces
from influence_core.modes import LabelKind
from influence_core.problem import HasLayers, HasValues, Labels, Layer
from influence_core.testing import ClosedFormProblem, LeastSquares, Logistic

kinds = pytest.mark.parametrize("kind", KINDS)


def uniforms(draws, seed=0, points=N):
    rng = np.random.default_rng(seed)
    return lambda positions: rng.random((draws, points, positions))


def statistics(setting, kind, draws=1, **options):
    problem = setting.problem()
    batch = problem.batch(setting.train)
    labels = Labels(kind and LabelKind(kind), uniforms(draws, **options))
    return problem.layer_statistics(batch, list(problem.layers()), labels)


def rebuilt(setting, answer, columns=None):
    """The rows `Σ_s g ⊗ [a, 1]` of every slice, `(c, n, p)`, in the model's order."""
    rows = []
    for each in answer.values():
        a, g = (setting.library.host(x) for x in (each.inputs, each.output_gradients))
        c, n = g.shape[:2]
        rows += [np.einsum("cnso,nsi->cnoi", g, a).reshape(c, n, -1), g.sum(axis=2)]
    return np.concatenate(rows, axis=2)


@kinds
def test_protocols(kind):
    problem = make_setting(kind).problem()
    assert isinstance(problem, HasLayers)
    assert isinstance(problem, HasValues)


def test_layers():
    problem = make_setting("tanh_squared").problem()
    assert problem.layers() == {
        "hidden": Layer("hidden.weight", "hidden.bias", INPUTS, HIDDEN),
        "output": Layer("output.weight", "output.bias", HIDDEN, OUTPUTS),
    }
    bare = ClosedFormProblem(LeastSquares({"weight": np.ones((2, 3))}))
    assert bare.layers() == {"": Layer("weight", None, 3, 2)}


@kinds
def test_given_labels_rebuild_the_gradients(library, kind):
    setting = make_setting(kind, library)
    answer = statistics(setting, "given")
    want = oracle.gradients(setting.parameters, setting.model.loss, *setting.host_train)
    got = rebuilt(setting, answer)
    assert got.shape == (1, *want.shape)
    np.testing.assert_allclose(got[0], want, atol=library.tolerance * np.abs(want).max())


@kinds
@pytest.mark.parametrize("label_kind", ["expected", None])
def test_expected_labels_rebuild_the_fisher_matrix(library, kind, label_kind):
    """Both losses are in natural parameters: it is the generalised Gauss–Newton matrix."""
    setting = make_setting(kind, library)
    rows = rebuilt(setting, statistics(setting, label_kind))
    want = setting.oracle().curvature("generalized_gauss_newton")
    got = np.einsum("cnp,cnq->pq", rows, rows) / N
    np.testing.assert_allclose(got, want, atol=library.tolerance * np.abs(want).max())


@kinds
def test_sampled_labels_have_the_moments_of_the_model(library, kind):
    """Means within five of their own standard errors; a mean gradient of zero among them."""
    setting, draws = make_setting(kind, library), 4000
    answer = statistics(setting, "sampled", draws)
    last = setting.library.host(list(answer.values())[-1].output_gradients)[:, :, 0, :]
    slopes = last.astype(np.float64) * np.sqrt(draws)
    assert slopes.shape == (draws, N, OUTPUTS)
    products = np.einsum("cno,cnq->cnoq", slopes, slopes)
    expected = list(statistics(setting, "expected").values())[-1].output_gradients
    expected = setting.library.host(expected)[:, :, 0, :].astype(np.float64)
    second = np.einsum("cno,cnq->noq", expected, expected)
    for got, want in ((slopes, np.zeros((N, OUTPUTS))), (products, second)):
        error = np.abs(got.mean(axis=0) - want)
        assert np.all(error <= 5 * got.std(axis=0) / np.sqrt(draws) + 1e-5)


@pytest.mark.parametrize("kind", ["logistic", "tanh_squared"])
def test_sampled_labels_follow_the_uniforms(library, kind):
    setting = make_setting(kind, library)
    first, again, other = (statistics(setting, "sampled", 2, seed=s) for s in (1, 1, 2))
    for name in first:
        one, two, three = (
            library.host(each[name].output_gradients) for each in (first, again, other)
        )
        np.testing.assert_array_equal(one, two)
        assert np.any(one != three)


def test_the_distribution_function_is_inverted(library):
    """Four classes of probability 1/4: the first at which the function exceeds the number."""
    net = Logistic({"weight": library.array(np.zeros((4, 1)))})
    problem = ClosedFormProblem(net)
    numbers = np.array([0.0, 0.249, 0.25, 0.499, 0.5, 0.749, 0.75, np.nextafter(1.0, 0.0)])
    n = numbers.size
    batch = problem.batch((library.array(np.zeros((n, 1))), library.array(np.zeros(n, int))))
    labels = Labels(LabelKind.SAMPLED, lambda positions: numbers.reshape(1, n, positions))
    answer = problem.layer_statistics(batch, [""], labels)[""]
    classes = np.eye(4)[[0, 0, 1, 1, 2, 2, 3, 3]]
    want = (0.25 - classes)[None, :, None, :]
    library.close(answer.output_gradients, want)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_many_outputs_are_sampled_by_default(loss):
    rng = np.random.default_rng(0)
    for outputs, slices in ((32, 32), (33, 7)):
        net = {"squared": LeastSquares, "cross_entropy": Logistic}[loss].random(2, outputs)
        problem = ClosedFormProblem(net)
        y = rng.standard_normal((FEW, outputs)) if loss == "squared" else np.arange(FEW)
        batch = problem.batch((rng.standard_normal((FEW, 2)), y))
        labels = Labels(None, uniforms(7, points=FEW))
        answer = problem.layer_statistics(batch, [""], labels)[""]
        assert answer.output_gradients.shape == (slices, FEW, 1, outputs)


def test_only_what_is_asked_for():
    problem = make_setting("tanh_squared").problem()
    batch = problem.batch(make_setting("tanh_squared").train)
    labels = Labels(LabelKind.GIVEN, uniforms(1))
    assert list(problem.layer_statistics(batch, ["output"], labels)) == ["output"]


def test_statistics_are_fresh():
    """Writing into them changes neither the data nor the problem."""
    setting = make_setting("tanh_squared")
    problem = setting.problem()
    batch = problem.batch(setting.train)
    labels = Labels(LabelKind.GIVEN, uniforms(1))
    before = problem.gradients(batch, list(problem.parameters))
    for each in problem.layer_statistics(batch, ["hidden", "output"], labels).values():
        each.inputs[...] = 0.0
        each.output_gradients[...] = 0.0
    np.testing.assert_array_equal(problem.gradients(batch, list(problem.parameters)), before)


@kinds
def test_values(library, kind):
    setting = make_setting(kind, library)
    names = list(setting.parameters)[::-1]
    want = np.concatenate([setting.parameters[name].ravel() for name in names])
    library.close(setting.problem().values(names), want, 0.0 if library is NUMPY else None)


def test_values_are_fresh():
    problem = ClosedFormProblem(LeastSquares({"weight": np.ones((2, 3))}))
    problem.values(["weight"])[...] = 0.0
    np.testing.assert_array_equal(problem.values(["weight"]), np.ones(6))


def test_images_are_flattened():
    setting = make_setting("logistic")
    x, y = make_data("cross_entropy", N, seed=1)
    problem = setting.problem()
    batch = problem.batch((x.reshape(N, 2, INPUTS // 2), y))
    labels = Labels(LabelKind.GIVEN, uniforms(1))
    assert problem.layer_statistics(batch, [""], labels)[""].inputs.shape == (N, 1, INPUTS)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_columns_of_a_layer(library, transposed):
    """A kernel `(i, o)`, as some frameworks have it, is the same matrix `W`, `(o, i)`."""
    layer = Layer("weight", "bias", inputs=3, outputs=2, transposed=transposed)
    shape = (3, 2) if transposed else (2, 3)
    names, shapes = ("bias", "weight"), {"bias": (2,), "weight": shape}
    (columns,) = columns_of_layers(names, {"layer": layer}, shapes)
    host = np.arange(16.0).reshape(2, 8)
    kernel = host[:, 2:].reshape(2, *shape)
    matrix = np.swapaxes(kernel, 1, 2) if transposed else kernel
    rows = library.array(host)
    got = columns.gather(rows)
    library.close(got, np.concatenate([matrix, host[:, :2, None]], axis=2), 0.0)
    library.close(join_pieces(columns.scatter(got), {}, rows), host, 0.0)
