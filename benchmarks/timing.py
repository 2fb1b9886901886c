"""Timing of two sides in turn, so that a machine whose speed drifts does not favour either."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch


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


def machine() -> str:
    """Return what the numbers were measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("influence-core", "torch", "numpy"))
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, {packages}"
    )
