"""EK-FAC against a dense reference that is built point by point with `np.kron`."""

import dataclasses
import pickle
from typing import ClassVar

import numpy as np
import oracle
import pytest
from abilities import BARE
from loaders import CountingLoader
from namespaces import NUMPY, NUMPY_FLOAT32, STRICT, STRICT_DEVICE, STRICT_FLOAT32, TORCH
from oracle import FactoredOracle, Oracle
from problems import (
    FEW,
    INPUTS,
    KINDS,
    MANY,
    OUTPUTS,
    REGULARIZATIONS,
    N,
    fitted,
    influence,
    make_setting,
)

from influence_core import (
    ConditioningWarning,
    Direct,
    Influence,
    OptionError,
)
from influence_core.arrays import exchange_for, namespace
from influence_core.blocks import Block
from influence_core.curvature import GaussNewton
from influence_core.errors import (
    CapabilityError,
    NonFiniteError,
    NotImplementedLayerRepresentationException,
)
from influence_core.layer_check import CHECKED
from influence_core.methods.ekfac import Ekfac
from influence_core.modes import LabelKind
from influence_core.objective import Objective
from influence_core.plugins import BackendSpec
from influence_core.problem import Layer, LayerStatistics
from influence_core.testing import (
    BACKEND,
    ClosedFormProblem,
    CrossEntropy,
    LeastSquares,
    Logistic,
    Squared,
)

kinds = pytest.mark.parametrize("kind", KINDS)
updates = pytest.mark.parametrize("update_diagonal", [False, True], ids=["kfac", "ekfac"])
both_labels = pytest.mark.parametrize("labels", ["expected", "given"])
needs_torch = pytest.mark.skipif(not TORCH.installed, reason="torch is not installed")

NETWORK = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
WEIGHTS = np.random.default_rng(3).uniform(0.0, 3.0, N)
WEIGHTS[4] = 0.0

STRUCTURES = {
    "full": ("full", None),
    "layer_wise": ("layer_wise", {"hidden": NETWORK[:2], "output": NETWORK[2:]}),
    "parameter_wise": ("parameter_wise", {name: [name] for name in NETWORK}),
    "custom": ("custom", {"b": [NETWORK[3], NETWORK[0]], "a": [NETWORK[2], NETWORK[1]]}),
    "bias left out": ("custom", {"only": [NETWORK[0], NETWORK[2], NETWORK[3]]}),
    "weight left out": ("custom", {"only": [NETWORK[0], NETWORK[1], NETWORK[3]]}),
    "layer left out": ("custom", {"only": list(NETWORK[2:])}),
}


def reference(setting, **options):
    return FactoredOracle(setting.parameters, setting.model.loss, *setting.host_train, **options)


def accuracy(library):
    return 1e-8 if library.dtype == "float64" else 5e-3


def without_biases(setting):
    parameters = {k: v for k, v in setting.model.parameters.items() if "weight" in k}
    return dataclasses.replace(
        setting, model=dataclasses.replace(setting.model, parameters=parameters)
    )


@kinds
@updates
@both_labels
def test_every_library(library, kind, update_diagonal, labels):
    setting = make_setting(kind, library)
    truth = reference(setting, update_diagonal=update_diagonal, labels=labels)
    model = fitted(setting, Ekfac(update_diagonal, labels=labels))
    for regularization in REGULARIZATIONS:
        model.with_regularization(regularization)
        want = truth.influence_factors(*setting.host_test(), regularization=regularization)
        library.close(model.influence_factors(*setting.test()), want, accuracy(library))
        assert model.report.converged.all()
        scale = np.abs(
            oracle.gradients(setting.parameters, setting.model.loss, *setting.host_test())
        )
        assert model.report.residual_norms.max() < 1e-3 * scale.max()


@kinds
@updates
@pytest.mark.parametrize("m", [1, FEW, MANY])
@pytest.mark.parametrize("mode", ["up", "perturbation"])
def test_both_modes(kind, update_diagonal, m, mode):
    setting = make_setting(kind)
    points = (*setting.host_test(m), *setting.host_train)
    model = fitted(setting, Ekfac(update_diagonal), regularization=1e-3)
    truth = reference(setting, update_diagonal=update_diagonal)
    want = truth.influences(*points, mode, regularization=1e-3)
    setting.library.close(model.influences(*points, mode=mode), want, 1e-8)


@updates
@pytest.mark.parametrize("kind", KINDS)
def test_without_biases(kind, update_diagonal):
    setting = without_biases(make_setting(kind))
    truth = reference(setting, update_diagonal=update_diagonal)
    model = fitted(setting, Ekfac(update_diagonal), regularization=1e-2)
    want = truth.influence_factors(*setting.host_test(), regularization=1e-2)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


def test_one_bias_only():
    setting = make_setting("tanh_cross_entropy")
    parameters = {k: v for k, v in setting.model.parameters.items() if k != "hidden.bias"}
    model = dataclasses.replace(setting.model, parameters=parameters)
    setting = dataclasses.replace(setting, model=model)
    got = fitted(setting, Ekfac(True), regularization=1e-2).influence_factors(*setting.test())
    want = reference(setting, update_diagonal=True)
    want = want.influence_factors(*setting.host_test(), regularization=1e-2)
    setting.library.close(got, want, 1e-8)


@updates
@pytest.mark.parametrize("case", STRUCTURES)
def test_block_structures(case, update_diagonal):
    structure, blocks = STRUCTURES[case]
    setting = make_setting("tanh_cross_entropy")
    model = fitted(
        setting,
        Ekfac(update_diagonal),
        block_structure=blocks if structure == "custom" else structure,
        regularization=1e-2,
    )
    truth = reference(setting, update_diagonal=update_diagonal, structure=blocks)
    options = {"regularization": 1e-2, "blocks": blocks}
    want = truth.influence_factors(*setting.host_test(), **options)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)
    points = (*setting.test(), *setting.train)
    shares = truth.influences_by_block(*setting.host_test(), *setting.host_train, **options)
    got = model.influences_by_block(*points)
    assert list(got) == list(shares)
    for name, share in shares.items():
        setting.library.close(got[name], share, 1e-8)


@updates
def test_any_order_of_parameters(update_diagonal):
    """Columns follow the model's order, biases before weights and layers crosswise included."""
    setting = make_setting("tanh_cross_entropy")
    order = ["output.bias", "hidden.weight", "output.weight", "hidden.bias"]
    parameters = {name: setting.model.parameters[name] for name in order}
    shuffled = dataclasses.replace(
        setting, model=dataclasses.replace(setting.model, parameters=parameters)
    )
    method, options = Ekfac(update_diagonal), {"regularization": 1e-2}
    got = fitted(shuffled, method, **options).influence_factors(*setting.test())
    want = fitted(setting, method, **options).influence_factors(*setting.test())
    places = oracle.columns(setting.parameters, order)
    np.testing.assert_allclose(got, want[:, places], rtol=1e-9, atol=1e-12)


@updates
@pytest.mark.parametrize("labels", ["expected", "sampled", "given"])
@pytest.mark.parametrize("kind", ["tanh_cross_entropy", "tanh_squared"])
def test_batch_size_does_not_matter(kind, labels, update_diagonal):
    setting = make_setting(kind)
    method = Ekfac(update_diagonal, labels=labels, draws=3, seed=5)
    options = {"regularization": 1e-3}
    want = fitted(setting, method, batch_size=N, **options).influence_factors(*setting.test())
    for batch_size in (1, 7):
        model = fitted(setting, method, batch_size=batch_size, **options)
        setting.library.close(model.influence_factors(*setting.test()), want, 1e-10)


@updates
@both_labels
def test_weights_of_points(update_diagonal, labels):
    setting = make_setting("tanh_cross_entropy")
    x, y = setting.host_train
    loader = [(x[s], y[s], WEIGHTS[s]) for s in (slice(0, 4), slice(4, 5), slice(5, N))]
    method = Ekfac(update_diagonal, labels=labels)
    model = influence(setting, method, regularization=1e-2).fit(loader)
    truth = reference(setting, update_diagonal=update_diagonal, labels=labels, weights=WEIGHTS)
    want = truth.influence_factors(*setting.host_test(), regularization=1e-2)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


@pytest.mark.parametrize("penalty", [dict.fromkeys(NETWORK, 0.3), {"hidden.weight": 0.5}])
@updates
def test_penalty_of_the_objective(update_diagonal, penalty):
    setting = make_setting("tanh_cross_entropy")
    model = fitted(setting, Ekfac(update_diagonal), penalty=penalty, regularization=1e-2)
    truth = reference(setting, update_diagonal=update_diagonal, penalty=penalty)
    want = truth.influence_factors(*setting.host_test(), regularization=1e-2)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


def test_uniform_penalty_is_more_regularization():
    setting = make_setting("tanh_cross_entropy")
    penalty = dict.fromkeys(NETWORK, 0.3)
    got = fitted(setting, Ekfac(True), penalty=penalty, regularization=0.2)
    want = fitted(setting, Ekfac(True), regularization=0.5).influence_factors(*setting.test())
    setting.library.close(got.influence_factors(*setting.test()), want)


@pytest.mark.parametrize("update_diagonal", [False, True])
def test_exact_for_least_squares(update_diagonal):
    """`S = I` at expected labels: the factored Fisher is the generalised Gauss–Newton matrix."""
    setting = make_setting("least_squares")
    points = (*setting.test(), *setting.train)
    want = fitted(
        setting, second_order_mode="generalized_gauss_newton", regularization=1e-3
    ).influences(*points)
    got = fitted(setting, Ekfac(update_diagonal), regularization=1e-3).influences(*points)
    setting.library.close(got, want, 1e-8)


@updates
@kinds
def test_one_training_point(kind, update_diagonal):
    setting = make_setting(kind)
    x, y = (a[:1] for a in setting.host_train)
    setting = dataclasses.replace(setting, host_train=(x, y))
    model = influence(setting, Ekfac(update_diagonal), regularization=1e-2).fit([(x, y)])
    truth = reference(setting, update_diagonal=update_diagonal)
    want = truth.influence_factors(*setting.host_test(), regularization=1e-2)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


@updates
def test_one_point_determines_its_own_gradient(update_diagonal):
    """With given labels, one point and one layer, `C = ∇ℓ ∇ℓᵀ`: Direct solves the same system."""
    setting = make_setting("logistic")
    x, y = (a[:1] for a in setting.host_train)
    options = {"regularization": 1e-2}
    method = Ekfac(update_diagonal, labels="given")
    got = influence(setting, method, **options).fit([(x, y)])
    want = influence(setting, Direct(), second_order_mode="gauss_newton", **options).fit([(x, y)])
    rows = np.random.default_rng(0).standard_normal((3, got.n_parameters))
    setting.library.close(got.apply_inverse(rows), want.apply_inverse(rows), 1e-10)


# labels


@updates
@pytest.mark.parametrize("kind", ["tanh_cross_entropy", "tanh_squared"])
def test_sampled_labels_converge_to_the_expected_ones(kind, update_diagonal):
    """The error falls as `1/√draws`: by 10 for 100 times the draws, here by 5 or more."""
    setting = make_setting(kind)
    factors = {"regularization": 0.1}
    want = fitted(setting, Ekfac(update_diagonal, labels="expected"), **factors)
    want = want.influence_factors(*setting.test())

    def error(draws):
        errors = []
        for seed in range(5):
            method = Ekfac(update_diagonal, labels="sampled", draws=draws, seed=seed)
            got = fitted(setting, method, **factors).influence_factors(*setting.test())
            errors.append(np.linalg.norm(got - want) / np.linalg.norm(want))
        return np.sqrt(np.mean(np.square(errors)))

    assert 5 * error(1000) < error(10) < 0.2


def test_seed_decides_the_sample():
    setting = make_setting("tanh_cross_entropy")

    def factors(**options):
        method = Ekfac(labels="sampled", **options)
        return fitted(setting, method, regularization=0.1).influence_factors(*setting.test())

    np.testing.assert_array_equal(factors(seed=3), factors(seed=3))
    assert np.any(factors(seed=3) != factors(seed=4))
    assert np.any(factors(seed=3) != factors(seed=3, draws=2))


@pytest.mark.parametrize("kind", ["logistic", "least_squares"])
def test_labels_are_expected_by_default(kind):
    setting = make_setting(kind)
    each = [
        fitted(setting, Ekfac(labels=labels), regularization=0.1).influence_factors(*setting.test())
        for labels in (None, "expected", LabelKind.EXPECTED)
    ]
    np.testing.assert_array_equal(each[0], each[1])
    np.testing.assert_array_equal(each[0], each[2])


# regularisation


@updates
def test_any_regularization_without_refitting(update_diagonal):
    setting = make_setting("tanh_cross_entropy")
    loader = CountingLoader(setting.loader())
    model = influence(setting, Ekfac(update_diagonal), regularization=1e-2).fit(loader)
    first = model.influence_factors(*setting.test())
    loader.since()
    points = (*setting.test(), *setting.train)
    over = model.influences_over([1e-3, 1e-2, 0.1], *points)
    for regularization, got in zip([1e-3, 1e-2, 0.1], over, strict=True):
        one = model.with_regularization(regularization).influences(*points)
        np.testing.assert_allclose(got, one, rtol=1e-12)
    model.with_regularization(1e7).influence_factors(*setting.test())
    again = model.with_regularization(1e-2).influence_factors(*setting.test())
    np.testing.assert_array_equal(again, first)
    assert loader.since() == 0


class CountsPasses(ClosedFormProblem):
    """Counts the passes over a batch that show what its layers see."""

    sizes: ClassVar[list] = []

    def layer_statistics(self, batch, layers, labels):
        self.sizes.append(batch.size)
        return super().layer_statistics(batch, layers, labels)

    def gradients(self, batch, names):
        assert batch.size <= CHECKED, "the scores need no per-sample gradients but for a check"
        return super().gradients(batch, names)

    def gradient_products(self, batch, v, names):
        raise AssertionError("the scores need no per-sample gradients")


def backend(problem):
    return BackendSpec(problem.__name__, f"{__name__}:{problem.__name__}", BACKEND.model_types)


def test_many_regularizations_cost_one_pass_over_both_sides():
    setting = make_setting("tanh_cross_entropy")
    model = fitted(setting, Ekfac(), backend=backend(CountsPasses))
    CountsPasses.sizes.clear()
    model.influences_over(np.geomspace(1e-3, 1.0, 7), *setting.test(), *setting.train)
    # a point of each side tells how much memory the side will take
    assert sorted(CountsPasses.sizes) == [1, 1, FEW, N]


@pytest.mark.parametrize("update_diagonal", [False, True])
def test_singular_without_regularization(update_diagonal):
    """Zero inputs and no bias: every eigenvalue is zero."""
    net = LeastSquares({"weight": np.ones((OUTPUTS, INPUTS))})
    loader = [(np.zeros((N, INPUTS)), np.ones((N, OUTPUTS)))]
    model = Influence(net, None, Ekfac(update_diagonal), backend=BACKEND).fit(loader)
    rows = np.ones((1, OUTPUTS * INPUTS))
    with pytest.warns(ConditioningWarning, match="12 of its 12 eigenvalues are zero"):
        assert not model.apply_inverse(rows).any()
    assert not model.report.converged.any()
    np.testing.assert_allclose(model.with_regularization(0.5).apply_inverse(rows), 2 * rows)


@pytest.mark.parametrize("update_diagonal", [False, True])
def test_no_regularization_is_the_pseudo_inverse(float64_library, update_diagonal):
    """The softmax ignores a common shift: `S` has a null space, and so have all gradients."""
    setting = make_setting("logistic", float64_library)
    model = fitted(setting, Ekfac(update_diagonal))
    with pytest.warns(ConditioningWarning, match="5 of its 15 eigenvalues are zero"):
        got = model.influences(*setting.test(), *setting.train)
    limit = model.with_regularization(1e-11).influences(*setting.test(), *setting.train)
    float64_library.close(got, float64_library.host(limit), 1e-6)


def test_too_little_regularization_is_told():
    """The softmax ignores a common shift: `S` has a null space."""
    setting = make_setting("logistic")
    model = fitted(setting, Ekfac(), regularization=1e-20)
    with pytest.warns(ConditioningWarning, match="singular to working precision"):
        model.influence_factors(*setting.test())
    assert not model.report.converged.any()


# passes over the data


@pytest.mark.parametrize("structure", ["full", "layer_wise", "parameter_wise"])
@pytest.mark.parametrize(("update_diagonal", "passes"), [(False, 1), (True, 2)])
def test_all_layers_share_the_passes(structure, update_diagonal, passes):
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader())
    model = influence(setting, Ekfac(update_diagonal), block_structure=structure, regularization=1)
    model.fit(loader)
    assert loader.since() == 1 + passes  # one to check the data


def test_progress(capsys):
    setting = make_setting("logistic")
    model = fitted(setting, Ekfac(True, progress=True), regularization=0.1)
    model.influence_factors(*setting.test())
    assert "EK-FAC: 10 batches" in capsys.readouterr().err
    fitted(setting, Ekfac(True), regularization=0.1)
    assert not capsys.readouterr().err


# libraries and devices

PAIRS = [
    pytest.param(NUMPY, "array_api_strict", id="numpy-strict"),
    pytest.param(NUMPY_FLOAT32, "array_api_strict", id="float32-strict"),
    pytest.param(STRICT, "numpy", id="strict-numpy"),
    pytest.param(NUMPY, "torch", id="numpy-torch", marks=needs_torch),
    pytest.param(TORCH, "numpy", id="torch-numpy", marks=needs_torch),
]


@updates
@pytest.mark.parametrize(("library", "solver"), PAIRS)
def test_another_library_solves(library, solver, update_diagonal):
    setting = make_setting("tanh_cross_entropy", library)
    penalty = {"hidden.weight": 0.5}
    model = fitted(
        setting, Ekfac(update_diagonal), regularization=0.1, array_backend=solver, penalty=penalty
    )
    truth = reference(setting, update_diagonal=update_diagonal, penalty=penalty)
    want = truth.influences(*setting.host_test(), *setting.host_train, regularization=0.1)
    library.close(model.influences(*setting.test(), *setting.train), want, accuracy(library))


def test_moves_with_the_model():
    setting = make_setting("tanh_cross_entropy", STRICT)
    model = fitted(setting, Ekfac(True), regularization=0.1)
    want = reference(setting, update_diagonal=True)
    want = want.influence_factors(*setting.host_test(), regularization=0.1)
    STRICT.close(model.influence_factors(*setting.test()), want, 1e-8)
    there = STRICT_DEVICE.array(0.0).device
    model = model.to(there)
    moved = [STRICT_DEVICE.array(a) for a in setting.host_test()]
    STRICT_DEVICE.close(model.influence_factors(*moved), want, 1e-8)


def test_inverses_pickle():
    setting = make_setting("tanh_cross_entropy")
    model = fitted(setting, Ekfac(True), regularization=0.1)
    inverse = model._fitted.inverses[""]
    rows = np.random.default_rng(0).standard_normal((2, model.n_parameters))
    copy = pickle.loads(pickle.dumps(inverse))
    np.testing.assert_array_equal(copy.solve(rows, 0.1).rows, inverse.solve(rows, 0.1).rows)


# what cannot be factored


@pytest.mark.parametrize("update_diagonal", [False, True])
def test_float32_accumulates_no_negative_eigenvalues(update_diagonal):
    setting = make_setting("tanh_cross_entropy", STRICT_FLOAT32)
    model = fitted(setting, Ekfac(update_diagonal), regularization=0.1)
    assert min(layer.values.min() for layer in model._fitted.inverses[""].layers) >= 0.0


def test_a_backend_without_layers():
    setting = make_setting("logistic")
    with pytest.raises(CapabilityError, match=r"offers `layers`.*BareProblem does not.*such as Cg"):
        fitted(setting, Ekfac(), backend=BARE)


class OneLayerMissing(ClosedFormProblem):
    """Has a layer that cannot be factored."""

    def layers(self):
        layers = super().layers()
        del layers["hidden"]
        return layers


def test_a_parameter_of_no_layer():
    setting = make_setting("tanh_squared")
    options = {"backend": backend(OneLayerMissing), "regularization": 0.1}
    with pytest.raises(
        NotImplementedLayerRepresentationException,
        match=r"'hidden.weight', 'hidden.bias': of no such.*freeze.*Cg",
    ):
        fitted(setting, Ekfac(), **options)
    blocks = {"output": NETWORK[2:]}
    model = fitted(setting, Ekfac(), block_structure=blocks, **options)
    truth = reference(setting, structure=blocks)
    want = truth.influence_factors(*setting.host_test(), regularization=0.1, blocks=blocks)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


class Tied(ClosedFormProblem):
    """Shows a second layer with the same weight."""

    def layers(self):
        layers = super().layers()
        return {**layers, "again": dataclasses.replace(layers["output"], bias=None)}


def test_a_parameter_of_two_layers():
    setting = make_setting("tanh_squared")
    with pytest.raises(
        NotImplementedLayerRepresentationException, match=r"'output.weight': shared by"
    ):
        fitted(setting, Ekfac(), backend=backend(Tied))


class UsedElsewhere(ClosedFormProblem):
    """The gradient of the hidden bias has a part that its layer does not see."""

    def gradients(self, batch, names):
        rows = super().gradients(batch, names)
        asked = {name: self._values[name] for name in names}
        if "hidden.bias" in asked:
            rows[:, oracle.columns(asked, ["hidden.bias"])] += 1e-2
        return rows


class Folds(ClosedFormProblem):
    """Its hidden layer meets every point twice, one after the other."""

    def layer_statistics(self, batch, layers, labels):
        answer = super().layer_statistics(batch, layers, labels)
        a, g = answer["hidden"].inputs, answer["hidden"].output_gradients
        folded = LayerStatistics(np.concatenate([a, a]), np.concatenate([g, g], axis=1))
        return {**answer, "hidden": folded}


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (UsedElsewhere, r"factored. 'hidden.bias': .* do not explain"),
        (
            Folds,
            r"'hidden.weight', 'hidden.bias': the layer meets 8 points where the batch has 4",
        ),
    ],
)
def test_layers_that_do_not_explain_the_gradients(problem, message):
    setting = make_setting("tanh_squared")
    with pytest.raises(NotImplementedLayerRepresentationException, match=message):
        fitted(setting, Ekfac(), backend=backend(problem))


def test_what_is_left_out_is_not_checked():
    setting = make_setting("tanh_squared")
    blocks = {"": [name for name in NETWORK if name != "hidden.bias"]}
    fitted(setting, Ekfac(), backend=backend(UsedElsewhere), block_structure=blocks)


@pytest.mark.parametrize("library", [NUMPY, NUMPY_FLOAT32, STRICT_FLOAT32], ids=str)
def test_points_that_are_fitted_to_the_last_digit(library):
    """Their gradients are differences of numbers near one; the check must live with that."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, OUTPUTS, N)
    x = np.eye(OUTPUTS)[y] * 15.5 + rng.uniform(0, 1e-3, (N, OUTPUTS))
    net = Logistic({"weight": library.array(np.eye(OUTPUTS)), "bias": library.array(np.zeros(3))})
    loader = [(library.array(x), library.array(y))]
    model = Influence(net, None, Ekfac(), backend=backend(OtherRounding), regularization=0.1).fit(
        loader
    )
    assert model.is_fitted


class LogSoftmax(CrossEntropy):
    """The same loss, rounded in another way."""

    def gradient(self, f, targets):
        xp = namespace(f)
        peaks = xp.max(f, axis=-1, keepdims=True)
        total = peaks + xp.log(xp.sum(xp.exp(f - peaks), axis=-1, keepdims=True))
        return xp.exp(f - total) - targets


class OtherRounding(ClosedFormProblem):
    """Computes the statistics apart from the gradients."""

    def layer_statistics(self, batch, layers, labels):
        other = ClosedFormProblem(Logistic(self._values), LogSoftmax())
        return other.layer_statistics(batch, layers, labels)


class Overflows(ClosedFormProblem):
    """One of its statistics is infinite, at the last point only."""

    def layer_statistics(self, batch, layers, labels):
        answer = super().layer_statistics(batch, layers, labels)
        if batch.size < 4:
            answer["output"].output_gradients[:, -1, ...] = np.inf
        return answer


def test_statistics_that_are_not_finite():
    setting = make_setting("tanh_squared")
    with pytest.raises(NonFiniteError, match=r"EK-FAC: .* of what layer 'output' sees hold NaN"):
        fitted(setting, Ekfac(), backend=backend(Overflows))


class AnotherLoss:
    """The squared loss, under a name that no distribution is known for."""

    def __getattr__(self, name):
        return getattr(Squared(), name)


def test_a_loss_without_a_distribution():
    setting = make_setting("least_squares")

    def factors(loss, **options):
        model = Influence(
            setting.model, loss, Ekfac(**options), backend=BACKEND, regularization=0.1
        )
        return model.fit(setting.loader()).influence_factors(*setting.test())

    with pytest.raises(CapabilityError, match=r"AnotherLoss has none.*labels='given'"):
        factors(AnotherLoss())
    given = factors(AnotherLoss(), labels="given")
    np.testing.assert_array_equal(given, factors("squared", labels="given"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "mine"}, "`labels` must be .*'expected', 'sampled', 'given'"),
        ({"draws": 0}, "`draws` must be an integer of one or more"),
        ({"draws": 2.5}, "`draws` must be an integer of one or more"),
        ({"seed": -1}, "`seed` must be an integer of one or more or zero"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        Ekfac(**options)


# positions that share a layer


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A batch of sequences: `x` is `(n, s, i)`, `y` is `(n, s, o)`."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None = None

    @property
    def size(self):
        return len(self.x)

    def __getitem__(self, points):
        weights = None if self.weights is None else self.weights[points]
        return Sequences(self.x[points], self.y[points], weights)


class SharedLayer:
    """`½ Σ_s ‖W x_s + b - y_s‖²`: an affine layer at every position of a sequence."""

    def __init__(self, weight, bias):
        self.reference, self.bias = weight, bias
        self.parameters = {"w": weight.shape, "b": bias.shape}

    def batch(self, data):
        return Sequences(*data)

    def residuals(self, batch):
        return batch.x @ self.reference.T + self.bias - batch.y

    def gradients(self, batch, names):
        residuals = self.residuals(batch)
        each = {"w": np.einsum("nso,nsi->noi", residuals, batch.x), "b": residuals.sum(1)}
        return np.concatenate([each[name].reshape(batch.size, -1) for name in names], axis=1)

    def layers(self):
        outputs, inputs = self.reference.shape
        return {"layer": Layer("w", "b", inputs, outputs)}

    def layer_statistics(self, batch, layers, labels):
        gradients = self.residuals(batch)[None]
        if labels.kind is not LabelKind.GIVEN:
            n, s, o = gradients.shape[1:]
            slices = np.eye(s * o).reshape(s * o, 1, s, o)
            gradients = np.broadcast_to(slices, (s * o, n, s, o)).copy()
        return {"layer": LayerStatistics(batch.x.copy(), gradients)}


def shared_inverse(loader, method):
    rng = np.random.default_rng(0)
    problem = SharedLayer(rng.standard_normal((2, 4)), rng.standard_normal(2))
    objective = Objective.of(problem, loader)
    exchange = exchange_for(problem.reference, None)
    return problem, method.prepare(GaussNewton(objective, Block("", ("w", "b"), 10), exchange))


def shared_reference(problem, batch, update_diagonal, given):
    """The same matrix from every position, output and point, in the order `w`, `b`."""
    share = np.full(batch.size, 1 / batch.size) if batch.weights is None else batch.weights
    share = share / share.sum()
    n, s, _ = batch.x.shape
    a = np.concatenate([batch.x, np.ones((n, s, 1))], axis=2)
    if given:
        g = problem.residuals(batch)[None]
    else:
        g = [np.tile(e.reshape(1, s, 2), (n, 1, 1)) for e in np.eye(2 * s)]
    second = sum(w / s * np.outer(v, v) for w, rows in zip(share, a, strict=True) for v in rows)
    outer = sum(
        w * np.outer(v, v) for each in g for w, rows in zip(share, each, strict=True) for v in rows
    )
    if update_diagonal:
        basis = np.kron(np.linalg.eigh(outer)[1], np.linalg.eigh(second)[1])
        squares = sum(
            share[p] * (basis.T @ (each[p].T @ a[p]).ravel()) ** 2 for each in g for p in range(n)
        )
        matrix = basis @ np.diag(squares) @ basis.T
    else:
        matrix = np.kron(outer, second)
    order = [0, 1, 2, 3, 5, 6, 7, 8, 4, 9]
    return matrix[np.ix_(order, order)]


@updates
@both_labels
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_shared_positions(update_diagonal, labels, weighted, batch_size, monkeypatch):
    rng = np.random.default_rng(1)
    data = [rng.standard_normal((11, 3, 4)), rng.standard_normal((11, 3, 2))]
    if weighted:
        data.append(rng.uniform(0, 2, 11))
    loader = [
        tuple(part[start : start + batch_size] for part in data)
        for start in range(0, 11, batch_size)
    ]
    monkeypatch.setattr("influence_core.layers.seen._ENTRIES", 25)  # two points at a time
    problem, inverse = shared_inverse(loader, Ekfac(update_diagonal, labels=labels))
    matrix = shared_reference(problem, Sequences(*data), update_diagonal, labels == "given")
    rows = rng.standard_normal((3, 10))
    for regularization in REGULARIZATIONS:
        got = inverse.solve(rows, regularization).rows
        want = np.linalg.solve(matrix + regularization * np.eye(10), rows.T).T
        NUMPY.close(got, want, 1e-8)


def test_lengths_may_differ_between_batches():
    """A point counts once in `A`, whatever the number of its positions."""
    rng = np.random.default_rng(1)
    loader = [
        (rng.standard_normal((n, s, 4)), rng.standard_normal((n, s, 2)))
        for n, s in ((3, 2), (5, 3), (2, 1))
    ]
    problem, inverse = shared_inverse(loader, Ekfac(labels="given"))
    second, outer = np.zeros((5, 5)), np.zeros((2, 2))
    for x, y in loader:
        for a, g in zip(x, problem.residuals(Sequences(x, y)), strict=True):
            ones = np.concatenate([a, np.ones((len(a), 1))], axis=1)
            second += ones.T @ ones / len(a) / 10
            outer += g.T @ g / 10
    order = [0, 1, 2, 3, 5, 6, 7, 8, 4, 9]
    matrix = np.kron(outer, second)[np.ix_(order, order)] + 0.1 * np.eye(10)
    rows = rng.standard_normal((3, 10))
    NUMPY.close(inverse.solve(rows, 0.1).rows, np.linalg.solve(matrix, rows.T).T, 1e-10)


def test_reference_agrees_with_the_exact_fisher_where_it_must():
    """The reference itself: one layer, one sample or unit outputs."""
    setting = make_setting("least_squares")
    exact = Oracle(setting.parameters, "squared", *setting.host_train)
    for update_diagonal in (False, True):
        got = reference(setting, update_diagonal=update_diagonal).curvature()
        np.testing.assert_allclose(got, exact.curvature("generalized_gauss_newton"), atol=1e-12)


def test_reference_keeps_the_trace_of_the_fisher():
    """A change of basis keeps the mean squares of each layer's gradients (EK-FAC only)."""
    setting = make_setting("tanh_cross_entropy")
    got = np.diag(reference(setting, update_diagonal=True).curvature())
    exact = np.diag(
        Oracle(setting.parameters, "cross_entropy", *setting.host_train).curvature(
            "generalized_gauss_newton"
        )
    )
    for names in (NETWORK[:2], NETWORK[2:]):
        place = oracle.columns(setting.parameters, names)
        np.testing.assert_allclose(got[place].sum(), exact[place].sum(), rtol=1e-12)
