"""How the solves of a run went: one report, though they were made chunk by chunk."""

from __future__ import annotations

from influence_core.calls import InfluenceFunctionModel
from influence_core.curvature import join_reports
from influence_core.fitted import Reports


class RunReport:
    """Puts the reports of a run together, as the `report` of the influence function model."""

    def __init__(self, influence: InfluenceFunctionModel) -> None:
        """Start without reports; the model keeps the one that it has."""
        self._influence = influence
        self._reports: list[Reports] = []

    def start(self) -> None:
        """Begin a new run."""
        self._reports = []

    def add(self, reports: Reports) -> None:
        """Add the reports of the solve of a chunk."""
        self._reports.append(reports)
        self._influence._report = {
            name: join_reports([each[name] for each in self._reports]) for name in reports
        }
