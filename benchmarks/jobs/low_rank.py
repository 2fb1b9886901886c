"""S: Arnoldi, Nyström and the harmonic mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from bench import Bench
from harness import Answer
from references import Exact, error
from table import AtLeast, Measured, Outcome, Row


@dataclass(frozen=True)
class Case:
    """One method.

    Attributes:
        job: its line in the table.
        ratio: the target.
        method: the class.
        keywords: of the class.
        exact: what the scores are held against, and in words.
    """

    job: str
    ratio: float
    method: str
    keywords: dict[str, Any]
    exact: tuple[Callable[[Exact], np.ndarray], str]


def _direct(exact: Exact) -> np.ndarray:
    return exact.direct([exact.work.regularization])[0]


RANKS = {True: (3, 6), False: (20, 60)}


def cases(smoke: bool) -> list[Case]:
    """Return the three."""
    arnoldi, nystroem = RANKS[smoke]
    return [
        Case(
            f"S Arnoldi, rank {arnoldi}", 3, "ArnoldiInfluence", {"rank": arnoldi},
            (lambda exact: exact.truncated(arnoldi), "the exact eigenpairs of the same rank"),
        ),
        Case(
            f"S Nyström, rank {nystroem}", 5, "NystroemSketchInfluence", {"rank": nystroem},
            (_direct, "the exact inverse"),
        ),
        Case(
            "S harmonic mean", 15, "InverseHarmonicMeanInfluence", {},
            (Exact.harmonic_mean, "the same mean in float64"),
        ),
    ]  # fmt: skip


def run(bench: Bench) -> Outcome:
    """Fit and score with each."""
    chosen = cases(bench.smoke)
    rows = [_row(bench, case, bench.side_by_side, case.job) for case in chosen]
    first = "{}, first call of a process"
    rows += [
        replace(_row(bench, case, bench.first_calls, first.format(case.job)), target=None)
        for case in chosen
    ]
    return Outcome(rows)


def _row(bench: Bench, case: Case, measure: Callable[..., Mapping[str, Answer]], job: str) -> Row:
    options = {"method": case.method, "keywords": case.keywords}
    answers = measure("scores", "S", {"own": options, "pydvl": options})
    compute, words = case.exact
    exact = bench.reference("S", case.method, lambda: compute(bench.exact("S")))

    def measured(name: str) -> Measured:
        answer = answers[name]
        return Measured(
            answer.total,
            error(answer.arrays["scores"], exact),
            name=bench.sides[name].name,
        )

    peer = measured("pydvl") if "pydvl" in answers else None
    return Row(job, measured("own"), peer, AtLeast(case.ratio), note=f"error against {words}")
