"""The curvature of every point with a vector of its own, against matrices of single points."""

import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from torch import nn
from zoo import Case, classes, close, convex_case, mlp_case, normal, seeded

from influence_torch import DirectInfluence, TorchProblem

MLP = mlp_case()
# vmap cannot go through what reads a value
BRANCHING = Case(
    seeded(lambda: nn.Linear(3, 3)),
    lambda f, y: F.cross_entropy(f if f.isfinite().all().item() else 0 * f, y, reduction="none"),
    MLP.x,
    MLP.y,
)
NO_REDUCTION = Case(MLP.model, lambda f, y: F.cross_entropy(f, y, reduction="sum"), MLP.x, MLP.y)
CASES = {"mlp": MLP, "convex": convex_case(), "sum": NO_REDUCTION}


def matrices(case, mode):
    """The matrix of every point alone, `(n, p, p)`."""
    count = len(case.y)
    each = [case.part(i, i + 1) for i in range(count)]
    return torch.stack(
        [Dense(case.model, case.loss, x, y, case.forward).curvature(mode) for x, y in each]
    )


@pytest.mark.parametrize("mode", ["hessian", "generalized_gauss_newton"])
@pytest.mark.parametrize("name", CASES)
def test_quadratics_of_points(name, mode):
    case = CASES[name]
    problem = TorchProblem(case.model, case.loss)
    batch, names = problem.batch((case.x, case.y)), list(problem.parameters)
    v = normal(len(case.y), sum(p.numel() for p in case.model.parameters()), seed=4)
    want = torch.einsum("np,npq,nq->n", v, matrices(case, mode), v)
    call = getattr(problem, f"{mode}_quadratics")
    close(call(batch, v, names), want, 1e-10)
    small = TorchProblem(case.model, case.loss, max_memory=1)  # a point at a time
    close(getattr(small, f"{mode}_quadratics")(batch, v, names), want, 1e-10)


@pytest.mark.parametrize("mode", ["hessian", "generalized_gauss_newton"])
def test_columns_follow_the_names(mode):
    problem = TorchProblem(MLP.model, MLP.loss)
    batch, names = problem.batch((MLP.x, MLP.y)), ["2.weight", "0.bias"]
    place = MLP.dense().columns({"": ["0.bias", "2.weight"]})[""]
    sizes = [4, 12]
    v = normal(23, sum(sizes), seed=4)
    dense = torch.zeros(23, 31, dtype=v.dtype)
    order = torch.cat([place[sizes[0] :], place[: sizes[0]]])  # as the names ask
    dense[:, order] = v
    want = torch.einsum("np,npq,nq->n", dense, matrices(MLP, mode), dense)
    close(getattr(problem, f"{mode}_quadratics")(batch, v, names), want, 1e-10)


def test_a_loop_where_vmap_cannot_go():
    problem = TorchProblem(BRANCHING.model, BRANCHING.loss)
    batch, names = problem.batch((BRANCHING.x, BRANCHING.y)), list(problem.parameters)
    v = normal(23, 12, seed=4)
    want = torch.einsum("np,npq,nq->n", v, matrices(BRANCHING, "hessian"), v)
    close(problem.hessian_quadratics(batch, v, names), want, 1e-10)


@pytest.mark.parametrize("mode", ["hessian", "gauss_newton", "generalized_gauss_newton"])
def test_removal_effects_of_a_module(mode):
    case = convex_case()
    model = DirectInfluence(case.model, case.loss, 1e-2, second_order_mode=mode).fit(case.loader())
    dense = case.dense()
    train, test = dense.gradients(case.x, case.y), dense.gradients(*case.part(0, 6))
    matrix = dense.curvature(mode) + 1e-2 * torch.eye(15, dtype=torch.float64)
    steps = torch.linalg.solve(matrix, train.T).T
    bends = torch.einsum("np,npq,nq->n", steps, matrices(case, mode), steps)
    leverage = bends / (23 * (steps * train).sum(dim=1))
    want = test @ steps.T / 23
    close(model.removal_effects(*case.part(0, 6), case.x, case.y), want, 1e-8)
    got = model.removal_effects(*case.part(0, 6), case.x, case.y, leverage=True)
    close(got, want / (1 - leverage), 1e-8)
    changes = steps / 23 / (1 - leverage)[:, None]
    close(model.parameter_changes(case.x, case.y, leverage=True), changes, 1e-8)


def test_labels_are_used():
    """Two points with the same input and other labels bend alike under cross-entropy, but not so
    in the outer-product form."""
    case = Case(MLP.model, MLP.loss, MLP.x, classes(23, seed=9))
    problems = [TorchProblem(c.model, c.loss) for c in (MLP, case)]
    v, names = normal(23, 31, seed=4), list(problems[0].parameters)
    same, other = (
        p.hessian_quadratics(p.batch((c.x, c.y)), v, names)
        for p, c in zip(problems, (MLP, case), strict=True)
    )
    assert not torch.allclose(same, other)
    same, other = (
        p.generalized_gauss_newton_quadratics(p.batch((c.x, c.y)), v, names)
        for p, c in zip(problems, (MLP, case), strict=True)
    )
    close(same, other, 1e-10)
