"""Runs the benchmarks and writes RESULTS.md beside this file.

python benchmarks/run.py
"""

from __future__ import annotations

from pathlib import Path

import cg
from timing import machine

BENCHMARKS = {"Conjugate gradient, 100 right-hand sides": cg}


def main() -> None:
    """Run all, print and save."""
    parts = ["# Results", "Medians of three alternating rounds unless stated. " + machine() + "."]
    for title, module in BENCHMARKS.items():
        parts += [f"## {title}", " ".join(module.__doc__.split()), module.report()]
    text = "\n\n".join(parts) + "\n"
    print(text)
    Path(__file__).with_name("RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
