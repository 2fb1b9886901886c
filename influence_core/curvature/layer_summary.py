"""What a Kronecker-factored Fisher matrix consists of, and the memory that it takes.

Known before any data is read. With `f` bytes a number in the factors and `e` in the eigenvectors,
an affine layer takes `f (o² + i'²)` while it is learnt and keeps `e (o² + i'²) + 8 o i'`: factors
that are diagonal count with their diagonal and have no eigenvectors, and eigenvalues are kept in
float64 on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from influence_core.arrays import namespace
from influence_core.blocks import Block
from influence_core.curvature.layer_data import COPIES, layered
from influence_core.curvature.layer_parts import KroneckerSettings, LayerPart, layers_of_blocks
from influence_core.layer_check import CHECKED
from influence_core.layer_check import COPIES as COPIES_CHECKED
from influence_core.memory import memory_of
from influence_core.problem import Problem

# of a sum over the data: a term, the sum over a batch, the sum over the batches
_SUMS = 3
# an eigenproblem holds the matrix, a copy of it and the eigenvectors in float64
_EIGEN = 3 * 8
_LONG = 8


@dataclass(frozen=True)
class LayerRow:
    """One layer's parameters in a block.

    Attributes:
        name: of the layer.
        kind: of the approximation, in words.
        parameters: their names.
        outputs: `o`, the rows of its matrix.
        inputs: `i'`, the columns.
        factors: the shapes of `S` and of `A`; free parameters have `S` only.
        factor_bytes: what these take while the layer is learnt.
        basis_bytes: what their eigenvectors take.
        value_bytes: what the eigenvalues take, on the host.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]
    outputs: int
    inputs: int
    factors: tuple[tuple[int, ...], ...]
    factor_bytes: int
    basis_bytes: int
    value_bytes: int

    @property
    def memory(self) -> int:
        """Bytes that are kept after `fit`."""
        return self.basis_bytes + self.value_bytes


@dataclass(frozen=True)
class FitMemory:
    """Bytes that `fit` takes for the factored matrix, beside the model.

    Attributes:
        factors: the second moments of the layers that are learnt at once, at most.
        eigenvectors: of all layers; kept.
        eigenvalues: of all layers; kept, on the host.
        statistics: what the layers see of as many points as are read at once.
        peak: the most that is held at any time.
    """

    factors: int
    eigenvectors: int
    eigenvalues: int
    statistics: int
    peak: int


@dataclass(frozen=True)
class LayerSummary:
    """The layers of all blocks; prints as a table.

    Attributes:
        rows: one for each layer.
        skipped: name -> why, of the parameters that are left out.
        layers_at_once: how many are learnt in the same passes; None for all.
        item: bytes of a number of the model.
        factor_item: bytes of a number of the factors.
        max_memory: bytes that what the layers see may take.
    """

    rows: tuple[LayerRow, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    layers_at_once: int | None = None
    item: int = 4
    factor_item: int = 4
    max_memory: int = 2**30

    @property
    def memory(self) -> int:
        """Bytes that are kept after `fit`."""
        return sum(row.memory for row in self.rows)

    def fit_memory(self, points: int, numbers: int) -> FitMemory:
        """Return what `fit` will take, before it is done.

        Args:
            points: the most of one batch.
            numbers: what the layers see of one point, see `layers.numbers_of` or `numbers_seen`.
        """
        one = COPIES * numbers * self.item
        statistics = min(points * one, max(self.max_memory, one))
        groups = self._groups()
        factors = max((sum(row.factor_bytes for row in group) for group in groups), default=0)
        values = max((sum(row.value_bytes for row in group) for group in groups), default=0)
        eigenvectors = sum(row.basis_bytes for row in self.rows)
        widest = max(
            (n for row in self.rows for shape in row.factors for n in shape[1:]), default=0
        )
        sums = max(_SUMS * factors, values // _LONG * _SUMS * self.factor_item)
        eigenvalues = sum(row.value_bytes for row in self.rows)
        kept = eigenvectors + eigenvalues
        peak = kept + max(statistics + sums, factors + _EIGEN * widest**2, self._checked(points))
        return FitMemory(factors, eigenvectors, eigenvalues, statistics, peak)

    def numbers_seen(self, positions: int, slices: int) -> int:
        """Return how many numbers the layers see of one point, at most.

        Args:
            positions: the most that a layer is used at.
            slices: of the labels: classes, or draws.
        """
        return sum(positions * (row.inputs + slices * row.outputs) for row in self.rows)

    def __str__(self) -> str:
        """Return a table: a line for each layer, and one for all."""
        lines = [("layer", "kind", "factors", "memory")]
        lines += [
            (row.name or "(root)", row.kind, _shapes(row.factors), _bytes(row.memory))
            for row in self.rows
        ]
        lines += [(name, "skipped", why, _bytes(0)) for name, why in self.skipped.items()]
        lines.append(("", "", "", _bytes(self.memory)))
        *widths, last = (max(map(len, column)) for column in zip(*lines, strict=True))
        left = [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            for *cells, _ in lines
        ]
        return "\n".join(
            f"{cells}  {memory.rjust(last)}"
            for cells, (*_, memory) in zip(left, lines, strict=True)
        )

    def _checked(self, points: int) -> int:
        """Return what it takes to compare the gradients of a few points with the rebuilt ones."""
        each = [row.outputs * row.inputs for row in self.rows]
        one = COPIES_CHECKED * min(points, CHECKED) * self.item
        return min(one * sum(each), max(self.max_memory, one * max(each, default=0)))

    def _groups(self) -> list[list[LayerRow]]:
        names = list(dict.fromkeys(row.name for row in self.rows))
        some = self.layers_at_once or max(1, len(names))
        return [
            [row for row in self.rows if row.name in names[start : start + some]]
            for start in range(0, len(names), some)
        ]


def summarize_layers(
    problem: Problem, blocks: Sequence[Block], settings: KroneckerSettings
) -> LayerSummary:
    """Return how the layers of all blocks are taken; no data is read.

    Raises:
        CapabilityError: the backend does not show its layers.
        NotImplementedLayerRepresentationException: a parameter belongs to no layer.
    """
    known, parameters = layered(problem).layers(), problem.parameters
    found = layers_of_blocks(blocks, known, parameters, settings)
    item = int(namespace(problem.reference).finfo(problem.reference.dtype).bits) // 8
    factor_item = {"float32": 4, "float64": 8}.get(settings.factor_dtype or "", item)
    rows = [
        _row(part, factor_item, min(item, factor_item)) for each in found for part in each.parts
    ]
    skipped = {name: why for each in found for name, why in each.skipped.items()}
    limit, at_once = memory_of(problem), settings.layers_at_once
    return LayerSummary(tuple(rows), skipped, at_once, item, factor_item, limit)


def _row(part: LayerPart, factor_item: int, basis_item: int) -> LayerRow:
    o, i = part.columns.shape
    factors = [(o, o) if part.dense_outputs else (o,)]
    if not part.exact:
        factors.append((i, i) if part.dense_inputs else (i,))
    entries = sum(shape[0] * shape[-1] if len(shape) > 1 else shape[0] for shape in factors)
    vectors = sum(shape[0] ** 2 for shape in factors if len(shape) > 1)
    return LayerRow(
        part.columns.name,
        part.kind,
        part.columns.parameters,
        o,
        i,
        tuple(factors),
        factor_item * entries,
        basis_item * vectors,
        _LONG * o * i,
    )


def _shapes(factors: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("×".join(map(str, shape)) for shape in factors)


def _bytes(number: int) -> str:
    """Return a number of bytes as people read it."""
    size, units = float(number), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
