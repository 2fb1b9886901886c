"""Calculators that are given so little memory that every result has several chunks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from problems import Setting, fitted, make_setting

from influence_core import Direct, Influence, Method
from influence_core.calculators import SequentialInfluenceCalculator

# bytes of a product of the model, and of the calculator with it
PRODUCT, MEMORY = 2**12, 2**13
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def model(setting: Setting, method: Method = Direct(), **options: Any) -> Influence:  # noqa: B008
    """Return a fitted model whose products hold little."""
    return fitted(setting, method, **{"regularization": 1e-2, "max_memory": PRODUCT, **options})


def calculator(influence: Any, **options: Any) -> SequentialInfluenceCalculator:
    """Return a calculator that holds little."""
    return SequentialInfluenceCalculator(influence, **{"max_memory": MEMORY, **options})


def batches(setting: Setting, m: int, sizes: tuple[int, ...] = (7,)) -> list[Any]:
    """Return `m` test points in batches of these sizes, again and again."""
    x, y = setting.host_test(m)
    return list(cut(setting, x, y, sizes))


def cut(setting: Setting, x: Any, y: Any, sizes: tuple[int, ...]) -> Iterator[Any]:
    start, index = 0, 0
    while start < len(x):
        stop = start + sizes[index % len(sizes)]
        yield setting.library.array(x[start:stop]), setting.library.array(y[start:stop])
        start, index = stop, index + 1


class Job:
    """One call whose result goes to disk: 31 × 23 scores of logistic regression."""

    def __init__(self, memory: int = MEMORY, **options: Any) -> None:
        self.setting = make_setting("logistic")
        self.influence = model(self.setting, max_memory=memory // 2, **options)
        self.calculator = calculator(self.influence, max_memory=memory)
        self.test = batches(self.setting, 31)
        self.train = self.setting.loader()

    def lazy(self) -> Any:
        return self.calculator.influences(self.test, self.train)

    def expected(self) -> Any:
        return np.asarray(self.lazy().compute())


def chunk_files(directory: Path) -> dict[str, bytes]:
    """Return the chunks of a zarr array on disk, by their names."""
    found = (directory / "c").rglob("*")
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in found
        if file.is_file() and file.suffix != ".partial"
    }
