"""Timing of several sides in turn, so that a machine whose speed drifts does not favour either."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from harness import Answer

# what takes longer runs once
LONG = 60.0


def medians(*sides: Callable[[], object], rounds: int = 3) -> list[float]:
    """Return the median seconds of every side over alternating rounds, after one warm-up each."""
    for side in sides:
        side()
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, taken in zip(sides, seconds, strict=True):
            taken.append(once(side))
    return [statistics.median(taken) for taken in seconds]


def once(side: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def alternate(sides: Sequence[Callable[[], Answer]], rounds: int) -> list[Answer]:
    """Return what each side answers, with the median seconds of every phase.

    All sides warm up once; one that takes over a minute runs no more.
    """
    runs = [[side()] for side in sides]
    for _ in range(rounds):
        for side, done in zip(sides, runs, strict=True):
            if done[0].total <= LONG:
                done.append(side())
    return [_median(done[1:] or done) for done in runs]


def _median(answers: Sequence[Answer]) -> Answer:
    phases = answers[0].seconds
    seconds = {name: statistics.median(a.seconds[name] for a in answers) for name in phases}
    return replace(answers[-1], seconds=seconds)


def machine() -> str:
    """Return what the numbers were measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("influence-core", "torch", "numpy"))
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, {packages}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(": ")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
