"""All exact routes agree: every call, either method, few and many points, both modes."""

import numpy as np
import pytest
from loaders import CountingLoader
from namespaces import NUMPY_FLOAT32
from problems import (
    FEW,
    MANY,
    REGULARIZATIONS,
    N,
    fitted,
    influence,
    make_setting,
    may_be_indefinite,
    tight,
)

from influence_core import (
    BlockMode,
    Direct,
    InfluenceMode,
    SecondOrderMode,
)

pytestmark = may_be_indefinite

OPTIONS = {
    "regularization": 1e-2,
    "second_order_mode": "generalized_gauss_newton",
    "block_structure": "layer_wise",
}
METHODS = {"direct": Direct(), "cg": tight(), "block cg": tight(solve_simultaneously=True)}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
modes = pytest.mark.parametrize("mode", ["up", "perturbation"])


def close(got, want, tolerance=1e-9):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@modes
def test_routes_agree_on_every_library(library, mode):
    setting = make_setting("tanh_squared", library)
    model = fitted(setting, **OPTIONS)
    want = library.host(model.influences(*setting.test(), *setting.train, mode=mode))
    factors = model.influence_factors(*setting.test())
    tolerance = library.accuracy(1e-2)
    library.close(
        model.influences_from_factors(factors, *setting.train, mode=mode), want, tolerance
    )
    cg = fitted(setting, tight(library), batch_size=12, **OPTIONS)
    library.close(cg.influences(*setting.test(), *setting.train, mode=mode), want, tolerance)


@methods
def test_apply_inverse_undoes_the_matrix(method):
    setting = make_setting("tanh_squared")
    model = fitted(setting, method, **OPTIONS)
    damped = setting.oracle().damped(
        OPTIONS["second_order_mode"],
        OPTIONS["regularization"],
        {"hidden": ["hidden.weight", "hidden.bias"], "output": ["output.weight", "output.bias"]},
    )
    close(model.apply_inverse(damped), np.eye(len(damped)))


def test_self_influences_on_every_library(library):
    setting = make_setting("logistic", library)
    model = fitted(setting, regularization=1e-2)
    got = model.self_influences(batch for batch in setting.loader())  # one pass is enough
    want = setting.oracle().influences(*setting.host_train, regularization=1e-2)
    library.close(got, np.diag(want), library.accuracy(1e-2))


@methods
@pytest.mark.parametrize("m", [1, FEW, MANY])
def test_influences_over_is_separate_calls(method, m):
    setting = make_setting("tanh_squared")
    model = fitted(setting, method, **OPTIONS)
    regularizations = [*REGULARIZATIONS, {"hidden": 0.5, "output": 0.1}]
    points = (*setting.test(m), *setting.train)
    before = model.influences(*points)
    got = model.influences_over(regularizations, *points)
    over = dict(model.report)
    assert got.shape == (4, m, N)
    np.testing.assert_array_equal(model.influences(*points), before)
    for index, (scores, regularization) in enumerate(zip(got, regularizations, strict=True)):
        close(scores, model.with_regularization(regularization).influences(*points))
        for name, report in model.report.items():
            part = np.split(over[name].residual_norms, len(regularizations))[index]
            np.testing.assert_allclose(part, report.residual_norms, rtol=5, atol=1e-11)


def test_influences_over_on_every_library(library):
    setting = make_setting("logistic", library)
    model = fitted(setting)
    got = model.influences_over((0.1, np.float64(0.5)), *setting.test())
    want = [
        setting.oracle().influences(*setting.host_test(), regularization=regularization)
        for regularization in (0.1, 0.5)
    ]
    library.close(got, np.stack(want), library.accuracy())


def test_influences_over_measures_its_residuals():
    """In float32 the eigenpairs are rounded: a report that knew only them would be too good."""
    setting = make_setting("tanh_squared", NUMPY_FLOAT32)
    model = fitted(setting, second_order_mode="gauss_newton")
    model.influences_over([1e-2], *setting.test(), *setting.train)
    over = model.report.residual_norms
    model.with_regularization(1e-2).influences(*setting.test(), *setting.train)
    assert np.all(over > model.report.residual_norms / 4)


def test_images_have_perturbations_of_images(library):
    setting = make_setting("tanh_squared", library)
    model = fitted(setting, regularization=0.5, second_order_mode="gauss_newton")
    x, y = setting.host_train
    x_test, y_test = setting.host_test()
    flat = library.host(model.influences(*setting.test(), *setting.train, mode="perturbation"))
    images = model.influences(
        *(library.array(a) for a in (x_test.reshape(-1, 2, 2), y_test, x.reshape(-1, 2, 2), y)),
        mode="perturbation",
    )
    library.close(images, flat.reshape(FEW, N, 2, 2), library.tolerance)


def test_one_training_point(library):
    setting = make_setting("tanh_squared", library)
    point = tuple(library.array(a[:1]) for a in setting.host_train)
    model = influence(setting, regularization=1e-1, second_order_mode="gauss_newton").fit([point])
    got = library.host(model.influences(*point))
    # C = g gᵀ: the score of the point is s / (s + λ) with s = ‖g‖²
    assert got.shape == (1, 1)
    gradient = library.host(
        setting.problem().gradients(setting.problem().batch(point), [*setting.parameters])
    )
    square = np.sum(gradient.astype(np.float64) ** 2)
    np.testing.assert_allclose(got, square / (square + 0.1), rtol=1e-4)


@pytest.mark.parametrize("structure", [*BlockMode, *map(str, BlockMode)])
def test_modes_are_members_or_plain_strings(structure):
    setting = make_setting("logistic")
    for curvature in SecondOrderMode:
        for mode in InfluenceMode:
            models = [
                fitted(setting, regularization=0.1, block_structure=structure, second_order_mode=c)
                for c in (curvature, curvature.value)
            ]
            a, b = (
                model.influences(*setting.test(), mode=m)
                for model, m in zip(models, (mode, mode.value), strict=True)
            )
            np.testing.assert_array_equal(a, b)


def test_what_the_enumerations_hold():
    assert [*SecondOrderMode] == ["hessian", "gauss_newton", "generalized_gauss_newton"]
    assert [*BlockMode] == ["full", "layer_wise", "parameter_wise"]
    assert {m.name: m.value for m in InfluenceMode} == {"Up": "up", "Perturbation": "perturbation"}


@pytest.mark.parametrize(("m", "solved"), [(FEW, FEW), (MANY, N)])
def test_the_smaller_side_is_solved(m, solved):
    setting = make_setting("logistic")
    model = fitted(setting, tight(), regularization=1e-2)
    model.influences(*setting.test(m), *setting.train)
    assert model.report.converged.size == solved


@pytest.mark.parametrize("structure", ["full", "layer_wise", "parameter_wise"])
def test_direct_reads_the_data_in_fit_only(structure):
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader())
    model = influence(setting, regularization=5.0, block_structure=structure).fit(loader)
    assert loader.since() == 1 + len(model.block_names)  # one to check, one for every matrix
    model.influences(*setting.test(), *setting.train)
    model.influences(*setting.test(), *setting.train, mode="perturbation")
    model.influences_over([1.0, 2.0], *setting.test())
    model.with_regularization(7.0).apply_inverse(np.ones((2, model.n_parameters)))
    assert loader.since() == 0
