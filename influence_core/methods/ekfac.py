"""EK-FAC: the Fisher matrix of layers, in a Kronecker-factored eigenbasis.

Grosse et al., Studying large language model generalization with influence functions, 2023; Martens
and Grosse 2015, George et al. 2018 and Eschenhagen et al. 2023 for the approximation, whose
formulas stand in `influence_core.curvature` and `influence_core.layers`. Time: two passes over the
data (three with `update_diagonal`, checking included) and `O(i³ + o³)` a layer; memory
`O(i² + o² + io)` a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from influence_core.blocks import Block
from influence_core.curvature import (
    Curvature,
    FisherLabels,
    Inverse,
    KroneckerSettings,
    LayerSummary,
    kronecker_inverses,
    summarize_layers,
)
from influence_core.errors import OptionError
from influence_core.methods.base import Method, check_positive_integer
from influence_core.modes import LabelKind, Sharing, Unsupported, parse_mode
from influence_core.problem import Problem

_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Ekfac(Method):
    """Invert a Kronecker-factored Fisher matrix, layer by layer.

    The matrix is the Fisher matrix of the model's own distribution of labels, whatever the
    curvature is that the blocks were made for; a penalty of the objective is included. Affine
    layers get two factors, of which that of the inputs is diagonal for a lookup; parameters of
    another kind, such as those of a normalisation, get a block of their own.

    Attributes:
        update_diagonal: measure the eigenvalues in the eigenbasis (EK-FAC) instead of multiplying
            those of the factors (K-FAC): a second pass over the data.
        labels: a `LabelKind`. None leaves it to the backend: expected for one distribution a point
            over at most 32 classes, sampled otherwise.
        draws: random labels for each distribution, where they are sampled.
        progress: show a progress bar over the batches.
        seed: of the random labels.
        sharing: a `Sharing`: how positions that share a layer are taken.
        unsupported: an `Unsupported`: what becomes of a parameter of no layer.
        largest_exact: the most free parameters of one layer that get their exact block; more get
            its diagonal.
        largest_factor: the most rows of a factor that is taken as a matrix; a larger one (that of
            the outputs of a large vocabulary, say) is diagonal. None takes any as a matrix.
        layers_at_once: how many layers are learnt in the same passes. Factors of no more than these
            are held beside what was learnt before; the passes are repeated for each such group.
            None learns all of them together.
        factor_dtype: of the factors, ``"float32"`` or ``"float64"``; None is that of the model.
            Their eigenvectors are kept in it, or in the model's where that is shorter; they are
            computed in float64 where the device has it.

    Raises:
        OptionError: a value outside these meanings.
    """

    update_diagonal: bool = False
    labels: LabelKind | str | None = None
    draws: int = 1
    progress: bool = False
    seed: int = 0
    _: KW_ONLY
    sharing: Sharing | str = Sharing.EXPAND
    unsupported: Unsupported | str = Unsupported.RAISE
    largest_exact: int = 2048
    largest_factor: int | None = None
    layers_at_once: int | None = None
    factor_dtype: str | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_integer("seed", self.seed, "or zero", least=0)
        check_positive_integer("largest_exact", self.largest_exact)
        for argument in ("largest_factor", "layers_at_once"):
            value = getattr(self, argument)
            if value is not None:
                check_positive_integer(argument, value, "or None")
        if self.factor_dtype not in (None, *_DTYPES):
            raise OptionError(
                f"`factor_dtype` must be one of {', '.join(map(repr, _DTYPES))}, or None for that "
                f"of the model; got {self.factor_dtype!r}."
            )
        self.settings()

    def settings(self) -> KroneckerSettings:
        """Return what the matrix is made of, checked."""
        return KroneckerSettings(
            fisher_labels(self.labels, self.draws, self.seed),
            self.update_diagonal,
            parse_mode(Sharing, self.sharing, "sharing"),
            parse_mode(Unsupported, self.unsupported, "unsupported"),
            self.largest_exact,
            self.largest_factor,
            self.layers_at_once,
            self.factor_dtype,
        )

    def prepare(self, curvature: Curvature) -> Inverse:
        """Learn the factors of one block."""
        return self.prepare_blocks([curvature])[0]

    def prepare_blocks(self, curvatures: Sequence[Curvature]) -> list[Inverse]:
        """Learn the factors of all blocks in the same passes over the data."""
        from tqdm import tqdm  # here: it takes longer to import than the rest of the core

        with tqdm(desc="EK-FAC", unit=" batches", disable=not self.progress) as bar:
            return [*kronecker_inverses(curvatures, self.settings(), bar.update)]

    def summary(self, problem: Problem, blocks: Sequence[Block]) -> LayerSummary:
        """Return how the layers of a model are taken, and what that takes; it reads no data.

        Raises:
            CapabilityError: the backend does not show its layers.
            NotImplementedLayerRepresentationException: a parameter belongs to no layer.
        """
        return summarize_layers(problem, blocks, self.settings())


def fisher_labels(labels: LabelKind | str | None, draws: int, seed: int) -> FisherLabels:
    """Return the settings of the labels, checked.

    Raises:
        OptionError: `labels` is no `LabelKind`, or `draws` no positive integer.
    """
    check_positive_integer("draws", draws)
    kind = None if labels is None else parse_mode(LabelKind, labels, "labels")
    return FisherLabels(kind, draws, seed)
