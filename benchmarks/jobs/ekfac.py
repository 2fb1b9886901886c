"""L and C: EK-FAC with corrected eigenvalues."""

from __future__ import annotations

from bench import Bench
from harness import Answer
from references import error
from table import AtLeast, Measured, Outcome, Row

OWN = {"method": "EkfacInfluence", "keywords": {"update_diagonal": True, "labels": "sampled"}}
PYDVL = {"method": "EkfacInfluence", "keywords": {"update_diagonal": True}}
TOLERANCE = 1e-4


def run(bench: Bench) -> Outcome:
    """Fit and score; the error is that against exact contraction with the side's own factors."""
    rows = []
    for name, targets in (("L", (AtLeast(50), AtLeast(20))), ("C", (None, None))):
        sides = {"own": OWN, "kronfluence": {}} | ({"pydvl": PYDVL} if name == "L" else {})
        answers = bench.side_by_side("ekfac", name, sides)
        errors = {side: _error(bench, name, answer) for side, answer in answers.items()}
        for phase, target in zip(("fit", "scores"), targets, strict=True):
            own, peer, other = (
                Measured(
                    answers[side].seconds[phase], errors[side] if phase == "scores" else None,
                    name=bench.sides[side].name,
                )
                if side in answers
                else None
                for side in ("own", "kronfluence", "pydvl")
            )  # fmt: skip
            tolerance = TOLERANCE if phase == "scores" else None
            rows.append(Row(f"{name} EK-FAC {phase}", own, peer, target, tolerance))
            if other:
                aim = AtLeast(50) if phase == "scores" else None
                rows.append(Row(f"{name} EK-FAC {phase}", own, other, aim, tolerance))
    return Outcome(rows)


def _error(bench: Bench, name: str, answer: Answer) -> float:
    exact = bench.exact(name).ekfac(answer.arrays)
    return error(answer.arrays["scores"], exact)
