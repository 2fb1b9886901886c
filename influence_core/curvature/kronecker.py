"""Kronecker-factored inverses: `C ≈ (Q_S ⊗ Q_A)ᵀ Λ (Q_S ⊗ Q_A)` for every layer.

With the eigenvectors of `S`, `(o, o)`, and of `A`, `(i', i')`, as rows of `Q_S` and `Q_A`, and the
parameters of a layer as a matrix `M`, `(o, i')`:

    (C + λI)⁻¹ M = Q_Sᵀ ((Q_S M Q_Aᵀ) ∘ 1/(Λ + λ)) Q_A

George, Laurent, Bouthillier, Ballas and Vincent, Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis, NeurIPS 2018. Products across layers count as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import (
    Exchange,
    device,
    epsilon,
    from_host,
    move,
    namespace,
    ones,
    row_norms,
    to_host,
    zeros,
)
from influence_core.curvature.inverse import Inverse, Solution, SolveReport, closed_form_report
from influence_core.curvature.kronecker_scores import (
    layer_scores,
    layer_scores_by_position,
    self_scores,
)
from influence_core.errors import CapabilityError, ConditioningWarning, warn
from influence_core.layers import Bases, LayerColumns, Piece, Seen, join_pieces
from influence_core.memory import points_in_memory
from influence_core.problem import Array, LayerStatistics, Problem
from influence_core.sources import GradientSource, Points, Watched

Host = npt.NDArray[np.float64]

# sums over the data are off by some such rounding units of the largest eigenvalue
_ROUNDING = 100.0
# what is held at once of what a product of some points with others forms
_COPIES = 4


@dataclass(frozen=True)
class KroneckerLayer:
    """The approximated curvature of one layer's parameters in a block, by its eigenpairs.

    Attributes:
        columns: where the parameters stand in the block.
        inputs: `Q_A`, eigenvectors as rows, `(i', i')`; None where `A` is diagonal.
        outputs: `Q_S`, eigenvectors as rows, `(o, o)`; None where `S` is diagonal.
        values: the eigenvalues `Λ`, on the host in float64, `(o, i')`.
    """

    columns: LayerColumns
    inputs: Array | None
    outputs: Array | None
    values: Host

    @property
    def bases(self) -> Bases:
        """`Q_A` and `Q_S`."""
        return Bases(self.inputs, self.outputs)

    @property
    def squared_bases(self) -> Bases:
        """The same with squared entries: what a diagonal matrix becomes, seen on the diagonal."""
        squares = (None if q is None else q * q for q in (self.inputs, self.outputs))
        return Bases(*squares)

    def scale(self, rows: Array, weights: Array) -> list[Piece]:
        """Return `Q_Sᵀ ((Q_S M Q_Aᵀ) ∘ weights) Q_A`, by parameter; `M` from rows `(k, d)`."""
        turned = self.bases.turn(self.columns.gather(rows))
        return self.columns.scatter(self.bases.turn_back(turned * weights))

    def map(self, carry: Callable[[Array], Array]) -> KroneckerLayer:
        """Return the same with its arrays carried elsewhere."""
        inputs, outputs = (None if q is None else carry(q) for q in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs)


@dataclass(frozen=True)
class KroneckerInverse(Inverse):
    """The exact (pseudo-)inverse of `C + λI` for a `C` that is Kronecker-factored, layer by layer.

    Residuals in a report are those of the approximated `C`, on the parameters that have one.

    Attributes:
        layers: the layers that make up the block.
        block: the name of the block, for messages.
        left_out: first column -> size of the parameters that count as constants: they have no
            share in any answer.
    """

    layers: tuple[KroneckerLayer, ...]
    block: str
    left_out: Mapping[int, int] = field(default_factory=dict)

    @property
    def watched(self) -> Watched:
        """The layers, and the parameters of the block that are theirs."""
        own = (name for layer in self.layers for name in layer.columns.parameters)
        return Watched(self._names, tuple(dict.fromkeys(own)))

    def solve(self, rows: Array, regularization: float) -> Solution:
        """Return `(C + λI)⁻¹ rows`, `(k, d)`.

        Warns:
            ConditioningWarning: eigenvalues of `C + λI` are zero to working precision. What rows
                have in their directions is left out: the softmax, for one, ignores a common shift
                of its inputs, and has no gradient along it either.
        """
        weights, regular = self._damped_inverse(regularization, rows)
        answer = self.scale(rows, [from_host(weight, rows) for weight in weights])
        damped = [from_host(layer.values + regularization, rows) for layer in self.layers]
        residual = self._covered(rows) - self.scale(answer, damped)
        return Solution(answer, closed_form_report(to_host(row_norms(residual)), reliable=regular))

    def scores(
        self, left: GradientSource, right: GradientSource, regularizations: Sequence[float]
    ) -> tuple[Array, Sequence[SolveReport | None]]:
        """Return `left (C + λI)⁻¹ rightᵀ` for every λ, `(r, m, n)`, with the reports.

        They are made of what the layers see, a part of the points at a time: see
        `kronecker_scores`. Nothing is solved then, and the residuals in the reports are zero.

        Warns:
            ConditioningWarning: as in `solve`.
        """
        like, entries = left.reference, self._entries(left)
        inverses = [self._damped_inverse(value, like) for value in regularizations]

        def scores(few: _Sight, many: _Sight, m: int, n: int) -> Array:
            total = zeros((len(inverses), m, n), like)
            for index, layer in enumerate(self.layers):
                weights = [each[index] for each, _ in inverses]
                pair = few(layer), many(layer)
                total = total + layer_scores(*pair, layer.bases, weights, entries)
            return total

        nothing = np.zeros(min(left.size, right.size))
        reports = [closed_form_report(nothing, reliable=regular) for _, regular in inverses]
        return self._pairs(left, right, scores), reports

    def scores_by_position(
        self, left: GradientSource, right: GradientSource, regularization: float
    ) -> tuple[Array, SolveReport | None]:
        """Return the share of every position of the points on the right, `(m, n, s)`.

        Raises:
            CapabilityError: the layers do not all see the same positions.

        Warns:
            ConditioningWarning: as in `solve`.
        """
        like, entries = left.reference, self._entries(left)
        weights, regular = self._damped_inverse(regularization, like)
        positions = shared_positions(right.points)

        def scores(few: _Sight, many: _Sight, m: int, n: int) -> Array:
            total = zeros((m, n, positions), like)
            for layer, weight in zip(self.layers, weights, strict=True):
                pair = few(layer), many(layer)
                share = layer_scores_by_position(*pair, layer.bases, weight, entries)
                total = total + share
            return total[None, ...]

        report = closed_form_report(np.zeros(left.size), reliable=regular)
        return self._pairs(left, right, scores)[0, ...], report

    def self_scores(
        self, sources: Sequence[GradientSource], regularization: float
    ) -> tuple[Array, SolveReport | None]:
        """Return `⟨rows (C + λI)⁻¹, rows⟩`, without the rows."""
        like, entries = sources[0].reference, self._entries(sources[0])
        weights, regular = self._damped_inverse(regularization, like)
        weights = [from_host(weight, like) for weight in weights]
        scores = []
        for source in sources:
            for size, statistics in source.points.parts(self._names):
                total = zeros((size,), like)
                for layer, weight in zip(self.layers, weights, strict=True):
                    seen = _sight(statistics)(layer)
                    total = total + self_scores(seen, layer.bases, weight, entries)
                scores.append(total)
        report = closed_form_report(np.zeros(sum(s.size for s in sources)), reliable=regular)
        return namespace(like).concat(scores), report

    def scale(self, rows: Array, weights: Sequence[Array]) -> Array:
        """Return `rows · f(C)`, `(k, d)`, for weights `f(Λ)`, `(o, i')` for each layer."""
        pieces: list[Piece] = []
        for layer, weight in zip(self.layers, weights, strict=True):
            pieces += layer.scale(rows, weight)
        return join_pieces(pieces, self.left_out, rows)

    def on(self, problem: Problem, exchange: Exchange) -> KroneckerInverse:
        """Return the same inverse on the device of the exchange's solver."""
        return self.to(device(exchange.solver))

    def to(self, target: Any) -> KroneckerInverse:
        """Return the same inverse on the device `target`."""
        layers = tuple(layer.map(lambda array: move(array, target)) for layer in self.layers)
        return replace(self, layers=layers)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.columns.name for layer in self.layers))

    def _pairs(
        self,
        left: GradientSource,
        right: GradientSource,
        scores: Callable[[_Sight, _Sight, int, int], Array],
    ) -> Array:
        """Return scores of all points, `(r, m, n, …)`, from those of parts of both sides."""
        xp = namespace(left.reference)
        rows = []
        for m, few in left.points.parts(self._names):
            row = [
                scores(_sight(few), _sight(many), m, n)
                for n, many in right.points.parts(self._names)
            ]
            rows.append(xp.concat(row, axis=2))
        return xp.concat(rows, axis=1)

    def _entries(self, source: GradientSource) -> int:
        """Return how many numbers one step may form."""
        return points_in_memory(source.points.problem, _COPIES)

    def _covered(self, rows: Array) -> Array:
        """Return the rows without what is left out."""
        if not self.left_out:
            return rows
        keep = [ones(layer.values.shape, rows)[None, ...] for layer in self.layers]
        pieces = [
            p for layer, k in zip(self.layers, keep, strict=True) for p in layer.columns.scatter(k)
        ]
        return rows * join_pieces(pieces, self.left_out, rows[:1, :])

    def _damped_inverse(self, regularization: float, like: Array) -> tuple[list[Host], bool]:
        """Return `1/(Λ + λ)` of every layer, and whether none of it had to be left out."""
        weights, null, size = [], 0, 0
        for layer in self.layers:
            damped = layer.values + regularization
            unit = max(epsilon(q) for q in (like, layer.inputs, layer.outputs) if q is not None)
            zero = damped <= _ROUNDING * unit * damped.max()
            weights.append(np.where(zero, 0.0, 1.0 / np.where(zero, 1.0, damped)))
            null, size = null + int(zero.sum()), size + damped.size
        if null:
            warn(
                f"`C + λI`{f' of block {self.block!r}' if self.block else ''} with "
                f"λ={regularization:g} is singular to working precision: {null} of its {size} "
                "eigenvalues are zero up to rounding. What a gradient has in their directions is "
                "left out; use a positive `regularization`.",
                ConditioningWarning,
            )
        return weights, not null


_Sight = Callable[[KroneckerLayer], Seen]


def _sight(statistics: Mapping[str, LayerStatistics]) -> _Sight:
    return lambda layer: layer.columns.seen(statistics[layer.columns.name])


def shared_positions(points: Points) -> int:
    """Return the number of positions that every watched layer sees of a point; 0 without layers.

    Raises:
        CapabilityError: they differ.
    """
    names: dict[int, list[str]] = {}
    for name in points.watched.layers:
        number = int(points.first.factors[name].output_gradients.shape[2])
        names.setdefault(number, []).append(repr(name))
    if len(names) <= 1:
        return next(iter(names), 0)
    most = max(names, key=lambda number: len(names[number]))
    others = "; ".join(f"{', '.join(own)} {s}" for s, own in names.items() if s != most)
    raise CapabilityError(
        "scores by position need layers that all see the same positions of a point; most see "
        f"{most}, and {others}. Freeze the others, or ask for `influences_by_layer`."
    )
