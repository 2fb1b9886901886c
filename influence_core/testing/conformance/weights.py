"""Points with weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_core.problem import Batch
from influence_core.testing.conformance.expect import skip
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject


def weighted_data(subject: Subject, weights: Host) -> Any:
    """Return what a loader yields for all points; skip the check where there are no weights."""
    if subject.weighted is None:
        skip("the subject says nothing about weights (`Subject(weighted=…)`)")
    return subject.weighted(*subject.data, weights)


def weighted_batch(subject: Subject) -> tuple[Batch, Host]:
    """Return all points with uneven weights, a zero among them, and the weights on the host."""
    weights = np.linspace(0.0, 3.0, subject.points)
    return subject.problem.batch(weighted_data(subject, weights)), weights
