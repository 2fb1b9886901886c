"""What every method promises of its numbers: each against the dense matrix that it stands for."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from methods import CASES, LAYERS
from namespaces import NUMPY
from problems import FEW, INPUTS, MANY, N, make_setting

from influence_core import ConditioningWarning, Ekfac
from influence_core.layer_check import CHECKED
from influence_core.testing import ClosedFormProblem

cases = pytest.mark.parametrize("case", CASES)
NETWORKS = {"tanh_squared": "gauss_newton", "tanh_cross_entropy": "generalized_gauss_newton"}
networks = pytest.mark.parametrize(("kind", "mode"), NETWORKS.items(), ids=NETWORKS)
DAMPING = {"hidden": 3e-2, "output": 1e-1}


@cases
def test_every_library(library, case):
    setting = make_setting("logistic", library)
    truth = case.reference(setting)
    model = case.fitted(setting, regularization=0.5)
    for regularization, m, mode in (
        (1e-3, FEW, "up"),
        (1e-2, MANY, "up"),
        (1e-1, FEW, "perturbation"),
    ):
        model.with_regularization(regularization)
        got = model.influences(*setting.test(m), *setting.train, mode=mode)
        want = truth.influences(setting.host_test(m), setting.host_train, regularization, mode)
        library.close(got, want, library.accuracy(regularization))


def layer_wise(setting, case, mode):
    """The method's model of a network, a λ for each layer, and its reference."""
    model = case.fitted(
        setting, second_order_mode=mode, block_structure=LAYERS, regularization=DAMPING
    )
    return model, case.reference(setting, mode, LAYERS)


@cases
@networks
def test_routes_agree(case, kind, mode):
    setting = make_setting(kind)
    model, truth = layer_wise(setting, case, mode)
    train, tolerance = setting.train, case.accuracy
    for m in (1, FEW, N, MANY):
        test = setting.test(m)
        factors = model.influence_factors(*test)
        NUMPY.close(factors, truth.influence_factors(*test, DAMPING), tolerance)
        by_block = model.influence_factors_by_block(*test)
        NUMPY.close(np.concatenate([*by_block.values()], axis=1), factors, 0.0)
        for influence in ("up", "perturbation"):
            want = truth.influences(test, train, DAMPING, influence)
            assert want.shape == ((m, N) if influence == "up" else (m, N, INPUTS))
            shares = (
                model.influences_by_block(*test, *train, mode=influence),
                model.influences_from_factors_by_block(by_block, *train, mode=influence),
            )
            assert [list(share) for share in shares] == [list(LAYERS)] * 2
            answers = (
                model.influences(*test, *train, mode=influence),
                model.influences_from_factors(factors, *train, mode=influence),
                *(sum(share.values()) for share in shares),
            )
            for got in answers:
                NUMPY.close(got, want, tolerance)


@cases
@networks
def test_without_x_the_test_points_stand_on_both_sides(case, kind, mode):
    setting = make_setting(kind)
    model, truth = layer_wise(setting, case, mode)
    test = setting.test(7)
    for influence in ("up", "perturbation"):
        got = model.influences(*test, mode=influence)
        NUMPY.close(got, truth.influences(test, test, DAMPING, influence), case.accuracy)


@cases
def test_one_training_point(case):
    setting = make_setting("tanh_squared")
    x, y = setting.host_train
    alone = replace(setting, host_train=(x[:1], y[:1]))
    truth = case.reference(alone, "gauss_newton")
    options = {"second_order_mode": "gauss_newton", "regularization": 1e-1}
    model = case.influence(setting, **options).fit([alone.train])
    for test, train in ((alone.train, alone.train), (setting.test(), alone.train)):
        for mode in ("up", "perturbation"):
            got = model.influences(*test, *train, mode=mode)
            NUMPY.close(got, truth.influences(test, train, 1e-1, mode), case.accuracy)
    factors = truth.influence_factors(*setting.host_test(), 1e-1)
    NUMPY.close(model.influence_factors(*setting.test()), factors, case.accuracy)


@cases
@networks
def test_self_influences_are_the_diagonal(case, kind, mode):
    setting = make_setting(kind)
    model, truth = layer_wise(setting, case, mode)
    want = np.diag(truth.influences(setting.host_train, setting.host_train, DAMPING))
    NUMPY.close(model.self_influences(setting.loader(7)), want, case.accuracy)


@cases
@pytest.mark.parametrize("m", [FEW, MANY])
def test_influences_over_is_a_loop_of_calls(case, m, monkeypatch):
    """With the gradients of both sides computed once a block."""
    setting = make_setting("tanh_cross_entropy")
    mode = NETWORKS["tanh_cross_entropy"]
    model, truth = layer_wise(setting, case, mode)
    regularizations = [DAMPING, 5e-2, {"hidden": 0.2, "output": 0.1}]
    points = (*setting.test(m), *setting.train)
    before = model.influences(*points)
    calls = count_calls(monkeypatch, {m, N})  # no batch of the training data is as large
    got = model.influences_over(regularizations, *points)
    solved, other = sorted((m, N))
    if isinstance(case.make(NUMPY), Ekfac):  # both sides by what the layers saw, for all blocks
        passes = [call for call in calls if call != ("gradients", CHECKED)]  # few, to compare
        assert sorted(passes) == [("layer_statistics", solved), ("layer_statistics", other)]
    else:
        each = [("gradients", solved), ("gradient_products", other)] * len(LAYERS)
        assert sorted(calls) == sorted(each)
    by_block = model.influences_over_by_block(regularizations, *points)
    NUMPY.close(sum(by_block.values()), got, 1e-12)
    NUMPY.close(model.influences(*points), before, 0.0)
    for scores, regularization in zip(got, regularizations, strict=True):
        want = truth.influences(setting.host_test(m), setting.host_train, regularization)
        NUMPY.close(scores, want, case.accuracy)
        again = model.with_regularization(regularization).influences(*points)
        NUMPY.close(scores, again, 1e-12)


def count_calls(monkeypatch, sizes):
    """A list that gets the name and the size of every call for gradients of so many points."""
    seen = []
    for name in ("gradients", "gradient_products", "layer_statistics"):
        real = getattr(ClosedFormProblem, name)

        def counted(self, batch, *arguments, real=real, name=name):
            if batch.size in sizes:
                seen.append((name, batch.size))
            return real(self, batch, *arguments)

        monkeypatch.setattr(ClosedFormProblem, name, counted)
    return seen


@cases
@pytest.mark.parametrize("m", [FEW, MANY])
@pytest.mark.parametrize(
    ("kind", "mode", "regularization"),
    [
        ("least_squares", "hessian", 1e-1),
        ("logistic", "hessian", 1e-1),
        ("tanh_cross_entropy", "gauss_newton", 1e-1),
        ("tanh_cross_entropy", "generalized_gauss_newton", 1e-1),
    ],
)
def test_leverage_by_the_matrix_of_the_method(case, kind, mode, regularization, m):
    setting = make_setting(kind)
    blocks = {name: [name] for name in setting.parameters} if kind == "logistic" else None
    model = case.fitted(
        setting,
        second_order_mode=mode,
        regularization=regularization,
        block_structure="full" if blocks is None else blocks,
    )
    truth = case.reference(setting, mode, blocks)
    points = (setting.host_test(m), setting.host_train)
    effects = truth.influences(*points, regularization) / N
    NUMPY.close(model.removal_effects(*setting.test(m), *setting.train), effects, case.accuracy)
    leverage = truth.leverage(setting.host_train, regularization)
    assert np.any((leverage > 0.01) & (leverage < 1))
    bounded = leverage < 1
    words = f"{N - bounded.sum()} of {N} points have a leverage of one or more"
    warned = nullcontext() if bounded.all() else pytest.warns(ConditioningWarning, match=words)
    with warned:
        got = model.removal_effects(*setting.test(m), *setting.train, leverage=True)
    want = effects / np.where(bounded, 1 - leverage, 1.0)
    NUMPY.close(got, want, case.accuracy)


@cases
def test_same_seed_same_answer(case):
    setting = make_setting("tanh_cross_entropy")
    points = (*setting.test(), *setting.train)
    options = {"second_order_mode": "generalized_gauss_newton", "regularization": 1e-1}
    model, again = (case.fitted(setting, **options) for _ in range(2))
    want = model.influences(*points)
    again.influences(*setting.test(7))  # what was asked before does not matter
    for got in (again.influences(*points), model.influences(*points)):
        NUMPY.close(got, want, 0.0)
