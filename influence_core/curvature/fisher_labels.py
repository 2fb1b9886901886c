"""The labels at which a Fisher matrix takes its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influence_core.arrays import uniforms
from influence_core.modes import LabelKind
from influence_core.problem import Labels


@dataclass(frozen=True)
class FisherLabels:
    """The labels at which the Fisher matrix takes its gradients.

    Attributes:
        kind: which labels; None leaves it to the backend.
        draws: the random labels of each distribution, where they are sampled.
        seed: of the random labels. A position of a point has the same ones whatever the batch size
            and the padding behind it.
    """

    kind: LabelKind | None = None
    draws: int = 1
    seed: int = 0

    def of_points(self, first: int, points: int) -> Labels:
        """Return the labels of the points `first`, `first + 1`, … of the data."""

        def draw(positions: int) -> npt.NDArray[np.float64]:
            return uniforms(self.seed, first, points, self.draws, positions)

        return Labels(self.kind, draw)
