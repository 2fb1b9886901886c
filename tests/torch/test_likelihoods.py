"""Losses with independent outputs: gradients at the labels of the model's distribution."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from seen import EXPECTED, SAMPLED, labels, slices
from torch import nn
from zoo import close, normal, seeded

from influence_core import CapabilityError
from influence_torch import CgInfluence, EkfacInfluence, TorchProblem

N, OUTPUTS = 5, 3
X, Y = normal(N, 4), normal(N, OUTPUTS, seed=1)
BITS = (Y > 0).to(Y)


def mlp(last=None):
    layers = [nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, OUTPUTS)]
    return nn.Sequential(*layers, last) if last else nn.Sequential(*layers)


def probabilities():
    return mlp(nn.Sigmoid())


BINARY = {
    "logits": (mlp, F.binary_cross_entropy_with_logits),
    "logits, module": (mlp, nn.BCEWithLogitsLoss()),
    "logits, sum": (mlp, nn.BCEWithLogitsLoss(reduction="sum")),
    "probabilities": (probabilities, F.binary_cross_entropy),
    "probabilities, module": (probabilities, nn.BCELoss()),
}
SQUARED = {
    "function": F.mse_loss,
    "module": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
}


def fisher(rows):
    return torch.einsum("cnd,cne->de", rows, rows) / N


@pytest.mark.parametrize("name", BINARY)
def test_expected_binary_labels(name):
    """The mean over all 2ᵗ labels of the outer product of gradients by autograd."""
    make, loss = BINARY[name]
    model = seeded(make)
    want = 0.0
    with torch.no_grad():
        outputs = model(X)
        p = outputs if make is probabilities else outputs.sigmoid()
    for bits in itertools.product((0.0, 1.0), repeat=OUTPUTS):
        y = torch.tensor(bits, dtype=X.dtype).expand(N, OUTPUTS)
        weight = torch.where(y == 1, p, 1 - p).prod(1)
        rows = Dense(model, loss, X, y).gradients(X, y)
        want = want + torch.einsum("n,nd,ne->de", weight, rows, rows) / N
    rows = slices(TorchProblem(model, loss), X, BITS, labels(EXPECTED))
    assert rows.shape[0] == OUTPUTS
    close(fisher(rows), want, 1e-10)


@pytest.mark.parametrize("name", SQUARED)
def test_expected_labels_of_a_squared_error_make_the_gauss_newton_matrix(name):
    model, loss = seeded(mlp), SQUARED[name]
    rows = slices(TorchProblem(model, loss), X, Y, labels(EXPECTED))
    want = Dense(model, loss, X, Y).curvature("generalized_gauss_newton")
    close(fisher(rows), want, 1e-10)


@pytest.mark.parametrize(
    ("make", "loss"), [*BINARY.values(), *((mlp, loss) for loss in SQUARED.values())]
)
def test_sampled_labels_converge_to_the_expected_ones(make, loss):
    problem, draws = TorchProblem(seeded(make), loss), 40_000
    y = Y if loss in SQUARED.values() else BITS
    want = fisher(slices(problem, X, y, labels(EXPECTED)))
    uniforms = np.random.default_rng(0).random((draws, N, OUTPUTS))
    rows = slices(problem, X, y, labels(SAMPLED, lambda positions: uniforms[..., :positions]))
    assert rows.shape[0] == draws
    close(fisher(rows), want, 0.03)


def test_extreme_uniforms_are_finite():
    for dtype in (torch.float32, torch.float64):
        problem = TorchProblem(seeded(mlp).to(dtype), nn.MSELoss())
        for number in (0.0, np.nextafter(1.0, 0.0)):
            uniforms = np.full((1, N, OUTPUTS), number)
            x, y = X.to(dtype), Y.to(dtype)
            assert slices(problem, x, y, labels(SAMPLED, lambda _, u=uniforms: u)).isfinite().all()


def test_many_outputs_are_sampled():
    model = seeded(lambda: nn.Linear(4, 40))
    y = normal(N, 40)
    few = slices(
        TorchProblem(model, F.mse_loss), X, y, labels(None, lambda _: np.full((2, N, 40), 0.3))
    )
    assert few.shape[0] == 2


@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(OUTPUTS)),
        nn.BCEWithLogitsLoss(weight=torch.ones(OUTPUTS)),
        nn.BCELoss(weight=torch.ones(OUTPUTS)),
        nn.HuberLoss(),
        type("Own", (nn.MSELoss,), {})(),
    ],
)
def test_other_losses_are_refused(loss):
    problem = TorchProblem(seeded(probabilities), loss)
    with pytest.raises(CapabilityError, match=r"mse_loss.*'given'"):
        slices(problem, X, BITS, labels(EXPECTED))


def test_ekfac_of_a_linear_regression_is_exact_where_the_factors_are():
    """One output: the output factor is a number, and K-FAC is the Gauss–Newton matrix itself."""
    model = seeded(lambda: nn.Linear(4, 1))
    data = [(X[:3], Y[:3, :1]), (X[3:], Y[3:, :1])]
    ekfac = EkfacInfluence(model, hessian_regularization=0.1, loss=F.mse_loss).fit(data)
    cg = CgInfluence(model, F.mse_loss, 0.1, rtol=1e-12, atol=0).fit(data)
    close(ekfac.influences(X, Y[:, :1]), cg.influences(X, Y[:, :1]), 1e-9)
