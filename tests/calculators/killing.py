"""Writes results, is killed at random moments, and looks at what is there after each.

    python killing.py DIRECTORY KILLS SEED

Two calls take turns at one place, the second one replacing the first. A run is a fork of this
process, killed by SIGKILL after a random time. After every kill, each chunk on disk must be the
very bytes of the call whose identity stands beside it, and none that was there may be lost. Prints
as JSON how often runs were killed, and how many results were completed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import zarr  # noqa: F401 - imported before the forks
from jobs import Job, chunk_files
from tqdm import tqdm  # noqa: F401 - imported before the forks

REGULARIZATIONS = (1e-2, 1e-1)
MEMORY = 2**12  # two test points are a row of chunks


# A killed process loses nothing that it has written: only a power failure does. The time goes into
# writing instead, where the kills are to come.
os.fsync = lambda descriptor: None


def main(directory: Path, kills: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    jobs = {value: Job(MEMORY, regularization=value) for value in REGULARIZATIONS}
    references = {}
    for value, job in jobs.items():
        started = time.perf_counter()
        assert run(job, directory / f"{value}.zarr", None)
        duration = time.perf_counter() - started
        references[value] = chunk_files(directory / f"{value}.zarr")
    place = directory / "scores.zarr"
    counts = {"killed": 0, "completed": 0, "torn_replacements": 0, "partial": 0}
    turn, finished = 0, set()
    while counts["killed"] < kills:
        value = REGULARIZATIONS[turn % 2]
        completed = run(jobs[value], place, rng.uniform(0, duration))
        present = identity(place)
        found = chunk_files(place) if place.exists() else {}
        if present is None:
            counts["torn_replacements"] += place.exists()
            finished = set()
        else:
            reference = references[present]
            assert all(reference[name] == content for name, content in found.items())
            if present == value:
                assert finished <= set(found), "a finished chunk was lost"
                finished = set(found)
                counts["partial"] += 0 < len(found) < len(reference)
        if completed:
            assert found == references[value]
            counts["completed"] += 1
            turn, finished = turn + 1, set()
        else:
            counts["killed"] += 1
    assert run(jobs[value], place, None)
    assert chunk_files(place) == references[value]
    return counts


def run(job: Job, place: Path, seconds: float | None) -> bool:
    """Make the call in a process of its own; return whether it came to an end before the kill."""
    child = os.fork()
    if child == 0:
        try:
            job.lazy().to_zarr(place, overwrite=True)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def identity(place: Path) -> float | None:
    """Return the λ of the call that the chunks belong to; None where they belong to none."""
    try:
        record: dict[str, Any] = json.loads((place / "zarr.json").read_text())
    except FileNotFoundError:
        return None
    known = record["attributes"]["influence_core"]["identity"]
    return known and known["model"]["regularization"][""]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
