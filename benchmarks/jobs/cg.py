"""S and M: conjugate gradient on the Hessian, for 100 right-hand sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from bench import Bench, loosest
from harness import Answer
from references import error
from table import AtLeast, Measured, Outcome, Row

TOLERANCE = 1e-4
VARIANTS: dict[str, dict[str, Any]] = {
    "row by row": {},
    "row by row, forward work kept": {"keywords": {"precompute_grad": True}},
    "Nyström preconditioner of rank 100": {"preconditioner": ["NystroemPreconditioner", 100]},
    "EK-FAC preconditioner": {"preconditioner": ["EkfacPreconditioner"]},
    "block CG": {"keywords": {"solve_simultaneously": True}},
    "block CG, forward work kept": {
        "keywords": {"solve_simultaneously": True, "precompute_grad": True}
    },
}
BLOCK = "block CG, forward work kept"
LADDER = [3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5]


@dataclass(frozen=True)
class Case:
    """One workload at one λ."""

    bench: Bench
    name: str
    regularization: float

    def options(self, variant: str, rtol: float) -> dict[str, Any]:
        """Return the options of our side."""
        chosen = VARIANTS[variant]
        keywords = {"atol": 0.0, "rtol": rtol, **chosen.get("keywords", {})}
        return {**chosen, **self.common, "keywords": keywords}

    @property
    def common(self) -> dict[str, Any]:
        """Options of both sides."""
        return {"method": "CgInfluence", "regularization": self.regularization}

    def residual(self, answer: Answer) -> float:
        """Return the largest relative residual, measured in float64."""
        return self.bench.exact(self.name).residuals(answer.arrays["factors"], self.regularization)

    def error(self, answer: Answer) -> float:
        """Return the error of the scores, as far as there are any."""
        scores = answer.arrays["scores"]
        return error(scores, self.exact[: len(scores)])

    @property
    def exact(self) -> np.ndarray:
        """The exact scores: dense where that is possible."""
        bench, λ = self.bench, self.regularization
        if bench.work(self.name).parameters < 5000:
            key = f"direct-{λ:g}"
            return bench.reference(self.name, key, lambda: bench.exact(self.name).direct([λ]))[0]
        return bench.reference(self.name, f"hessian-{λ:g}", self._solved)

    def _solved(self) -> np.ndarray:
        """Return the scores of a solve in float64 whose residual was checked."""
        options = self.options("block CG", 1e-9)
        answer = self.bench.ask("own", "factors", self.name, double=True, **options)
        residual = self.residual(answer)
        if residual > 1e-7:
            raise ValueError(f"the exact scores of {self.name} are none: residual {residual:.1e}")
        return answer.arrays["scores"]


def run(bench: Bench) -> Outcome:
    """Solve for both workloads."""
    small, larger = bench.work("S").regularization, 10 * bench.work("M").regularization
    outcomes = [_run(Case(bench, "S", small)), _run(Case(bench, "M", larger))]
    return Outcome(
        [row for outcome in outcomes for row in outcome.rows],
        "\n\n".join(outcome.details for outcome in outcomes),
    )


def _run(case: Case) -> Outcome:
    variants = {
        name: case.bench.side_by_side("factors", case.name, {"own": case.options(name, TOLERANCE)})
        for name in VARIANTS
    }
    answers = {name: by_side["own"] for name, by_side in variants.items()}
    residuals = {name: case.residual(answer) for name, answer in answers.items()}
    reached = {name for name in answers if residuals[name] <= 1.01 * TOLERANCE}
    best = min(reached or answers, key=lambda name: answers[name].total)
    title = f"{case.name} CG, λ={case.regularization:g}"
    rows = [_against_rows(case, title, best, answers[best], residuals[best])]
    rows.append(_against_block(case, title))
    once = case.bench.side_by_side("training_pass", case.name, {"own": {}})["own"].total
    count = len(case.bench.work(case.name).x_test)
    lines = [
        f"{title}, {count} right-hand sides to a relative residual of {TOLERANCE:g}. A training "
        f"pass (forward and backward over the same batches) takes {1e3 * once:.2f} ms.",
        "",
        f"| solver | seconds | steps | of steps × {count} training passes | relative residual "
        "| error of the scores |",
        "|---|---|---|---|---|---|",
    ]
    for name, answer in answers.items():
        steps = int(answer.numbers["steps"])
        share = answer.total / (steps * count * once)
        lines.append(
            f"| {name} | {answer.total:.2f} | {steps} | {share:.2f} | {residuals[name]:.2e} "
            f"| {case.error(answer):.1e} |"
        )
    return Outcome(rows, "\n".join(lines))


def _against_rows(case: Case, title: str, best: str, ours: Answer, residual: float) -> Row:
    bench, peer = case.bench, None
    if "pydvl" in bench.sides:
        answer = bench.ask(
            "pydvl", "cg_rows", case.name, rtol=TOLERANCE, budget=bench.budget,
            regularization=case.regularization,
        )  # fmt: skip
        rows, count = int(answer.numbers["rows"]), len(bench.work(case.name).x_test)
        how = (
            f"{rows} of {count} right-hand sides in {answer.total:.0f} s, × {count / rows:.3g}, "
            f"relative residual {case.residual(answer):.1e}"
        )
        seconds = answer.total * count / rows
        peer = Measured(seconds, case.error(answer), how, bench.sides["pydvl"].name)
    how = f"{best}, relative residual {residual:.2e}"
    own = Measured(ours.total, case.error(ours), how)
    return Row(f"{title}, against row by row", own, peer, AtLeast(40))


def _against_block(case: Case, title: str) -> Row:
    """Return block CG against block CG, ours at the loosest tolerance with the error of pyDVL."""
    bench = case.bench
    # pyDVL compares the norm of the residual with the square of its tolerance times the norm
    keywords = {"rtol": TOLERANCE**0.5, "atol": 0.0, "solve_simultaneously": True}
    theirs = {**case.common, "keywords": keywords}
    if "pydvl" not in bench.sides:
        ours = bench.ask("own", "factors", case.name, **case.options(BLOCK, TOLERANCE))
        own = Measured(ours.total, case.error(ours), BLOCK)
        return Row(f"{title}, block against block", own, None, AtLeast(2))
    wanted = case.error(bench.ask("pydvl", "factors", case.name, **theirs))
    found = loosest(
        LADDER,
        lambda rtol: bench.ask("own", "factors", case.name, **case.options(BLOCK, rtol)),
        lambda answer: case.error(answer) <= wanted,
    )
    rtol = found[0] if found else LADDER[-1]
    both = {"own": case.options(BLOCK, rtol), "pydvl": theirs}
    answers = bench.side_by_side("factors", case.name, both)
    own, peer = (
        Measured(
            answers[name].total, case.error(answers[name]),
            f"relative residual {case.residual(answers[name]):.1e}, {how}", bench.sides[name].name,
        )
        for name, how in (("own", f"{BLOCK}, rtol={rtol:g}"), ("pydvl", "solve_simultaneously"))
    )  # fmt: skip
    return Row(f"{title}, block against block", own, peer, AtLeast(2))
