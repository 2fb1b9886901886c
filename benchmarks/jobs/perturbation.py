"""C: perturbation mode, whose trap is the tensor of mixed derivatives."""

from __future__ import annotations

import numpy as np
from bench import Bench
from references import error
from table import AtLeast, AtMost, Measured, Outcome, Row, Target

FEW, MANY = (5, 8), (20, 1437)
METHOD = "InverseHarmonicMeanInfluence"


def run(bench: Bench) -> Outcome:
    """Measure the peak of one call, each in a fresh process."""
    exact = bench.reference("C", "perturbation", lambda: bench.exact("C").perturbation(*FEW))
    return Outcome(
        [
            _row(bench, FEW, AtLeast(20), exact, ("own", "pydvl")),
            _row(bench, FEW, None, exact, ("own", "pydvl"), solved=True),
            _row(bench, MANY, AtMost(2e9), None, ("own",)),
        ]
    )


def _row(
    bench: Bench,
    points: tuple[int, int],
    target: Target | None,
    exact: np.ndarray | None,
    names: tuple[str, ...],
    solved: bool = False,
) -> Row:
    m, n = points
    sides = {}
    for name in names:
        if name not in bench.sides:
            continue
        options = {"method": METHOD, "test": m, "train": n, "solved": solved}
        answer = bench.alone(name, "perturbation", "C", **options)
        if answer is not None:
            off = None if exact is None else error(answer.arrays["scores"], exact)
            peak, how = answer.numbers["peak_bytes"], f"{answer.total:.2g} s"
            sides[name] = Measured(peak, off, how, bench.sides[name].name)
    part = "peak memory without the solve" if solved else "peak memory"
    return Row(
        f"C perturbation, {m} × {n:,} points: {part}",
        sides["own"],
        sides.get("pydvl"),
        target,
        unit="bytes",
        note="harmonic mean",
    )
