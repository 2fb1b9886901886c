"""EK-FAC: the Fisher matrix of affine layers, in a Kronecker-factored eigenbasis.

Grosse et al., Studying large language model generalization with influence functions, 2023; Martens
and Grosse 2015 and George et al. 2018 for the approximation, whose formulas stand in
`influence_core.curvature`. Time: two passes over the data (three with `update_diagonal`, checking
included) and `O(i³ + o³)` a layer; memory `O(i² + o² + io)` a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from influence_core.curvature import Curvature, FisherLabels, Inverse, kronecker_inverses
from influence_core.methods.base import Method, check_positive_integer
from influence_core.modes import LabelKind, parse_mode


@dataclass(frozen=True)
class Ekfac(Method):
    """Invert a Kronecker-factored Fisher matrix, layer by layer.

    The matrix is the Fisher matrix of the model's own distribution of labels, whatever the
    curvature is that the blocks were made for; a penalty of the objective is included. Every
    parameter of a block must belong to an affine layer.

    Attributes:
        update_diagonal: measure the eigenvalues in the eigenbasis (EK-FAC) instead of multiplying
            those of the factors (K-FAC): a second pass over the data.
        labels: a `LabelKind`. None leaves it to the backend: expected for one distribution a point
            over at most 32 classes, sampled otherwise.
        draws: random labels for each distribution, where they are sampled.
        progress: show a progress bar over the batches.
        seed: of the random labels.

    Raises:
        OptionError: a value outside these meanings.
    """

    update_diagonal: bool = False
    labels: LabelKind | str | None = None
    draws: int = 1
    progress: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_integer("seed", self.seed, "or zero", least=0)
        fisher_labels(self.labels, self.draws, self.seed)

    def prepare(self, curvature: Curvature) -> Inverse:
        """Learn the factors of one block."""
        return self.prepare_blocks([curvature])[0]

    def prepare_blocks(self, curvatures: Sequence[Curvature]) -> list[Inverse]:
        """Learn the factors of all blocks in the same passes over the data."""
        from tqdm import tqdm  # here: it takes longer to import than the rest of the core

        labels = fisher_labels(self.labels, self.draws, self.seed)
        with tqdm(desc="EK-FAC", unit=" batches", disable=not self.progress) as bar:
            return [*kronecker_inverses(curvatures, labels, self.update_diagonal, bar.update)]


def fisher_labels(labels: LabelKind | str | None, draws: int, seed: int) -> FisherLabels:
    """Return the settings of the labels, checked.

    Raises:
        OptionError: `labels` is no `LabelKind`, or `draws` no positive integer.
    """
    check_positive_integer("draws", draws)
    kind = None if labels is None else parse_mode(LabelKind, labels, "labels")
    return FisherLabels(kind, draws, seed)
