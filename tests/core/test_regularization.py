"""One meaning of λ for every method: `C + λI`, kept apart from whatever `fit` prepared."""

import numpy as np
import pytest
from loaders import CountingLoader
from problems import REGULARIZATIONS, fitted, influence, make_setting, tight

from influence_core import Direct, JacobiPreconditioner, NystroemPreconditioner, RegularizationError

METHODS = {
    "direct": Direct(),
    "cg": tight(),
    "block cg": tight(solve_simultaneously=True),
    "jacobi": tight(preconditioner=JacobiPreconditioner()),
    "nystroem": tight(preconditioner=NystroemPreconditioner(8)),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
MODE = "generalized_gauss_newton"
BLOCKS = {"hidden": ["hidden.weight", "hidden.bias"], "output": ["output.weight", "output.bias"]}


def model_of(setting, method=METHODS["direct"], **options):
    return fitted(setting, method, second_order_mode=MODE, **options)


@methods
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
def test_added_to_the_diagonal(method, regularization):
    setting = make_setting("tanh_cross_entropy")
    model = model_of(setting, method, regularization=regularization)
    want = setting.oracle().influence_factors(
        *setting.host_test(), mode=MODE, regularization=regularization
    )
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


@methods
def test_there_and_back_is_the_identity(method):
    setting = make_setting("tanh_squared")
    model = model_of(setting, method, regularization=1e-3)
    before = model.influences(*setting.test(), *setting.train)
    far = model.with_regularization(1e7).influences(*setting.test(), *setting.train)
    after = model.with_regularization(1e-3).influences(*setting.test(), *setting.train)
    assert np.abs(far).max() < 1e-5 < np.abs(before).max()
    np.testing.assert_array_equal(before, after)


@methods
def test_a_new_value_refits_nothing(method):
    setting = make_setting("least_squares")
    loader = CountingLoader(setting.loader())
    model = influence(setting, method, regularization=1e-2).fit(loader)
    loader.since()
    assert model.with_regularization(0.1) is model
    assert loader.since() == 0
    want = setting.oracle().influence_factors(*setting.host_test(), regularization=0.1)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


def test_before_fit():
    setting = make_setting("tanh_squared")
    early = influence(setting, second_order_mode=MODE).with_regularization(0.1)
    early.fit(setting.loader())
    late = model_of(setting).with_regularization(0.1)
    np.testing.assert_array_equal(
        early.influence_factors(*setting.test()), late.influence_factors(*setting.test())
    )


def numbers(library):
    yield from (1, np.int64(1), np.float32(1.0), np.float64(1.0), np.array(1.0), np.array(1))
    yield library.array(1.0)
    yield library.array(np.asarray(1))


def test_numbers_of_any_kind(library):
    setting = make_setting("least_squares", library)
    model = fitted(setting, regularization=1.0)
    want = library.host(model.influence_factors(*setting.test()))
    for number in numbers(library):
        for value in (number, {"": number}):
            got = model.with_regularization(value).influence_factors(*setting.test())
            np.testing.assert_array_equal(library.host(got), want)


@pytest.mark.parametrize(
    ("value", "by_block"),
    [
        ({"output": 0.5}, {"hidden": 0.0, "output": 0.5}),
        ({"output": 0.5, "hidden": 0.1}, {"hidden": 0.1, "output": 0.5}),
        ({"output": None, "hidden": 2}, {"hidden": 2.0, "output": 0.0}),
        (0.25, {"hidden": 0.25, "output": 0.25}),
    ],
    ids=str,
)
@pytest.mark.parametrize("when", ["at first", "before fit", "after fit"])
@pytest.mark.filterwarnings("ignore:.*singular to working precision")
def test_one_for_each_block(value, by_block, when):
    setting = make_setting("tanh_squared")
    model = influence(
        setting,
        regularization=value if when == "at first" else {"hidden": 9.0},
        second_order_mode="hessian",
        block_structure="layer_wise",
        penalty=dict.fromkeys(setting.parameters, 5.0),
    )
    if when == "before fit":
        model.with_regularization(value)
    model.fit(setting.loader())
    if when == "after fit":
        model.with_regularization(value)
    truth = setting.oracle(penalty=dict.fromkeys(setting.parameters, 5.0))
    want = truth.influences(
        *setting.host_test(), *setting.host_train, regularization=by_block, blocks=BLOCKS
    )
    setting.library.close(model.influences(*setting.test(), *setting.train), want, 1e-8)


@pytest.mark.parametrize("value", [None, 0, {}, {"": None}], ids=str)
def test_none_is_zero(value):
    setting = make_setting("least_squares")
    want = setting.oracle().influence_factors(*setting.host_test())
    model = fitted(setting, regularization=value)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


REFUSED = [
    *(-1e-9, -1, np.nan, np.inf, -np.inf, True, False, np.True_, np.array(True)),
    *("0.1", b"1", [0.1], (0.1,), np.array([0.1]), 1j, ()),
]


@pytest.mark.parametrize("value", REFUSED, ids=repr)
@pytest.mark.parametrize("fit", [False, True])
def test_what_is_no_regularization(value, fit):
    setting = make_setting("least_squares")
    model = influence(setting, regularization=0.5)
    if fit:
        model.fit(setting.loader())
    for wrong, argument in ((value, "regularization"), ({"": value}, r"regularization\[''\]")):
        with pytest.raises(RegularizationError, match=f"`{argument}` must be a finite number"):
            model.with_regularization(wrong)
        with pytest.raises(RegularizationError):
            influence(setting, regularization=wrong)
    model.fit(setting.loader())  # the refused values have left nothing behind
    want = setting.oracle().influence_factors(*setting.host_test(), regularization=0.5)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


@pytest.mark.parametrize("structure", ["layer_wise", BLOCKS])
def test_unknown_blocks_are_refused(structure):
    setting = make_setting("tanh_squared")
    words = r"got \['hiden'\]. The blocks are \['hidden', 'output'\]"
    wrong = {"hiden": 0.1, "output": 0.1}
    with pytest.raises(RegularizationError, match=words):
        influence(setting, regularization=wrong, block_structure=structure)
    model = influence(setting, regularization=0.3, block_structure=structure)
    with pytest.raises(RegularizationError, match=words):
        model.with_regularization(wrong)
    with pytest.raises(RegularizationError, match=words):
        model.fit(setting.loader()).with_regularization(wrong)


def test_messages_list_the_blocks():
    setting = make_setting("tanh_squared")
    for value in (-1.0, {"hidden": -1.0}, {"nowhere": 1.0}):
        with pytest.raises(RegularizationError, match=r"The blocks are \['hidden', 'output'\]"):
            influence(setting, block_structure="layer_wise", regularization=value)
