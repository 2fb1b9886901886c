"""A library under measurement as a process of its own, asked for tasks through its input.

A task is a function of a workload and options that returns an `Answer`. `serve` runs in the
environment of the library, `Process` in that of the benchmarks. `Local` runs the tasks in place.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

HERE = Path(__file__).parent
# A shared machine is measured by the processor's time, with one thread.
CLOCK = time.process_time if os.environ.get("BENCHMARK_CLOCK") == "cpu" else time.perf_counter


@dataclass
class Answer:
    """What a task measured.

    Attributes:
        seconds: by the name of the phase.
        numbers: other numbers, by name.
        arrays: what came out, by name.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The seconds of all phases."""
        return sum(self.seconds.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the body to a phase."""
        start = CLOCK()
        yield
        taken = CLOCK() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + taken

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Keep the bytes by which the body raises the resident memory at its peak."""
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
        yield
        self.numbers["peak_bytes"] = _resident("VmHWM") - before


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; peaks of memory can be read on Linux only")


Task = Callable[[Any, Mapping[str, Any]], Answer]


class TaskFailedError(RuntimeError):
    """The process of a library did not finish a task; the message is what it said."""


class Side(Protocol):
    """One library."""

    name: str

    def ask(self, task: str, workload: Path, **options: Any) -> Answer:
        """Do a task."""

    def close(self) -> None:
        """End the process."""


@lru_cache(maxsize=4)
def _load(path: str) -> Any:
    from workloads import load

    return load(path)


@dataclass
class Local:
    """Tasks that run in this process."""

    name: str
    tasks: Mapping[str, Task]

    def ask(self, task: str, workload: Path, **options: Any) -> Answer:
        return self.tasks[task](_load(str(workload)), options)

    def close(self) -> None:
        pass


class Process:
    """Tasks that run in a process of their own, in the environment of another interpreter.

    Args:
        name: of the library.
        interpreter: a Python that has it.
        script: calls `serve`.
        threads: of the process.
        most_memory: bytes of address space; None is without limit.
    """

    def __init__(
        self,
        name: str,
        interpreter: str,
        script: Path,
        threads: int,
        most_memory: int | None = None,
    ) -> None:
        self.name = name
        variables = {f"{kind}_NUM_THREADS": str(threads) for kind in ("OMP", "MKL", "OPENBLAS")}
        search = [str(HERE), os.environ.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, search))
        if most_memory:
            # Large arrays go back to the system at once, so that peaks are of what is in use.
            variables |= {"BENCHMARK_MEMORY": str(most_memory), "MALLOC_MMAP_THRESHOLD_": "65536"}
        self._process = subprocess.Popen(
            [interpreter, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | variables,
            text=True,
        )

    def ask(self, task: str, workload: Path, **options: Any) -> Answer:
        """Do a task.

        Raises:
            TaskFailedError: it raised, or the process died.
        """
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "arrays.npz")
            request = {
                "task": task, "workload": str(workload), "options": options, "output": str(output)
            }  # fmt: skip
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
            if not line:
                raise TaskFailedError(f"{self.name} died in {task} ({self._process.wait()})")
            reply = json.loads(line)
            if "error" in reply:
                raise TaskFailedError(f"{self.name}, {task}: {reply['error']}")
            with np.load(output) as file:
                return Answer(reply["seconds"], reply["numbers"], dict(file))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def serve(tasks: Mapping[str, Task]) -> None:
    """Do tasks as long as somebody asks."""
    warnings.simplefilter("ignore")  # errors and residuals are measured
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    if most := os.environ.get("BENCHMARK_MEMORY"):
        resource.setrlimit(resource.RLIMIT_AS, (int(most), int(most)))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = tasks[request["task"]](_load(request["workload"]), request["options"])
            np.savez(request["output"], **answer.arrays)
            reply = {"seconds": answer.seconds, "numbers": answer.numbers}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
