"""Time to import."""

from __future__ import annotations

import os
import statistics
import subprocess

from bench import Bench
from harness import CLOCK
from table import AtMost, Measured, Outcome, Row

CORE = "import influence_core"
TORCH = "import influence_torch as package\nfor name in package.__all__: getattr(package, name)"
PYDVL = "import pydvl.influence.torch"
TIMED = """
{before}
import time
start = time.{clock}()
{code}
print(time.{clock}() - start)
"""


def run(bench: Bench) -> Outcome:
    """Import in fresh interpreters."""

    def measured(side: str, before: str, code: str, name: str) -> Measured:
        program = TIMED.format(before=before, code=code, clock=CLOCK.__name__)
        repeats = range(1 if bench.smoke else 7)
        seconds = [_run(bench.interpreters[side], program) for _ in repeats]
        return Measured(statistics.median(seconds), name=name)

    own = bench.sides["own"].name
    core = measured("own", "", CORE, own)
    if bench.smoke:
        return Outcome([Row("import influence_core", core)])
    torch = measured("own", "import torch", TORCH, own)
    peer = None
    if "pydvl" in bench.sides:
        peer = measured("pydvl", "import torch", PYDVL, bench.sides["pydvl"].name)
    return Outcome(
        [
            Row("import influence_core", core, target=AtMost(0.3)),
            Row("import all of influence_torch, beyond torch", torch, peer, AtMost(0.2)),
        ]
    )


def _run(interpreter: str, program: str) -> float:
    command = [interpreter, "-c", program]
    return float(subprocess.check_output(command, env=os.environ, text=True))
