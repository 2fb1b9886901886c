"""The benchmarks run: everything of ours, tiny, without the libraries it is compared with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"


def test_smoke_run_reports_every_job() -> None:
    command = [sys.executable, str(RUN), "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    for job in ("S Direct", "S CG", "M CG", "S LiSSA", "L EK-FAC fit", "C perturbation", "import"):
        assert any(line.startswith(f"| {job}") for line in rows), done.stdout
