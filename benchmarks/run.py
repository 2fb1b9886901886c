"""Runs the benchmarks and writes RESULTS.md and scaling.png beside this file.

python benchmarks/run.py --peer pydvl=…/bin/python --peer kronfluence=…/bin/python
python benchmarks/run.py --only cg ekfac --peer …  # prints, and writes nothing
python benchmarks/run.py --smoke

`nox -s benchmark` makes the environments of the peers first. `--smoke` runs everything of ours on
tiny workloads, in seconds, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import own_worker
import scaling
import torch
from bench import Bench
from harness import HERE, Local, Process, Side
from jobs import cg, direct, ekfac, gauss_newton, imports, lissa, low_rank, perturbation
from table import Outcome, markdown
from timing import machine
from workloads import RECIPES, SMOKE

PEERS = {"pydvl": "pyDVL 0.10.0", "kronfluence": "kronfluence 1.0.1"}
MOST_MEMORY = 12 * 2**30
RESULTS, NOTES, PICTURE = (HERE / name for name in ("RESULTS.md", "notes.md", "scaling.png"))

INTRODUCTION = """\
Seconds are medians of {rounds} alternating runs after a warm-up; a job of over a minute runs once.
Every library runs in a process and an environment of its own, with {threads} threads, on the same
weights and data, through the calls that it documents. An error is relative, in the Frobenius norm,
to the exact scores in float64. Scores are of 100 test and 1,437 training points, in batches of 479,
λ = 1e-2 unless a job says otherwise; models are S: MLP 64-32-10, M: MLP 64-256-256-10, L: MLP
784-512-256-10, C: a CNN with convolutions of 16 and 32 channels; `fit` reads 5,748 points for L
and C.

{machine}; peers: {peers}.
"""


def _scaling(bench: Bench) -> Outcome:
    picture = bench.folder / PICTURE.name if bench.smoke else PICTURE
    slopes = scaling.report(bench, picture)
    return Outcome([], f"![Scaling]({PICTURE.name})\n\n{slopes}")


JOBS: dict[str, Callable[[Bench], Outcome]] = {
    "direct": direct.run,
    "cg": cg.run,
    "low_rank": low_rank.run,
    "lissa": lissa.run,
    "gauss_newton": gauss_newton.run,
    "ekfac": ekfac.run,
    "perturbation": perturbation.run,
    "imports": imports.run,
    "scaling": _scaling,
}


def main() -> None:
    """Run the jobs, print what they say, and save it where all of them ran."""
    options = _options()
    warnings.simplefilter("ignore")  # errors and residuals are measured
    with tempfile.TemporaryDirectory() as folder:
        bench = _smoke(Path(folder)) if options.smoke else _bench(options)
        outcomes = {name: _run(name, bench) for name in options.only or JOBS}
        for side in bench.sides.values():
            side.close()
    if not (options.smoke or options.only):
        RESULTS.write_text(_document(bench, options, outcomes))


def _run(name: str, bench: Bench) -> Outcome:
    """Run a job; one that fails is reported and does not stop the others, save in a smoke run."""
    start = time.perf_counter()
    try:
        outcome = JOBS[name](bench)
    except Exception as failure:
        if bench.smoke:
            raise
        traceback.print_exc()
        outcome = Outcome([], f"**{name} failed**: {type(failure).__name__}: {failure}")
    print(f"# {name}: {time.perf_counter() - start:.0f} s\n")
    print(*filter(None, (markdown(outcome.rows), outcome.details)), sep="\n\n", end="\n\n")
    sys.stdout.flush()
    return outcome


def _document(bench: Bench, options: argparse.Namespace, outcomes: dict[str, Outcome]) -> str:
    peers = [side.name for name, side in bench.sides.items() if name != "own"]
    introduction = INTRODUCTION.format(
        rounds=options.rounds, threads=options.threads, machine=machine(),
        peers=", ".join(peers) or "none",
    )  # fmt: skip
    rows = [row for outcome in outcomes.values() for row in outcome.rows]
    parts = ["# Results", introduction.strip(), markdown(rows)]
    for name, outcome in outcomes.items():
        if outcome.details:
            parts += [f"## {name.replace('_', ' ').capitalize()}", outcome.details]
    return "\n\n".join([*parts, NOTES.read_text()])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny, ours alone, in place")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--only", nargs="*", choices=JOBS, help="some jobs; writes nothing")
    parser.add_argument("--threads", type=int, default=2, help="of every side")
    parser.add_argument("--rounds", type=int, default=3, help="of alternating runs")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for row by row")
    cache = Path(tempfile.gettempdir(), "influence-core-benchmarks")
    parser.add_argument("--cache", type=Path, default=cache, help="of workloads and exact answers")
    return parser.parse_args()


def _bench(options: argparse.Namespace) -> Bench:
    torch.set_num_threads(options.threads)
    peers = dict(peer.split("=", 1) for peer in options.peer)
    interpreters = {"own": sys.executable, **peers}
    scripts = {"own": HERE / "own_worker.py"}
    scripts |= {name: HERE / "peers" / f"{name}_worker.py" for name in peers}
    titles = {"own": "influence-core", **PEERS}

    def start(name: str, most_memory: int | None = None) -> Side:
        return Process(
            titles[name], interpreters[name], scripts[name], options.threads, most_memory
        )

    return Bench(
        sides={name: start(name) for name in interpreters},
        fresh=start,
        lean=lambda name: start(name, MOST_MEMORY),
        recipes=RECIPES,
        folder=options.cache,
        interpreters=interpreters,
        rounds=options.rounds,
        budget=options.budget,
    )


def _smoke(folder: Path) -> Bench:
    own = Local("influence-core", own_worker.TASKS)
    return Bench(
        sides={"own": own},
        fresh=lambda _: own,
        lean=lambda _: own,
        recipes=SMOKE,
        folder=folder,
        interpreters={"own": sys.executable},
        rounds=0,
        smoke=True,
    )


if __name__ == "__main__":
    main()
