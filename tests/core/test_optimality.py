"""How far the parameters are from a minimum: `gradient_norm`, and the warning of `fit`."""

import warnings

import numpy as np
import pytest
from namespaces import NUMPY
from oracle import flatten, gradients
from problems import KINDS, fitted, influence, make_data, make_setting

from influence_core import Direct, Influence, NotFittedException, OptimalityWarning
from influence_core.testing import BACKEND, LeastSquares


@pytest.mark.parametrize("regularization", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_the_gradient(library, kind, regularization):
    setting = make_setting(kind, library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fitted(setting, regularization=regularization)
    theta = flatten(setting.parameters)
    mean = gradients(setting.parameters, setting.model.loss, *setting.host_train).mean(axis=0)
    want = np.linalg.norm(mean + regularization * theta)
    assert model.gradient_norm == pytest.approx(want, rel=library.tolerance)


def test_it_follows_the_regularization_of_every_block():
    setting = make_setting("tanh_squared")
    model = fitted(setting, block_structure="layer_wise", regularization=0.1)
    mean = gradients(setting.parameters, setting.model.loss, *setting.host_train).mean(axis=0)
    theta = flatten(setting.parameters)
    damping = np.concatenate(
        [
            np.full(a.size, {"hidden": 0.5, "output": 2.0}[name.partition(".")[0]])
            for name, a in setting.parameters.items()
        ]
    )
    model.with_regularization({"hidden": 0.5, "output": 2.0})
    assert model.gradient_norm == pytest.approx(np.linalg.norm(mean + damping * theta), rel=1e-10)


def test_weights_and_the_penalty_of_the_objective():
    setting = make_setting("logistic")
    weights = np.arange(23) % 4 + 0.5
    x, y = setting.host_train
    loader = [(x[:9], y[:9], weights[:9]), (x[9:], y[9:], weights[9:])]
    model = influence(setting, regularization=0.1, penalty={"weight": 0.3}).fit(loader)
    rows = gradients(setting.parameters, "cross_entropy", x, y)
    theta = setting.parameters
    want = np.average(rows, axis=0, weights=weights) + 0.1 * flatten(theta)
    want[: theta["weight"].size] += 0.3 * theta["weight"].ravel()
    assert model.gradient_norm == pytest.approx(np.linalg.norm(want), rel=1e-10)


def test_only_the_parameters_of_the_blocks_count():
    setting = make_setting("tanh_squared")
    structure = {"some": ["output.bias"]}
    model = fitted(setting, block_structure=structure, regularization=0.1)
    places = setting.oracle().blocks(structure)["some"]
    mean = gradients(setting.parameters, setting.model.loss, *setting.host_train).mean(axis=0)
    want = mean[places] + 0.1 * flatten(setting.parameters)[places]
    assert model.gradient_norm == pytest.approx(np.linalg.norm(want), rel=1e-10)


def least_squares(scale):
    x, y = make_data("squared", 1000, seed=3)
    a = np.column_stack([x, np.ones(len(x))])
    best = np.linalg.lstsq(a, y, rcond=None)[0].T
    model = LeastSquares({"weight": best[:, :-1] + scale, "bias": best[:, -1] + scale})
    return model, [(x, y)]


def test_a_model_far_from_its_minimum_is_told():
    model, loader = least_squares(5.0)
    with pytest.warns(OptimalityWarning, match=r"far from a minimum.*without λθ.*train it further"):
        far = Influence(model, None, Direct(), backend=BACKEND, regularization=0.1).fit(loader)
    assert far.gradient_norm > 1


@pytest.mark.parametrize("regularization", [0.0, 1e3])
def test_a_trained_model_is_not(regularization):
    """Whether the λ of the influence was a part of the training is not known: either is fine."""
    model, loader = least_squares(0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = Influence(model, None, Direct(), backend=BACKEND, regularization=regularization).fit(
            loader
        )
    assert (near.gradient_norm < 1e-12) == (regularization == 0)


def test_it_costs_no_pass_of_its_own():
    model, loader = least_squares(0.0)
    passes = []

    class Loader(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    from influence_core import Cg

    Influence(model, None, Cg(), backend=BACKEND).fit(Loader(loader))
    assert len(passes) == 1


def test_before_fit():
    with pytest.raises(NotFittedException, match="gradient_norm"):
        _ = influence(make_setting("logistic")).gradient_norm


def test_it_survives_a_move():
    setting = make_setting("logistic")
    model = fitted(setting, regularization=0.1)
    want = model.gradient_norm
    assert model.to("cpu").gradient_norm == want
    NUMPY.close(
        model.removal_effects(*setting.test(), *setting.train, leverage=True),
        fitted(setting, regularization=0.1).removal_effects(
            *setting.test(), *setting.train, leverage=True
        ),
        1e-14,
    )
