"""How time and memory grow with the points, the parameters, the right-hand sides and the rank.

Every curve changes one number and leaves the others. The slope is that of a straight line through
the logarithms: 1 is linear, 0 is independent. The peak is what the call adds to the memory of a
process of its own, whose data is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench
from timing import alternate
from workloads import Recipe

CG = {
    "call": "solve", "method": "CgInfluence",
    "keywords": {"rtol": 0.0, "atol": 0.0, "maxiter": 10},
}  # fmt: skip
EKFAC = {
    "call": "fit", "method": "EkfacInfluence",
    "keywords": {"update_diagonal": True, "labels": "sampled"},
}  # fmt: skip
TEN_STEPS = "10 steps of CG, {} right-hand sides"


@dataclass(frozen=True)
class Curve:
    """One number that grows.

    Attributes:
        axis: what it is.
        values: of it.
        recipe: of the workload at a value.
        jobs: by name, the options of a measurement at a value.
    """

    axis: str
    values: Sequence[int]
    recipe: Callable[[int], Recipe]
    jobs: Mapping[str, Callable[[int], dict[str, Any]]]


@dataclass(frozen=True)
class Measurements:
    """Seconds and bytes of one job along a curve."""

    name: str
    values: Sequence[int]
    seconds: Sequence[float]
    peaks: Sequence[float]


def curves(smoke: bool) -> list[Curve]:
    """Return the four; a smoke run has two small values of each."""
    base = Recipe((64, 32, 10), epochs=1)
    wide = Recipe((64, 256, 256, 10), epochs=1)
    if smoke:
        base = wide = Recipe((64, 4, 10), epochs=1, train=96, test=5, batch=40)
    rows = 4 if smoke else 100
    return [
        Curve(
            "points n", [1, 2] if smoke else [1, 2, 4, 8, 16],
            lambda copies: replace(base, copies=copies),
            {
                TEN_STEPS.format(rows): lambda _: {**CG, "rows": rows},
                "EK-FAC, fit": lambda _: EKFAC,
            },
        ),
        Curve(
            "parameters p", [4, 8] if smoke else [32, 64, 128, 256, 512],
            lambda width: replace(wide, sizes=(64, width, width, 10)),
            {
                TEN_STEPS.format(rows // 4): lambda _: {**CG, "rows": rows // 4},
                "EK-FAC, fit": lambda _: EKFAC,
            },
        ),
        Curve(
            "right-hand sides k", [2, 4] if smoke else [25, 50, 100, 200, 400],
            lambda _: base,
            {"10 steps of CG": lambda count: {**CG, "rows": count}},
        ),
        Curve(
            "rank r", [2, 4] if smoke else [20, 40, 80, 160, 320],
            lambda _: base,
            {
                "Nyström, fit": lambda rank: {
                    "call": "fit", "method": "NystroemSketchInfluence", "keywords": {"rank": rank},
                },
                "Arnoldi, fit": lambda rank: {
                    "call": "fit", "method": "ArnoldiInfluence", "keywords": {"rank": rank},
                },
            },
        ),
    ]  # fmt: skip


def report(bench: Bench, picture: Path) -> str:
    """Measure all curves, draw them, and return the slopes as Markdown."""
    measured = [(curve, _measure(bench, curve)) for curve in curves(bench.smoke)]
    _draw(measured, picture)
    lines = [
        "| | grows with | from, to | slope of the time | slope of the peak |",
        "|---|---|---|---|---|",
    ]
    for curve, jobs in measured:
        for job in jobs:
            first, last = job.values[0], job.values[-1]
            lines.append(
                f"| {job.name} | {curve.axis} | {first:,}, {last:,} "
                f"| {slope(job.values, job.seconds):.2f} | {slope(job.values, job.peaks):.2f} |"
            )
    return "\n".join(lines)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def _measure(bench: Bench, curve: Curve) -> list[Measurements]:
    recipes = {value: curve.recipe(value) for value in curve.values}
    paths = {value: recipe.saved(bench.folder) for value, recipe in recipes.items()}
    axis = [_amount(curve.axis, value, recipe) for value, recipe in recipes.items()]
    measured = []
    for name, options in curve.jobs.items():
        calls = [
            lambda value=value, options=options: bench.sides["own"].ask(
                "cost", paths[value], **options(value)
            )
            for value in curve.values
        ]
        seconds = [answer.total for answer in alternate(calls, bench.rounds)]
        peaks = []
        for value in curve.values:
            process = bench.lean("own")
            for _ in range(2):  # the first loads code
                answer = process.ask("cost", paths[value], **options(value))
            peaks.append(answer.numbers["peak_bytes"])
            process.close()
        measured.append(Measurements(name, axis, seconds, peaks))
    return measured


def _amount(axis: str, value: int, recipe: Recipe) -> int:
    if axis == "points n":
        return recipe.copies * recipe.train
    if axis == "parameters p":
        return recipe.parameters
    return value


def _draw(measured: Sequence[tuple[Curve, Sequence[Measurements]]], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    axes = figure.subplots(2, len(measured))
    for (curve, jobs), column in zip(measured, axes.T, strict=True):
        for job in jobs:
            for axis, values in zip(
                column, (job.seconds, [b / 2**20 for b in job.peaks]), strict=True
            ):
                label = f"{job.name}: slope {slope(job.values, values):.2f}"
                axis.loglog(job.values, values, marker="o", label=label)
        for axis in column:
            axis.grid(alpha=0.3)
            axis.legend(fontsize="x-small")
        column[1].set_xlabel(curve.axis)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak, MiB")
    figure.savefig(picture, dpi=90)
