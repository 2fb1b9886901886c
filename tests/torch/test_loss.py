"""The loss contract: `ℓ` is the loss of one point, however the loss of a batch averages."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import MODES, Case, batches, classes, close, convex_case, mlp_case, normal, seeded

from influence_core.errors import LossError, ModelError
from influence_torch import CgInfluence, DirectInfluence

CASE = convex_case()
TEST = (normal(5, 4, seed=5), classes(5, seed=6))
WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)

REDUCTIONS = {
    "mean": F.cross_entropy,
    "sum": lambda f, y: F.cross_entropy(f, y, reduction="sum"),
    "none": lambda f, y: F.cross_entropy(f, y, reduction="none"),
    "nn-mean": nn.CrossEntropyLoss(),
    "nn-sum": nn.CrossEntropyLoss(reduction="sum"),
    "nn-none": nn.CrossEntropyLoss(reduction="none"),
    "mean-of-one": lambda f, y: F.cross_entropy(f, y)[None],
}


def ask(loss, *, mode="hessian", loader=None, case=CASE, test=TEST):
    model = DirectInfluence(case.model, loss, 1e-2, second_order_mode=mode)
    return model.fit(loader or case.loader(7)).influences(*test, case.x, case.y)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_agree(reduction, mode):
    want = CASE.dense().influences(*TEST, CASE.x, CASE.y, mode=mode, regularization=1e-2)
    close(ask(REDUCTIONS[reduction], mode=mode), want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_first_batches_of_one_point(reduction, first, mode):
    x, y = CASE.x, CASE.y
    loader = [(x[i : i + 1], y[i : i + 1]) for i in range(first)] + [(x[first:], y[first:])]
    want = CASE.dense().influences(*TEST, CASE.x, CASE.y, mode=mode, regularization=1e-2)
    close(ask(REDUCTIONS[reduction], mode=mode, loader=loader), want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_batches_of_one_point(reduction, mode):
    case = Case(CASE.model, CASE.loss, *CASE.part(0, 4))
    model = DirectInfluence(case.model, REDUCTIONS[reduction], 1e-2, second_order_mode=mode)
    model.fit(case.loader(1))
    want = case.dense().influences(
        *case.part(0, 1), *case.part(1, 2), mode=mode, regularization=1e-2
    )
    close(model.influences(*case.part(0, 1), *case.part(1, 2)), want)
    close(model.influences(*TEST), case.dense().influences(*TEST, mode=mode, regularization=1e-2))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        F.l1_loss,
        F.huber_loss,
        lambda f, y, reduction: F.binary_cross_entropy_with_logits(
            f, torch.sigmoid(y), reduction=reduction
        ),
        lambda f, y, reduction: getattr((f - y) ** 4, reduction)(),
    ],
)
def test_losses_with_one_output(loss, reduction):
    def batch_loss(f, y):
        return loss(f, y, reduction=reduction)

    case = Case(seeded(lambda: nn.Linear(3, 1)), batch_loss, normal(11, 3), normal(11, 1, seed=2))
    model = CgInfluence(case.model, batch_loss, 0.1, 1e-12, 0.0).fit(case.loader(4))
    close(
        model.influences(case.x, case.y),
        case.dense().influences(case.x, case.y, regularization=0.1),
    )


def test_a_mean_over_outputs_and_a_sum_over_them_are_different_losses():
    case = Case(seeded(lambda: nn.Linear(3, 2)), F.mse_loss, normal(11, 3), normal(11, 2, seed=2))
    for reduction in ("mean", "sum"):
        case = Case(case.model, nn.MSELoss(reduction=reduction), case.x, case.y)
        got = ask(case.loss, case=case, test=case.part(0, 4))
        close(got, case.dense().influences(*case.part(0, 4), case.x, case.y, regularization=1e-2))


NEITHER = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "ignore_index": nn.CrossEntropyLoss(ignore_index=1),
    "mixes the points": lambda f, y: F.cross_entropy(f, y) + f.var(0).sum(),
    "sum over the root": lambda f, y: F.cross_entropy(f, y, reduction="sum") / len(y) ** 0.5,
    "vector that mixes": lambda f, y: (f - f.mean(0)).square().sum(1),
    "maximum": lambda f, y: F.cross_entropy(f, y, reduction="none").max(),
}


@pytest.mark.parametrize("name", NEITHER)
@pytest.mark.parametrize("solver", [DirectInfluence, CgInfluence])
def test_neither_mean_nor_sum(name, solver):
    model = solver(CASE.model, NEITHER[name], 1e-2)
    with pytest.raises(ValueError, match="reduction='none'") as caught:
        model.fit(CASE.loader(7))
    assert isinstance(caught.value, LossError)
    assert "fit(data), batch 1" in str(caught.value)
    assert not model.is_fitted


@pytest.mark.parametrize(
    "keywords", [{"weight": WEIGHTS}, {"ignore_index": 1}, {"label_smoothing": 0.1}]
)
@pytest.mark.parametrize("mode", MODES)
def test_what_a_mean_forbids_works_with_a_vector(keywords, mode):
    loss = nn.CrossEntropyLoss(**keywords, reduction="none")
    case = Case(CASE.model, loss, CASE.x, CASE.y)
    want = case.dense().influences(*TEST, CASE.x, CASE.y, mode=mode, regularization=1e-2)
    close(ask(loss, mode=mode), want)


def test_a_later_batch_is_held_to_the_first():
    y = CASE.y.clone()
    y[:7], y[7:] = 0, classes(16)
    with pytest.raises(LossError, match="batch 2"):
        ask(nn.CrossEntropyLoss(ignore_index=1), loader=batches(CASE.x, y, 7))


def test_a_query_is_held_to_the_contract():
    model = DirectInfluence(CASE.model, nn.CrossEntropyLoss(weight=WEIGHTS), 1e-2)
    model.fit(CASE.loader(1))  # the weights cancel in batches of one
    with pytest.raises(LossError, match="influences"):
        model.influences(*TEST)


RETURNS = {
    "n-by-s": lambda f, y: (f - 1).square(),
    "a number": lambda f, y: 1.0,
    "an integer": lambda f, y: (f.argmax(1) == y).sum(),
    "None": lambda f, y: None,
    "a tuple": lambda f, y: (F.cross_entropy(f, y), 0),
}


@pytest.mark.parametrize("name", RETURNS)
def test_no_scalar(name):
    with pytest.raises(LossError, match="scalar") as caught:
        ask(RETURNS[name])
    assert isinstance(caught.value, ValueError)


def test_not_callable():
    with pytest.raises(LossError, match="callable"):
        ask("cross_entropy")


def test_a_loss_that_fails_says_what_it_was_given():
    with pytest.raises(ModelError, match=r"fails: .*y is \(7,\) torch.int64"):
        ask(F.mse_loss)


def test_a_loss_that_is_not_finite():
    with pytest.raises(LossError, match="NaN or infinite"):
        ask(lambda f, y: (f.sum(1) - 1e9).log().mean())


def hinge(reduction):
    def loss(f, y):
        return getattr(F.relu(2 - f[:, 0] * y), reduction)()

    return loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", ["hessian", "gauss_newton"])
def test_batches_whose_losses_are_all_zero(reduction, mode):
    # mean and sum are the same number there: such a batch tells nothing, and contradicts nothing
    model = seeded(lambda: nn.Linear(2, 1))
    x = normal(12, 2)
    with torch.no_grad():
        side = model(x)[:, 0].sign()
    scale = torch.cat([torch.full((4,), 100.0), torch.ones(4), torch.full((4,), 100.0)])
    case = Case(model, hinge(reduction), x, side * scale)
    for loader in (case.loader(4), case.loader(4)[::-1], case.loader(4)[1:] + case.loader(4)[:1]):
        got = DirectInfluence(case.model, case.loss, 0.1, second_order_mode=mode).fit(loader)
        want = case.dense().influences(case.x, case.y, mode=mode, regularization=0.1)
        close(got.influences(case.x, case.y), want)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "residual", "tolerance"), [(torch.float32, 1e-4, 1e-4), (torch.float64, 1e-6, 1e-8)]
)
def test_losses_next_to_zero(reduction, mode, dtype, residual, tolerance):
    # a model that has learnt its data: mean and sum differ by less than rounding may make of them
    model = seeded(lambda: nn.Linear(3, 1)).to(dtype)
    x = normal(12, 3, dtype=dtype)
    with torch.no_grad():
        y = model(x) + residual * normal(12, 1, seed=3, dtype=dtype)
    case = Case(model, nn.MSELoss(reduction=reduction), x, y)
    got = DirectInfluence(model, case.loss, 1.0, second_order_mode=mode).fit(case.loader(6))
    factors = case.dense().influence_factors(x, y, mode=mode, regularization=1.0)
    # the residuals themselves are only known to rounding
    close(got.influence_factors(x, y), factors, tolerance * (1 + 1e-2 / residual))


def test_a_small_network_learns_nothing_new_from_a_larger_batch():
    case = mlp_case()
    model = DirectInfluence(case.model, REDUCTIONS["sum"], 1.0, second_order_mode=MODES[2])
    model.fit([case.part(0, 2), case.part(2, None)])
    want = case.dense().influences(case.x, case.y, mode=MODES[2], regularization=1.0)
    close(model.influences(case.x, case.y), want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_targets_that_are_more_precise_than_the_model(reduction):
    # the loss comes out in float64, with the rounding of outputs in float32
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 1))).float()
    x, y = normal(50, 40, dtype=torch.float32), normal(50, seed=2)
    case = Case(model, lambda f, t: F.mse_loss(f[:, 0], t, reduction=reduction), x, y)
    for layer in model[:1]:
        layer.requires_grad_(False)
    got = DirectInfluence(model, case.loss, 0.1).fit(case.loader(17))
    want = case.dense().influences(*case.part(0, 3), regularization=0.1)
    close(got.influences(*case.part(0, 3)), want, 1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [nn.MSELoss, nn.BCEWithLogitsLoss])
def test_a_vector_with_axes_of_length_one(kind, mode, batch_size):
    model = seeded(lambda: nn.Linear(3, 1))
    x, y = normal(9, 3), torch.sigmoid(normal(9, 1, seed=2))
    case = Case(model, kind(reduction="none"), x, y)
    want = Case(model, kind(), x, y).dense().influences(x, y, mode=mode, regularization=0.1)
    got = DirectInfluence(model, case.loss, 0.1, second_order_mode=mode)
    close(got.fit(case.loader(batch_size)).influences(x, y), want)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_number_an_output_is_refused(batch_size):
    case = Case(seeded(lambda: nn.Linear(3, 2)), F.mse_loss, normal(9, 3), normal(9, 2, seed=2))
    with pytest.raises(LossError, match="one number a point"):
        ask(nn.MSELoss(reduction="none"), loader=case.loader(batch_size), case=case)


def learnt_case(loss, dtype):
    """A classifier that is right by twelve or so: losses of some 1e-5."""
    model = nn.Linear(3, 3, bias=False).to(dtype)
    y = classes(24)
    x = F.one_hot(y, 3).to(dtype) + 0.05 * normal(24, 3, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(12.0 * torch.eye(3))
    return Case(model, loss, x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_a_classifier_that_has_learnt_its_data(mode, reduction, dtype):
    case = learnt_case(REDUCTIONS[reduction], dtype)
    model = DirectInfluence(case.model, case.loss, 1e-2, second_order_mode=mode)
    model.fit(case.loader(8))
    assert model._fitted.problem._losses.reduction == reduction
    want = case.dense().influences(*case.part(0, 3), mode=mode, regularization=1e-2)
    close(model.influences(*case.part(0, 3)), want, 1e-2 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 10.0])),
        nn.CrossEntropyLoss(ignore_index=1),
        lambda f, y: F.cross_entropy(f, y, reduction="sum") / len(y) ** 0.5,
        lambda f, y: F.cross_entropy(f, y, reduction="none") * len(y),
    ],
)
def test_neither_mean_nor_sum_of_tiny_losses(loss, dtype):
    case = learnt_case(loss, dtype)
    if isinstance(loss, nn.Module):
        loss.to(dtype)
    with pytest.raises(LossError, match="reduction='none'"):
        DirectInfluence(case.model, loss, 1e-2).fit(case.loader(8))


def test_losses_that_tell_nothing_at_any_outputs():
    case = learnt_case(lambda f, y: F.relu(F.cross_entropy(f, y) - 100), torch.float64)
    model = DirectInfluence(case.model, case.loss, 1.0).fit(case.loader(8))
    assert model._fitted.problem._losses.reduction is None
    assert not model.influences(*case.part(0, 3)).any()


def test_outputs_that_the_loss_does_not_take_are_no_error():
    def strict(f, y):
        assert torch.allclose(f.sum(1), torch.ones_like(f.sum(1)))
        return F.nll_loss(f.log(), y)

    case = learnt_case(strict, torch.float64)
    keywords = {"forward": lambda m, x: m(x).softmax(1)}
    model = DirectInfluence(case.model, strict, 1.0, **keywords).fit(case.loader(8))
    want = Case(case.model, strict, case.x, case.y, keywords["forward"]).dense()
    close(model.influences(*case.part(0, 3)), want.influences(*case.part(0, 3), regularization=1.0))
