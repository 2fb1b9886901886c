"""S: the Hessian materialised and solved, at six λ."""

from __future__ import annotations

from bench import Bench
from references import error
from table import AtLeast, Measured, Outcome, Row

FURTHER = [1e-3, 3e-3, 3e-2, 1e-1, 1.0]


def run(bench: Bench) -> Outcome:
    """Fit, score, and score at five further λ."""
    options = {"method": "DirectInfluence", "further": FURTHER}
    answers = bench.side_by_side("scores", "S", {"own": options, "pydvl": options})
    regularization = bench.work("S").regularization
    exact = bench.reference("S", "direct", lambda: bench.exact("S").direct([regularization]))
    further = bench.reference("S", "further", lambda: bench.exact("S").direct(FURTHER))

    def measured(name: str) -> Measured:
        answer = answers[name]
        scores = answer.arrays["scores"]
        phases = ", ".join(f"{phase} {taken:.3g} s" for phase, taken in answer.seconds.items())
        worst = max(error(scores[:1], exact), error(scores[1:], further))
        return Measured(answer.total, worst, phases, bench.sides[name].name)

    peer = measured("pydvl") if "pydvl" in answers else None
    return Outcome(
        [Row("S Direct: fit, scores, five further λ", measured("own"), peer, AtLeast(3))]
    )
