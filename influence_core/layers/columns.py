"""Where the parameters of layers stand among the columns of a block.

A parameter may belong to several layers, each of which has some of its rows: the groups of a
convolution, or the projections of attention that are stacked in one matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from influence_core.arrays import namespace, ones, zeros
from influence_core.layers.affine import AffineSeen
from influence_core.layers.free import FreeSeen
from influence_core.layers.lookup import LookupSeen
from influence_core.layers.seen import Seen
from influence_core.problem import Array, FreeParameters, Layer, LayerStatistics


@dataclass(frozen=True)
class Place:
    """Where a parameter of an affine layer stands.

    Attributes:
        name: of the parameter.
        start: its first column in the block.
        rows: how many rows it has: those of the layer, and of others that share it.
    """

    name: str
    start: int
    rows: int


@dataclass(frozen=True)
class FreePlace:
    """Where a free parameter stands.

    Attributes:
        name: of the parameter.
        start: its first column in the block.
        first: its first entry in the vector of all free parameters of the layer.
        size: how many entries it has.
    """

    name: str
    start: int
    first: int
    size: int


@dataclass(frozen=True)
class Piece:
    """Some rows of a parameter.

    Attributes:
        start: the first column of the parameter in the block.
        first: the first of the rows.
        matrices: `(k, o, i)`.
        transposed: whether the parameter holds the transpose.
    """

    start: int
    first: int
    matrices: Array
    transposed: bool = False


@dataclass(frozen=True)
class LayerColumns(ABC):
    """The columns of a block that are one layer's: the entries of its matrix `M`, `(o, i')`.

    Attributes:
        name: the name of the layer.
    """

    name: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """The shape `(o, i')` of `M`."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters."""

    @abstractmethod
    def gather(self, rows: Array) -> Array:
        """Return the matrices `M`, `(k, o, i')`, of rows `(k, d)` of the block."""

    @abstractmethod
    def pick(self, rows: Array) -> Iterator[tuple[str, Array]]:
        """Yield name -> its part of the matrices `M` of rows `(k, d)` of the block."""

    @abstractmethod
    def scatter(self, matrices: Array) -> list[Piece]:
        """Return the parts of the parameters that the matrices `M`, `(k, o, i')`, consist of."""

    @abstractmethod
    def split(self, matrices: Array) -> Iterator[tuple[str, Array]]:
        """Yield name -> its part of the matrices `M`, `(k, o, i')`."""

    @abstractmethod
    def seen(self, statistics: LayerStatistics) -> Seen:
        """Return what the parameters saw, from what the whole layer did."""


@dataclass(frozen=True)
class AffineColumns(LayerColumns):
    """`M = [W, b]`, or one of the two where the block has only that.

    Attributes:
        layer: the layer; its inputs may be indices.
        weight: where `W` stands; None where it is not in the block.
        bias: where `b` stands; None where it is not in the block.
    """

    layer: Layer
    weight: Place | None
    bias: Place | None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape `(o, i')` of `M`."""
        width = self.layer.inputs if self.weight is not None else 0
        return self.layer.outputs, width + (self.bias is not None)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(place.name for place in (self.weight, self.bias) if place is not None)

    def gather(self, rows: Array) -> Array:
        """Return the matrices `M`, `(k, o, i')`, of rows `(k, d)` of the block."""
        parts = [part for _, part in self.pick(rows)]
        return parts[0] if len(parts) == 1 else namespace(rows).concat(parts, axis=2)

    def pick(self, rows: Array) -> Iterator[tuple[str, Array]]:
        """Yield name -> its part of the matrices `M` of rows `(k, d)` of the block."""
        if self.weight is not None:
            yield self.weight.name, _gathered(rows, self.weight, self.layer, self.layer.inputs)
        if self.bias is not None:
            start = self.bias.start + self.layer.first
            yield self.bias.name, rows[:, start : start + self.layer.outputs, None]

    def scatter(self, matrices: Array) -> list[Piece]:
        """Return the parts of the parameters that the matrices `M`, `(k, o, i')`, consist of."""
        pieces = []
        if self.weight is not None:
            own = matrices[:, :, : self.layer.inputs]
            start, first = self.weight.start, self.layer.first
            pieces.append(Piece(start, first, own, self.layer.transposed))
        if self.bias is not None:
            pieces.append(Piece(self.bias.start, self.layer.first, matrices[:, :, -1:]))
        return pieces

    def split(self, matrices: Array) -> Iterator[tuple[str, Array]]:
        """Yield name -> its part of the matrices `M`, `(k, o, i')`."""
        if self.weight is not None:
            yield self.weight.name, matrices[:, :, : self.layer.inputs]
        if self.bias is not None:
            yield self.bias.name, matrices[:, :, -1:]

    def seen(self, statistics: LayerStatistics) -> Seen:
        """Return what the parameters saw, from what the whole layer did."""
        g, counted = statistics.output_gradients, statistics.counted
        if self.layer.lookup:
            return LookupSeen(g, counted, statistics.inputs, self.layer.inputs)
        return AffineSeen(g, counted, self._homogeneous(statistics))

    def _homogeneous(self, statistics: LayerStatistics) -> Array:
        """Return `a'`, `(n, s, i')`: `[a, 1]`, or one of the two."""
        inputs = statistics.inputs
        if self.bias is None:
            return inputs
        column = ones((*inputs.shape[:-1], 1), statistics.output_gradients)
        if self.weight is None:
            return column
        return namespace(inputs).concat([inputs, column], axis=-1)


@dataclass(frozen=True)
class FreeColumns(LayerColumns):
    """`M` is a column: the free parameters of the block, one after the other.

    Attributes:
        layer: all free parameters of the layer.
        places: where those of the block stand.
    """

    layer: FreeParameters
    places: tuple[FreePlace, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape `(o, 1)` of `M`."""
        return sum(place.size for place in self.places), 1

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(place.name for place in self.places)

    def gather(self, rows: Array) -> Array:
        """Return the columns `M`, `(k, o, 1)`, of rows `(k, d)` of the block."""
        return namespace(rows).concat([part for _, part in self.pick(rows)], axis=1)

    def pick(self, rows: Array) -> Iterator[tuple[str, Array]]:
        """Yield name -> its part of the columns `M` of rows `(k, d)` of the block."""
        for place in self.places:
            yield place.name, rows[:, place.start : place.start + place.size, None]

    def scatter(self, matrices: Array) -> list[Piece]:
        """Return the parameters that the columns `M`, `(k, o, 1)`, consist of."""
        each = zip(self.places, self.split(matrices), strict=True)
        return [Piece(place.start, 0, own) for place, (_, own) in each]

    def split(self, matrices: Array) -> Iterator[tuple[str, Array]]:
        """Yield name -> its part of the columns `M`, `(k, o, 1)`."""
        at = 0
        for place in self.places:
            yield place.name, matrices[:, at : at + place.size, :]
            at += place.size

    def seen(self, statistics: LayerStatistics) -> Seen:
        """Return what the parameters saw, from what the whole layer did."""
        g = statistics.output_gradients
        if len(self.places) < len(self.layer.names):
            own = [g[..., place.first : place.first + place.size] for place in self.places]
            g = namespace(g).concat(own, axis=-1)
        return FreeSeen(g, statistics.counted)


def join_pieces(pieces: Iterable[Piece], left_out: Mapping[int, int], like: Array) -> Array:
    """Return the rows of a block, `(k, d)`.

    Args:
        pieces: parts of its parameters; together they have all their rows.
        left_out: first column -> size of the parameters without pieces, whose columns are zero.
        like: rows of the block, `(k, d)`.
    """
    xp, k = namespace(like), like.shape[0]
    columns = {start: zeros((k, size), like) for start, size in left_out.items()}
    by_parameter: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_parameter.setdefault(piece.start, []).append(piece)
    for start, own in by_parameter.items():
        own.sort(key=lambda piece: piece.first)
        matrices = [piece.matrices for piece in own]
        whole = matrices[0] if len(own) == 1 else xp.concat(matrices, axis=1)
        if own[0].transposed:
            whole = xp.matrix_transpose(whole)
        columns[start] = xp.reshape(whole, (k, -1))
    return xp.concat([columns[start] for start in sorted(columns)], axis=1)


def _gathered(rows: Array, place: Place, layer: Layer, width: int) -> Array:
    """Return the matrices `W`, `(k, o, i)`."""
    xp, k = namespace(rows), rows.shape[0]
    if layer.transposed:
        whole = rows[:, place.start : place.start + place.rows * width]
        kernels = xp.reshape(whole, (k, width, place.rows))
        return xp.matrix_transpose(kernels[:, :, layer.first : layer.first + layer.outputs])
    start = place.start + layer.first * width
    own = rows[:, start : start + layer.outputs * width]
    return xp.reshape(own, (k, layer.outputs, width))
