"""What the jobs share: the sides, the workloads and the exact answers, each made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from harness import Answer, Side, TaskFailedError
from references import Exact
from timing import alternate
from workloads import Recipe, Workload, load

_T = TypeVar("_T")


@dataclass
class Bench:
    """Everything that a job needs.

    Attributes:
        sides: the libraries by name; `own` is always there.
        fresh: starts another process of a side.
        lean: the same for peaks of memory, which it reports truly and is not allowed to exceed.
        recipes: of the workloads, by their letter.
        folder: where workloads and exact answers are kept from run to run.
        rounds: of alternating runs.
        budget: seconds for a peer that cannot finish.
        smoke: run as little as shows that everything works.
        interpreters: the Python of each library, for import times.
    """

    sides: Mapping[str, Side]
    fresh: Callable[[str], Side]
    lean: Callable[[str], Side]
    recipes: Mapping[str, Recipe]
    folder: Path
    interpreters: Mapping[str, str]
    rounds: int = 3
    budget: float = 300.0
    smoke: bool = False
    _works: dict[str, Workload] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return the file of a workload."""
        return self.recipes[name].saved(self.folder)

    def work(self, name: str) -> Workload:
        """Return a workload."""
        if name not in self._works:
            self._works[name] = load(self.path(name))
        return self._works[name]

    def exact(self, name: str) -> Exact:
        """Return the exact answers of a workload."""
        return Exact(self.work(name).double())

    def reference(self, name: str, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an exact answer that is kept from run to run."""
        path = self.folder / f"{self.path(name).stem}-{key}.npy"
        if not path.exists():
            np.save(path, compute())
        return np.load(path)

    def ask(self, side: str, task: str, workload: str, **options: Any) -> Answer:
        """Do a task."""
        return self.sides[side].ask(task, self.path(workload), **options)

    def side_by_side(
        self, task: str, workload: str, options: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Answer]:
        """Do a task in turn on every side that is there, with the options of each."""
        present = [name for name in options if name in self.sides]
        calls = [
            lambda name=name: self.ask(name, task, workload, **options[name]) for name in present
        ]
        return dict(zip(present, alternate(calls, self.rounds), strict=True))

    def first_calls(
        self, task: str, workload: str, options: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Answer]:
        """Do a task in turn on every side, each time as the first call of a fresh process."""
        present = [name for name in options if name in self.sides]

        def first(name: str) -> Answer:
            process = self.fresh(name)
            try:
                return process.ask(task, self.path(workload), **options[name])
            finally:
                process.close()

        calls = [lambda name=name: first(name) for name in present]
        return dict(zip(present, alternate(calls, self.rounds), strict=True))

    def alone(self, side: str, task: str, workload: str, **options: Any) -> Answer | None:
        """Do a task in a process of its own; None where it fails, for want of memory say."""
        process = self.lean(side)
        try:
            process.ask(task, self.path(workload), **options)  # loads code that runs once
            return process.ask(task, self.path(workload), **options)
        except TaskFailedError as failure:
            print(failure)
            return None
        finally:
            process.close()


def loosest(
    values: Sequence[_T], run: Callable[[_T], Answer], good: Callable[[Answer], bool]
) -> tuple[_T, Answer] | None:
    """Return the first of `values` that is good enough, by bisection, and its answer.

    `values` go from cheap to exact; None where not even the last is good.
    """
    found, low, high = None, 0, len(values)
    while low < high:
        middle = (low + high) // 2
        answer = run(values[middle])
        if good(answer):
            found, high = (values[middle], answer), middle
        else:
            low = middle + 1
    return found
