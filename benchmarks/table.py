"""What a job reports, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Unit = Literal["s", "bytes"]


class Target(Protocol):
    """What a job has to reach."""

    def __str__(self) -> str: ...

    def reached(self, row: Row) -> bool | None:
        """Return whether the row reaches it; None where it was not measured."""


@dataclass(frozen=True)
class AtLeast:
    """So many times less than the peer."""

    ratio: float

    def __str__(self) -> str:
        return f"≥ {self.ratio:g}×"

    def reached(self, row: Row) -> bool | None:
        return None if row.ratio is None else row.ratio >= self.ratio


@dataclass(frozen=True)
class AtMost:
    """No more than this, in the unit of the row."""

    limit: float

    def __str__(self) -> str:
        return f"≤ {self.limit:g}"

    def reached(self, row: Row) -> bool | None:
        return row.ours.amount <= self.limit


@dataclass(frozen=True)
class Measured:
    """One side of a row.

    Attributes:
        amount: seconds or bytes.
        error: of the answer, relative to the exact one in float64.
        how: settings and what else is to be said.
        name: of the library.
    """

    amount: float
    error: float | None = None
    how: str = ""
    name: str = "influence-core"


@dataclass(frozen=True)
class Row:
    """One job.

    Attributes:
        job: what was done.
        ours: our side.
        peer: the other side, None where there is none or where it was not run.
        target: None where none is set.
        tolerance: the largest error at which our side counts; None leaves it open.
        reason: why a target is missed, printed where it is.
        unit: of the amounts.
        note: on both sides.
    """

    job: str
    ours: Measured
    peer: Measured | None = None
    target: Target | None = None
    tolerance: float | None = None
    reason: str = ""
    unit: Unit = "s"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times less our side takes."""
        return None if self.peer is None else self.peer.amount / max(self.ours.amount, 1e-12)

    @property
    def verdict(self) -> str:
        """What became of the target."""
        if self.tolerance is not None and (self.ours.error or 0.0) > self.tolerance:
            return "**missed** (error)"
        reached = self.target.reached(self) if self.target else None
        return {True: "met", False: "**missed**", None: "–"}[reached]


@dataclass(frozen=True)
class Outcome:
    """What a job reports: rows of the table, and perhaps a section of its own in Markdown."""

    rows: Sequence[Row]
    details: str = ""


HEAD = (
    "| job | ours | peer | ratio | target | | our error | the peer's error |\n"
    "|---|---|---|---|---|---|---|---|"
)


def markdown(rows: Sequence[Row]) -> str:
    """Return the table, what the sides did, and the misses with their reasons."""
    if not rows:
        return ""
    how = [line for row in rows for line in _how(row)]
    missed = [row for row in rows if row.verdict.startswith("**")]
    misses = [f"- {row.job}: {_miss(row)}" for row in missed] or ["None."]
    parts = ["\n".join([HEAD, *map(_line, rows)]), "### Misses", "\n".join(misses)]
    if how:
        parts += ["### How each side was run", "\n".join(how)]
    return "\n\n".join(parts)


def _line(row: Row) -> str:
    cells = [
        row.job,
        amount(row.ours.amount, row.unit),
        f"{amount(row.peer.amount, row.unit)} ({row.peer.name})" if row.peer else "–",
        f"{row.ratio:.3g}×" if row.ratio is not None else "–",
        str(row.target) + _unit(row) if row.target else "–",
        row.verdict,
        _error(row.ours),
        _error(row.peer),
    ]
    return f"| {' | '.join(cells)} |"


def _how(row: Row) -> list[str]:
    sides = [side for side in (row.ours, row.peer) if side is not None and side.how]
    said = [row.note] if row.note else []
    said += [f"{side.name}: {side.how}" for side in sides]
    return [f"- {row.job}. {'; '.join(said)}."] if said else []


def _miss(row: Row) -> str:
    measured = f"{row.ratio:.3g}×" if row.ratio is not None else amount(row.ours.amount, row.unit)
    error = f" at an error of {row.ours.error:.1e}" if row.ours.error is not None else ""
    return f"{measured}{error} against {row.target}{_unit(row)}. {row.reason}".rstrip()


def amount(value: float, unit: Unit) -> str:
    """Return a number of seconds or bytes for people."""
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB" if value >= 2**20 else f"{value / 2**10:,.0f} KiB"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _unit(row: Row) -> str:
    if not isinstance(row.target, AtMost):
        return ""
    return " bytes" if row.unit == "bytes" else " s"


def _error(side: Measured | None) -> str:
    return "–" if side is None or side.error is None else f"{side.error:.1e}"
