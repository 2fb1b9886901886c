"""S: LiSSA until the scores are 10 % off."""

from __future__ import annotations

from typing import Any

from bench import Bench, loosest
from harness import Answer
from references import error
from table import AtLeast, Measured, Outcome, Row

GOOD = 0.1
STEPS = {
    "own": [3, 6, 9, 12, 18, 24, 36, 48, 72, 96, 144, 192, 288, 384, 576, 768],
    "pydvl": [1000, 1500, 2000, 2500, 3000, 4000, 5000, 6000, 8000],
}


def _options(side: str, steps: int) -> dict[str, Any]:
    keywords: dict[str, Any] = {"maxiter": steps, "rtol": 0.0}
    if side == "own":
        keywords["scale"] = None
    return {"method": "LissaInfluence", "keywords": keywords}


def run(bench: Bench) -> Outcome:
    """Find the fewest steps that get there on each side, then measure both in turn."""
    regularization = bench.work("S").regularization
    exact = bench.reference("S", "direct", lambda: bench.exact("S").direct([regularization]))[0]

    def distance(answer: Answer) -> float:
        return error(answer.arrays["scores"], exact)

    steps = {}
    for side in ("own", "pydvl"):
        if side not in bench.sides:
            continue
        found = loosest(
            STEPS[side],
            lambda count, side=side: bench.ask(side, "scores", "S", **_options(side, count)),
            lambda answer: distance(answer) <= GOOD,
        )
        steps[side] = found[0] if found else STEPS[side][-1]
    answers = bench.side_by_side(
        "scores", "S", {name: _options(name, steps[name]) for name in steps}
    )
    own, peer = (
        Measured(
            answers[name].total, distance(answers[name]), f"{steps[name]} steps, {scale}",
            bench.sides[name].name,
        )
        if name in answers
        else None
        for name, scale in (("own", "scale=None"), ("pydvl", "scale=10, its default"))
    )  # fmt: skip
    job = "S LiSSA, scores within 10 %"
    rows = [Row(job, own, peer, AtLeast(10), None if bench.smoke else GOOD)]
    if peer is not None:
        default = bench.ask("pydvl", "scores", "S", method="LissaInfluence")
        rows.append(
            Row(
                "S LiSSA, all of pyDVL's defaults",
                own,
                Measured(default.total, distance(default), "1,000 steps, scale=10", peer.name),
            )
        )
    return Outcome(rows)
