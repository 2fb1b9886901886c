"""CG for many right-hand sides in shared passes, against plain training passes and one by one.

100 right-hand sides of the digits MLP 64-32-10 (2,410 parameters, 1,437 points, λ = 1e-2, float32),
`atol=0`, to a relative residual of 1e-4. Accuracy: the residual measured with the answer, and the
error of the scores against `DirectInfluence` in float64.
"""

from __future__ import annotations

import torch
from timing import medians, once
from workloads import Workload, digits_mlp

from influence_torch import CgInfluence, DirectInfluence, NystroemPreconditioner, TorchProblem

RIGHT_HAND_SIDES, TOLERANCE = 100, 1e-4

VARIANTS = {
    "row by row CG, shared passes": {},
    "the same, forward work kept": {"precompute_grad": True},
    "Nyström preconditioner, rank 100": {"preconditioner": NystroemPreconditioner(100)},
    "block CG": {"solve_simultaneously": True},
}


def report() -> str:
    """Run everything and return the results as Markdown."""
    work = digits_mlp()
    test = work.x_test[:RIGHT_HAND_SIDES], work.y_test[:RIGHT_HAND_SIDES]
    batches = list(work.loader)  # collated once: the loader's own time is not what is compared
    models = {
        name: CgInfluence(
            work.model, work.loss, work.regularization, rtol=TOLERANCE, atol=0, **options
        ).fit(batches)
        for name, options in VARIANTS.items()
    }
    exact = _exact_scores(work, test)
    plain = next(iter(models.values()))
    training_pass = medians(lambda: _training_pass(work, batches))[0]
    seconds = medians(*(lambda m=m: m.influence_factors(*test) for m in models.values()))
    one_by_one = once(lambda: _one_by_one(plain, test))

    lines = [
        "| solver | seconds | steps | relative residual | error of the scores |"
        " of `steps × 100` training passes | one by one ÷ this |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, model), taken in zip(models.items(), seconds, strict=True):
        factors = model.influence_factors(*test)
        residual = _relative_residual(work, factors, test)
        steps = int(model.report.iterations.max())
        scores = model.influences_from_factors(factors, work.x, work.y)
        error = float((scores.double() - exact).norm() / exact.norm())
        lines.append(
            f"| {name} | {taken:.2f} | {steps} | {residual:.3e} | {error:.1e} "
            f"| {taken / (steps * RIGHT_HAND_SIDES * training_pass):.2f} "
            f"| {one_by_one / taken:.1f} |"
        )
    lines.append(
        f"\nOne training pass (forward and backward over the same three batches): "
        f"{1e3 * training_pass:.2f} ms. The first solver with one right-hand side at a time: "
        f"{one_by_one:.1f} s (run once)."
    )
    return "\n".join(lines)


def _training_pass(work: Workload, batches: list[list[torch.Tensor]]) -> None:
    for x, y in batches:
        loss = work.loss(work.model(x), y)
        torch.autograd.grad(loss, list(work.model.parameters()))


def _one_by_one(model: CgInfluence, test: tuple[torch.Tensor, torch.Tensor]) -> None:
    for x, y in zip(*test, strict=True):
        model.influence_factors(x[None], y[None])


def _exact_scores(work: Workload, test: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    exact = work.double()
    direct = DirectInfluence(exact.model, exact.loss, exact.regularization).fit(exact.loader)
    return direct.influences(test[0].double(), test[1], exact.x, exact.y)


def _relative_residual(
    work: Workload, factors: torch.Tensor, test: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Return the largest `‖b - (H + λI)x‖ / ‖b‖`, with the Hessian in float64."""
    exact = work.double()
    problem = TorchProblem(exact.model, exact.loss)
    names = list(problem.parameters)
    x = factors.double()
    right = problem.gradients(problem.batch((test[0].double(), test[1])), names)
    left = problem.hessian_product(problem.batch((exact.x, exact.y)), x, names)
    residual = right - left - exact.regularization * x
    return float((residual.norm(dim=1) / right.norm(dim=1)).max())
