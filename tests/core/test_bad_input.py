"""Bad input: an exception of the library that names the argument, what was got, the remedy."""

import numpy as np
import pytest
from loaders import ChangingLoader, CountingLoader
from methods import ALL, CASES, named, parameters
from namespaces import NUMPY
from problems import FEW, fitted, influence, make_setting, tight

from influence_core import (
    ConvergenceWarning,
    DataError,
    DataTypeError,
    Direct,
    Influence,
    InfluenceError,
    InfluenceFunctionModel,
    NonFiniteError,
    NotFittedException,
    OptionError,
    UnsupportedInfluenceModeException,
)
from influence_core.testing import BACKEND

SETTING = make_setting("tanh_squared")
X, Y = SETTING.train
TEST = SETTING.test()
OPTIONS = {"regularization": 5.0, "second_order_mode": "generalized_gauss_newton"}
cases = pytest.mark.parametrize("case", CASES)

CALLS = {
    "influences": TEST,
    "influences_by_block": TEST,
    "influence_factors": TEST,
    "influence_factors_by_block": TEST,
    "influences_from_factors": (np.ones((1, 43)), *TEST),
    "influences_from_factors_by_block": ({"": np.ones((1, 43))}, *TEST),
    "influences_over": ([5.0], *TEST),
    "self_influences": ([TEST],),
    "apply_inverse": (np.ones((1, 43)),),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_needs_a_fit(name):
    class Mine(Influence):
        pass

    for cls in (Influence, Mine):
        model = cls(SETTING.model, None, Direct(), backend=BACKEND)
        words = rf"`{cls.__name__}\.{name}` needs a fitted instance.*Call `fit\(data\)`"
        with pytest.raises(NotFittedException, match=words):
            getattr(model, name)(*CALLS[name])


@pytest.mark.parametrize("name", CALLS)
def test_every_call_works_after_it(name):
    getattr(fitted(SETTING, **OPTIONS), name)(*CALLS[name])


def test_report_needs_a_fit():
    with pytest.raises(NotFittedException, match=r"`Influence\.report`"):
        _ = influence(SETTING).report
    assert issubclass(NotFittedException, ValueError)
    assert isinstance(InfluenceFunctionModel.fit_required, type(lambda: None))


def spoilt(a, value):
    a = a.copy()
    a[2, 1] = value
    return a


@cases
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(case, value):
    model = case.influence(SETTING, **OPTIONS)
    for pair in ((spoilt(X, value), Y), (X, spoilt(Y, value))):
        with pytest.raises(DataError, match=r"`fit\(data\), batch 2`: `[xy]` must hold finite"):
            model.fit([(X, Y), pair])
    model.fit([(X, Y)])
    bad = spoilt(X, value), Y
    for call, arguments, where in [
        ("influences", bad, r"influences\(x_test, y_test\)"),
        ("influences", (*TEST, *bad), r"influences\(…, x, y\)"),
        ("influence_factors", bad, r"influence_factors\(x, y\)"),
        ("influences_from_factors", (np.ones((1, 43)), *bad), r"influences_from_factors\(…, x, y"),
        ("self_influences", ([(X, Y), bad],), r"self_influences\(loader\), batch 2"),
        ("influences_over", ([1.0], *bad), r"influences_over\(x_test, y_test\)"),
    ]:
        with pytest.raises(DataError, match=rf"`{where}.*`: `x` must hold finite"):
            getattr(model, call)(*arguments)


@cases
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_factors_that_are_not_finite(case, value):
    model = case.fitted(SETTING, **OPTIONS)
    factors = np.ones((3, 43))
    factors[1, 1] = value
    with pytest.raises(DataError, match=r"`apply_inverse\(rows\)` needs finite"):
        model.apply_inverse(factors)
    with pytest.raises(
        DataError, match=r"`influences_from_factors\(z_test_factors, …\)` needs fin"
    ):
        model.influences_from_factors(factors, X, Y)


@cases
def test_gradients_that_overflow(case):
    setting = make_setting("least_squares")
    model = case.fitted(setting, **OPTIONS)
    x, y = setting.test()
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="NaN or infin"):
        model.influences(1e200 * x, y, *setting.train)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="NaN or infin"):
        model.influences(*setting.train, 1e200 * x, 1e200 * y)


# What needs no product with the curvature before a right-hand side is there.
LATE = ("cg", "block cg", "precomputed cg", "harmonic mean")


@pytest.mark.parametrize("case", parameters([case for case in ALL if case.name not in LATE]))
def test_curvature_that_overflows(case):
    setting = make_setting("least_squares")
    x, y = setting.train
    model = case.influence(setting, **OPTIONS)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=r"(are|hold) NaN or inf"):
        model.fit([(1e200 * x, y)])
    assert not model.is_fitted


@pytest.mark.parametrize("case", named(*LATE))
def test_curvature_that_overflows_in_a_solve(case):
    setting = make_setting("least_squares")
    x, y = setting.train
    with np.errstate(all="ignore"):
        model = case.influence(setting, **OPTIONS).fit([(1e200 * x, y)])
    said = (
        pytest.raises(NonFiniteError, match="NaN or infinity")
        if case.name == "harmonic mean"
        else pytest.warns(ConvergenceWarning, match=f"{FEW} of {FEW} right-hand sides have not")
    )
    with np.errstate(all="ignore"), said:
        model.influence_factors(*setting.test())


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ([], DataError, r"`fit\(data\)` needs at least one point; the data yielded none"),
        (None, DataTypeError, "needs an iterable of .* batches; got NoneType"),
        (3, DataTypeError, "needs an iterable of .* batches; got int"),
        ([(X, Y[:-1])], DataError, "same first axis"),
        ([X], DataError, "yield pairs"),
        ([(X[:0], Y[:0])], DataError, "one point or more"),
        ([(X, Y, np.zeros(len(X)))], DataError, "weights with a positive sum; got 0.0"),
        ([(X.astype(int), Y)], DataTypeError, "floating-point"),
    ],
)
@cases
def test_data_of_fit(data, error, words, case):
    model = case.influence(SETTING, **OPTIONS)
    with pytest.raises(error, match=words):
        model.fit(data)
    assert not model.is_fitted


@pytest.mark.parametrize("make", [lambda: ((X, Y) for _ in "a"), lambda: iter([(X, Y)])])
def test_what_can_be_iterated_once_is_refused(make):
    with pytest.raises(DataTypeError, match=r"iterated again; got \w+, which is used up"):
        influence(SETTING, **OPTIONS).fit(make())


def test_loaders_that_index_are_iterable():
    class Indexed:
        def __getitem__(self, index):
            return SETTING.loader()[index]

    want = fitted(SETTING, **OPTIONS).influence_factors(*TEST)
    got = influence(SETTING, **OPTIONS).fit(Indexed()).influence_factors(*TEST)
    np.testing.assert_array_equal(got, want)


def test_asking_whether_a_loader_can_be_iterated_does_not_start_it():
    """To start a pass moves the random state of some loaders."""
    loader = CountingLoader(SETTING.loader())
    influence(SETTING, tight(), **OPTIONS).fit(loader)
    assert loader.passes == 1


def test_loaders_that_change_are_caught():
    words = r"same points in every pass; `fit` saw 23, this pass 20.*starts afresh"
    model = influence(SETTING, **OPTIONS)
    with pytest.raises(DataError, match=words):
        model.fit(ChangingLoader(SETTING.loader()))
    assert not model.is_fitted
    for precompute in (False, True):
        model = influence(SETTING, tight(precompute_grad=precompute), **OPTIONS)
        model.fit(ChangingLoader(SETTING.loader()))  # reads once; the solve reads again
        with pytest.raises(DataError, match=words):
            model.influence_factors(*TEST)


@pytest.mark.parametrize("data", [3, None])
def test_self_influences_need_batches(data):
    model = fitted(SETTING, **OPTIONS)
    with pytest.raises(DataTypeError, match=r"`self_influences\(loader\)` needs an iterable"):
        model.self_influences(data)
    with pytest.raises(DataError, match=r"`self_influences\(loader\)` needs at least one batch"):
        model.self_influences([])


@pytest.mark.parametrize("name", ["influences", "influences_by_block", "influences_over"])
@pytest.mark.parametrize(("given", "missing"), ["xy", "yx"])
def test_x_and_y_go_together(name, given, missing):
    model = fitted(SETTING, **OPTIONS)
    arguments = ([0.1], *TEST) if name == "influences_over" else TEST
    with pytest.raises(DataError, match=f"`{name}` needs both.*got `{given}` without `{missing}`"):
        getattr(model, name)(*arguments, **{given: {"x": X, "y": Y}[given]})
    assert issubclass(DataError, ValueError)


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("influences")][:4])
@pytest.mark.parametrize("mode", ["UP", "sideways", None, 1, []], ids=str)
def test_unknown_modes(name, mode):
    model = fitted(SETTING, **OPTIONS)
    words = "`mode` must be a member of InfluenceMode, or one of 'up', 'perturbation'; got"
    with pytest.raises(UnsupportedInfluenceModeException, match=words):
        getattr(model, name)(*CALLS[name], mode=mode)
    assert issubclass(UnsupportedInfluenceModeException, ValueError)


@pytest.mark.parametrize("mode", ["HESSIAN", "fisher", None, 3])
def test_unknown_curvatures(mode):
    with pytest.raises(OptionError, match="'hessian', 'gauss_newton', 'generalized_gauss_newton'"):
        influence(SETTING, second_order_mode=mode)


@pytest.mark.parametrize("shape", [(43,), (FEW, 42), (FEW, 44), (1, FEW, 43), ()])
def test_factors_of_the_wrong_shape(shape):
    model = fitted(SETTING, **OPTIONS)
    rows = np.ones(shape)
    words = r"needs factors of shape \(m, 43\) with m of one or more; got \("
    for mode in ("up", "perturbation"):
        with pytest.raises(DataError, match="`influences_from_factors.*" + words):
            model.influences_from_factors(rows, X, Y, mode=mode)
    with pytest.raises(DataError, match=r"`apply_inverse\(rows\)` " + words):
        model.apply_inverse(rows)


def test_factors_of_the_wrong_blocks():
    model = fitted(SETTING, block_structure="layer_wise", **OPTIONS)
    factors = dict(model.influence_factors_by_block(*TEST))
    for wrong in ({"hidden": factors["hidden"]}, {**factors, "extra": factors["hidden"]}):
        words = r"factors of every block; got .*the blocks are \['hidden', 'output'\]"
        with pytest.raises(DataError, match=words):
            model.influences_from_factors_by_block(wrong, X, Y)
    swapped = {"hidden": factors["output"], "output": factors["hidden"]}
    with pytest.raises(DataError, match="needs factors of shape"):
        model.influences_from_factors_by_block(swapped, X, Y)


def test_factors_may_be_nested_numbers():
    model = fitted(SETTING, **OPTIONS)
    rows = np.random.default_rng(0).standard_normal((2, 43))
    NUMPY.close(model.apply_inverse(rows.tolist()), model.apply_inverse(rows), 1e-15)


@pytest.mark.parametrize("regularizations", [[], ()])
def test_influences_over_nothing(regularizations):
    with pytest.raises(OptionError, match="at least one regularisation"):
        fitted(SETTING, **OPTIONS).influences_over(regularizations, *TEST)


@pytest.mark.parametrize("regularizations", [0.1, None, "1", {"": 0.1}, [0.1, -1.0]], ids=str)
def test_influences_over_what_are_no_regularizations(regularizations):
    with pytest.raises(InfluenceError):
        fitted(SETTING, **OPTIONS).influences_over(regularizations, *TEST)


@pytest.mark.parametrize("method", [Direct, "direct", None])
def test_methods_are_instances(method):
    with pytest.raises(OptionError, match=r"`method` must be a Method such as Direct\(\)"):
        Influence(SETTING.model, None, method, backend=BACKEND)


@pytest.mark.parametrize("value", [0, -5])
def test_memory_is_checked(value):
    with pytest.raises(OptionError, match="`max_memory` must be"):
        influence(SETTING, max_memory=value, **OPTIONS).fit(SETTING.loader())


@cases
def test_memory_limit_changes_no_number(case):
    want = case.fitted(SETTING, **OPTIONS).influences(*TEST, X, Y)
    got = case.fitted(SETTING, max_memory=10_000, **OPTIONS).influences(*TEST, X, Y)
    NUMPY.close(got, want, 1e-12)
