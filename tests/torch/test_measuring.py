"""Another quantity than the loss at the test points, for every method."""

import pytest
import torch
from solvers import SOLVERS
from torch import nn
from zoo import Case, classes, close, normal, seeded

from influence_core import LossError, NotFittedException
from influence_torch import CgInfluence, EkfacInfluence, InfluenceMode, cross_entropy

N, M = 20, 4


def margin(outputs, y):
    """The logit of the label over the mean of the others, a mean over the points."""
    own = outputs.gather(1, y[:, None])[:, 0]
    return (own - (outputs.sum(1) - own) / (outputs.shape[1] - 1)).mean()


def each_margin(outputs, y):
    return torch.stack([margin(f[None], t[None]) for f, t in zip(outputs, y, strict=True)])


MODEL = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
CASE = Case(MODEL, cross_entropy, normal(N, 3), classes(N))
X, Y = normal(M, 3, seed=9), classes(M, seed=9)
FEW = CASE.part(N - 7, N)


def rows(quantity, x, y):
    """Gradients by autograd, a point at a time."""
    found = []
    for a, b in zip(x, y, strict=True):
        value = quantity(MODEL(a[None]), b[None]).sum()
        gradients = torch.autograd.grad(value, list(MODEL.parameters()))
        found.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(found)


@pytest.fixture(params=SOLVERS, ids=lambda solver: solver.__name__)
def fitted(request):
    solver = request.param
    known = solver.known(second_order_mode="generalized_gauss_newton")
    return solver(MODEL, cross_entropy, 0.1, **known).fit(solver.loader(CASE))


@pytest.mark.parametrize("quantity", [margin, each_margin])
def test_every_method(fitted, quantity):
    before = fitted.influences(X, Y, *FEW)
    measuring = fitted.measuring(quantity)
    factors = fitted.apply_inverse(rows(quantity, X, Y))
    want = factors @ rows(cross_entropy, *FEW).T
    close(measuring.influences(X, Y, *FEW), want)
    close(measuring.influence_factors(X, Y), factors)
    close(measuring.influences_from_factors(factors, *FEW), want)
    close(sum(measuring.influences_by_block(X, Y, *FEW).values()), want)
    close(measuring.influences_over([0.1], X, Y, *FEW)[0], want)
    close(measuring.removal_effects(X, Y, *FEW), want / N)
    close(fitted.influences(X, Y, *FEW), before)
    assert measuring.with_regularization(0.2) is measuring
    assert fitted.measuring(cross_entropy).influences(X, Y, *FEW).equal(before)


def test_the_training_side_keeps_the_loss(fitted):
    """Also where the test points stand on both sides."""
    measuring = fitted.measuring(margin)
    want = measuring.influences(X, Y, X, Y)
    assert not want.allclose(want.T)
    close(measuring.influences(X, Y), want)
    close(measuring.self_influences([FEW]), fitted.self_influences([FEW]))
    close(measuring.parameter_changes(*FEW), fitted.parameter_changes(*FEW))


def test_perturbation(fitted):
    measuring = fitted.measuring(margin)
    factors = fitted.apply_inverse(rows(margin, X, Y))
    want = fitted.influences_from_factors(factors, *FEW, mode=InfluenceMode.Perturbation)
    close(measuring.influences(X, Y, *FEW, mode="perturbation"), want)


def test_by_layer_and_leverage():
    fitted = EkfacInfluence(MODEL, hessian_regularization=0.1, labels="given").fit(CASE.loader())
    measuring = fitted.measuring(margin)
    by_layer = measuring.influences_by_layer(X, Y, *FEW)
    close(sum(by_layer.values()), measuring.influences(X, Y, *FEW))
    changes = fitted.parameter_changes(*FEW, leverage=True)
    want = rows(margin, X, Y) @ changes.T
    close(measuring.removal_effects(X, Y, *FEW, leverage=True), want)


def test_many_test_points(fitted):
    """The smaller side is the one that is solved: each has its own gradients."""
    measuring = fitted.measuring(margin)
    want = measuring.influences(*CASE.part(0, N), *FEW)
    parts = [measuring.influences(*CASE.part(i, i + 1), *FEW) for i in range(N)]
    close(torch.cat(parts), want)


def test_a_later_fit_measures_too():
    measuring = CgInfluence(MODEL, cross_entropy, 3.0).fit(CASE.loader()).measuring(margin)
    want = measuring.influences(X, Y, *FEW)
    close(measuring.fit(CASE.loader()).influences(X, Y, *FEW), want)


def test_wrong_quantities():
    model = CgInfluence(MODEL, cross_entropy, 3.0)
    with pytest.raises(NotFittedException):
        model.measuring(margin)
    model.fit(CASE.loader())
    with pytest.raises(LossError, match="callable"):
        model.measuring("margin")
    with pytest.raises(LossError, match="one number a point"):
        model.measuring(lambda outputs, y: outputs).influences(X, Y)
    with pytest.raises(LossError, match="influences\\(x_test, y_test\\)"):
        model.measuring(lambda outputs, y: outputs.max()).influences(X, Y, *FEW)


def test_to():
    measuring = CgInfluence(MODEL, cross_entropy, 3.0).fit(CASE.loader()).measuring(margin)
    want = measuring.influences(X, Y, *FEW)
    assert measuring.to("cpu").influences(X, Y, *FEW).equal(want)
