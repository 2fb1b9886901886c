"""`NystroemSketch`: the sketch as a method, held against dense algebra."""

import pickle
import warnings

import numpy as np
import pytest
from namespaces import NUMPY, NUMPY_FLOAT32
from oracle import gradients
from problems import (
    CURVATURES,
    FEW,
    KINDS,
    MANY,
    REGULARIZATIONS,
    REPRESENTATIVE,
    fitted,
    influence,
    make_setting,
)

from influence_core import (
    ConditioningWarning,
    Direct,
    NystroemSketch,
    OptionError,
    RegularizationError,
)
from influence_core.arrays import normal_rows

FULL = 60  # more than any of the models has parameters


def textbook(matrix, rank, seed, regularization):
    """`(C_nys + λI)⁻¹` with `C_nys = (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ`, dense."""
    size = matrix.shape[0]
    tests, _ = np.linalg.qr(normal_rows(seed, rank, size, np.zeros(())).T)
    images = matrix @ tests
    core = np.linalg.pinv(tests.T @ images, hermitian=True)
    return np.linalg.inv(images @ core @ images.T + regularization * np.eye(size))


@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_the_sketch_is_the_formula(float64_library, kind, curvature, regularization):
    setting = make_setting(kind, float64_library)
    method = NystroemSketch(rank=6, seed=3)
    model = fitted(setting, method, regularization=regularization, second_order_mode=curvature)
    oracle = setting.oracle()
    inverse = textbook(oracle.curvature(curvature), 6, 3, regularization)
    left, right = (
        gradients(setting.parameters, setting.model.loss, *pair)
        for pair in (setting.host_test(), setting.host_train)
    )
    float64_library.close(
        model.influences(*setting.test(), *setting.train), left @ inverse @ right.T, 1e-6
    )


@pytest.mark.parametrize("m", [1, FEW, MANY])
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_full_rank_is_exact(library, kind, curvature, regularization, m):
    setting = make_setting(kind, library)
    options = {"regularization": regularization, "second_order_mode": curvature}
    got = fitted(setting, NystroemSketch(FULL), **options).influences(
        *setting.test(m), *setting.train
    )
    want = setting.oracle().influences(
        *setting.host_test(m),
        *setting.host_train,
        mode=curvature,
        regularization=regularization,
    )
    library.close(got, want, 1e-6 if library.dtype == "float64" else 1e-3)


@pytest.mark.parametrize("curvature", CURVATURES[1:])
@pytest.mark.parametrize("batch_size", [1, 7, 23])
def test_batches_do_not_matter(curvature, batch_size):
    setting = make_setting("tanh_squared")
    options = {"regularization": 1e-3, "second_order_mode": curvature}
    want = fitted(setting, NystroemSketch(8), batch_size=5, **options)
    got = fitted(setting, NystroemSketch(8), batch_size=batch_size, **options)
    sides = (*setting.test(), *setting.train)
    NUMPY.close(got.influences(*sides), want.influences(*sides), 1e-8)


@pytest.mark.parametrize("rank", [3, 20, FULL])
def test_an_indefinite_curvature_is_clipped_and_said(rank):
    setting = make_setting("tanh_squared")
    lowest, highest = np.linalg.eigvalsh(setting.oracle().curvature("hessian"))[[0, -1]]
    assert lowest < -1e-2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = fitted(setting, NystroemSketch(rank), regularization=1e-3)
    told = [str(w.message) for w in caught if w.category is ConditioningWarning]
    assert all(f"NystroemSketch(rank={rank})" in message for message in told)
    if rank > 3:
        assert len(told) == 1
        assert "clipped to zero, down to -" in told[0]
    answer = model.apply_inverse(np.eye(model.n_parameters))
    values = np.linalg.eigvalsh((answer + answer.T) / 2)
    # an inverse of what is positive semi-definite and no larger than C
    assert values.min() >= (1 - 1e-6) / (highest - lowest + 1e-3)
    assert values.max() <= (1 + 1e-6) / 1e-3


def test_a_whole_path_from_one_sketch(float64_library):
    setting = make_setting("logistic", float64_library)
    model = fitted(setting, NystroemSketch(5), regularization=1.0)
    path = model.influences_over([1e-3, 1e-2, 1e7], *setting.test(), *setting.train)
    for index, value in enumerate([1e-3, 1e-2, 1e7]):
        want = model.with_regularization(value).influences(*setting.test(), *setting.train)
        float64_library.close(path[index, ...], float64_library.host(want), 1e-12)
    again = model.with_regularization(1e-3).influences(*setting.test(), *setting.train)
    float64_library.close(again, float64_library.host(path)[0], 1e-12)


@pytest.mark.parametrize("structure", ["layer_wise", "parameter_wise"])
def test_blocks(structure):
    setting = make_setting("tanh_squared")
    options = {
        "regularization": 1e-2,
        "second_order_mode": "gauss_newton",
        "block_structure": structure,
    }
    sides = (*setting.test(), *setting.train)
    got = fitted(setting, NystroemSketch(FULL), **options).influences_by_block(*sides)
    want = fitted(setting, Direct(), **options).influences_by_block(*sides)
    assert list(got) == list(want)
    for name, share in got.items():
        NUMPY.close(share, want[name], 1e-6)


def test_the_seed_decides(library):
    setting = make_setting("tanh_squared", library)
    options = {"regularization": 1e-2, "second_order_mode": "gauss_newton"}
    sides = (*setting.test(), *setting.train)
    one, same, other = (
        library.host(fitted(setting, NystroemSketch(3, seed=s), **options).influences(*sides))
        for s in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.allclose(one, other, rtol=1e-3)


def test_the_report_and_a_pickle():
    setting = make_setting("logistic")
    model = fitted(setting, NystroemSketch(5), regularization=1e-2)
    want = model.influence_factors(*setting.test())
    report = model.report
    assert report.converged.all()
    assert not report.negative_curvature.any()
    assert report.residual_norms.max() < 1e-12
    NUMPY.close(pickle.loads(pickle.dumps(model)).influence_factors(*setting.test()), want, 1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_at_small_regularization(kind):
    single, double = (make_setting(kind, library) for library in (NUMPY_FLOAT32, NUMPY))
    options = {"regularization": 1e-2, "second_order_mode": "gauss_newton"}
    got = fitted(single, NystroemSketch(FULL), **options).influences(*single.test(), *single.train)
    want = fitted(double, Direct(), **options).influences(*double.test(), *double.train)
    NUMPY_FLOAT32.close(got, want, 1e-3)


@pytest.mark.parametrize("rank", [0, -1, 2.5, True, "10", None])
def test_the_rank_is_checked(rank):
    with pytest.raises(OptionError, match="`rank` must be an integer of one or more"):
        NystroemSketch(rank)


@pytest.mark.parametrize("regularization", [0, None, 0.0, {"": 0.0}, {"": None}, {}])
def test_a_positive_regularization_is_needed(regularization):
    setting = make_setting("logistic")
    with pytest.raises(RegularizationError, match=r"above zero|must name every block"):
        influence(setting, NystroemSketch(3), regularization=regularization).fit(setting.loader())
    model = fitted(setting, NystroemSketch(3), regularization=0.5)
    with pytest.raises(RegularizationError, match=r"above zero|must name every block"):
        model.with_regularization(regularization)
    with pytest.raises(RegularizationError, match=r"above zero|must name every block"):
        model.influences_over([1.0, regularization], *setting.test())


def test_every_block_must_be_named():
    setting = make_setting("tanh_squared")
    options = {"block_structure": "layer_wise", "second_order_mode": "gauss_newton"}
    with pytest.raises(RegularizationError, match=r"missing are \['output'\]"):
        fitted(setting, NystroemSketch(3), regularization={"hidden": 0.1}, **options)
