"""`kill -9` at random moments: nothing is lost, and nothing is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ENVIRONMENT

HERE = Path(__file__).parent
KILLS = 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_runs_are_taken_up(tmp_path):
    run = subprocess.run(
        [sys.executable, str(HERE / "killing.py"), str(tmp_path), str(KILLS), "0"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    assert counts["killed"] >= KILLS
    assert counts["completed"] >= 2  # results of both calls, in turn
    assert counts["partial"] >= KILLS // 4  # kills in the middle of writing
