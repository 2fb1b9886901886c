"""M: scores with the generalised Gauss–Newton matrix, within 1 % of the exact ones."""

from __future__ import annotations

from typing import Any

from bench import Bench, loosest
from references import error
from table import AtLeast, Measured, Outcome, Row

GOOD = 0.01
PLAIN = "plain CG, rows in one batch"
STEPS = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96]


def _variant(*preconditioner: Any, **keywords: Any) -> dict[str, Any]:
    kept = {"atol": 0.0, "rtol": 0.0, "warn_on_max_iteration": False, **keywords}
    options = {"method": "CgInfluence", "curvature": "generalized_gauss_newton", "keywords": kept}
    return options | ({"preconditioner": list(preconditioner)} if preconditioner else {})


VARIANTS = {
    PLAIN: _variant(),
    "forward work kept": _variant(precompute_grad=True),
    "block CG": _variant(solve_simultaneously=True),
    "block CG, forward work kept": _variant(solve_simultaneously=True, precompute_grad=True),
    "EK-FAC preconditioner": _variant("EkfacPreconditioner", precompute_grad=True),
    "EK-FAC preconditioner, block CG": _variant(
        "EkfacPreconditioner", solve_simultaneously=True, precompute_grad=True
    ),
    "Nyström preconditioner, rank 50": _variant("NystroemPreconditioner", 50, precompute_grad=True),
    "Nyström preconditioner, rank 50, block CG": _variant(
        "NystroemPreconditioner", 50, solve_simultaneously=True, precompute_grad=True
    ),
}


def run(bench: Bench) -> Outcome:
    """Find the fewest steps of every solver, and report the fastest."""
    exact = bench.reference("M", "ggn", lambda: bench.exact("M").generalized_gauss_newton())
    steps = STEPS[3:4] if bench.smoke else STEPS
    found = {name: _fewest(bench, options, steps, exact) for name, options in VARIANTS.items()}
    seconds, errors = {}, {}
    for name, count in found.items():
        answer = bench.side_by_side("factors", "M", {"own": _with(VARIANTS[name], count)})["own"]
        seconds[name] = answer.total
        errors[name] = error(answer.arrays["scores"], exact)
    others = [name for name in VARIANTS if name != PLAIN]
    good = [name for name in others if errors[name] <= GOOD] or others
    best = min(good, key=seconds.__getitem__)
    rows = [
        Row(
            "M generalised Gauss–Newton, scores within 1 %",
            Measured(seconds[best], errors[best], f"{best}, {found[best]} steps"),
            Measured(seconds[PLAIN], errors[PLAIN], f"{found[PLAIN]} steps", PLAIN),
            AtLeast(5),
            None if bench.smoke else GOOD,
        )
    ]
    lines = ["| solver | steps | seconds | error of the scores |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {found[name]} | {seconds[name]:.2f} | {errors[name]:.1e} |"
        for name in VARIANTS
    ]
    return Outcome(rows, "\n".join(["Scores with the GGN of M, λ=1e-2:", "", *lines]))


def _with(options: dict[str, Any], steps: int) -> dict[str, Any]:
    return {**options, "keywords": {**options["keywords"], "maxiter": steps}}


def _fewest(bench: Bench, options: dict[str, Any], steps: list[int], exact: Any) -> int:
    found = loosest(
        steps,
        lambda count: bench.ask("own", "factors", "M", **_with(options, count)),
        lambda answer: error(answer.arrays["scores"], exact) <= GOOD,
    )
    return found[0] if found else steps[-1]
