"""How products are run: cut to fit into memory, in full precision, vectorised or in a loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from influence_core.arrays import concatenate_trees
from influence_core.errors import ModelError
from influence_torch.data import TorchBatch
from influence_torch.kernels import twice_differentiable
from influence_torch.losses import COMPARED, PointLosses
from influence_torch.snapshot import Snapshot
from influence_torch.transforms import Looped, Transforms, Vectorized
from influence_torch.vectors import Layout

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")

_VECTORIZED, _LOOPED = Vectorized(), Looped()
# tensors of the size of a forward pass that one row of a double-backward product holds
_TENSORS_PER_ROW = 4


class Execution:
    """Runs products of a snapshot and its losses; what the products are is up to the subclass."""

    def __init__(self, snapshot: Snapshot, losses: PointLosses, memory: int) -> None:
        """Start with vmap; `memory` is the bytes that a product may hold."""
        self._snapshot = snapshot
        self._losses = losses
        self._memory = memory
        self._looped: set[str] = set()

    @property
    def reference(self) -> Tensor:
        """A parameter of the snapshot, in the dtype of the computation."""
        return next(iter(self._snapshot.parameters.values()))

    @property
    def max_memory(self) -> int:
        """Bytes that a product may hold."""
        return self._memory

    @contextmanager
    def shelter(self) -> Iterator[None]:
        """Keep autocast of the caller from shortening the core's arithmetic."""
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast(self._snapshot.device.type, enabled=False),
        ):
            yield

    def _learn(self, batch: TorchBatch) -> None:
        if batch.size > 1 and not self._losses.learnt:
            self._check_loss(batch, "the first batch")

    def _check_loss(self, batch: TorchBatch, where: str) -> None:
        with self._kernels():
            self._losses.measure(batch)
            fitting = max(self._memory // max(self._losses.bytes_per_point, 1), COMPARED)
            for _, part in _slices(batch, fitting):
                self._losses.check(part, where)

    def _joined(self, of_part: Callable[[TorchBatch], _T], batch: TorchBatch) -> _T:
        """Return what `of_part` says about the points, `(k, n, …)`, for all points of `batch`."""
        return concatenate_trees([of_part(part) for _, part in self._parts(batch)], axis=1)

    def _averaged(
        self,
        of_part: Callable[[TorchBatch], Tensor],
        batch: TorchBatch,
        most: int | None = None,
    ) -> Tensor:
        """Return the mean over the points of `batch` of means over at most `most` points."""
        total: Tensor | None = None
        for _, part in self._parts(batch, most):
            share = of_part(part) * (part.size / batch.size)
            total = share if total is None else total + share
        assert total is not None  # no batch is empty
        return total

    def _parts(
        self, batch: TorchBatch, most: int | None = None
    ) -> Iterator[tuple[slice, TorchBatch]]:
        """Yield the batch in slices whose forward pass fits into memory for at least one row."""
        self._learn(batch)
        fitting = self._memory // max(_TENSORS_PER_ROW * self._losses.bytes_per_point, 1)
        return _slices(batch, max(min(fitting, most or fitting), 1))

    def _each(
        self,
        transforms: Transforms,
        fn: Callable[[Tensor], _T],
        rows: Tensor,
        batch: TorchBatch,
        layout: Layout,
    ) -> _T:
        size = self._losses.bytes_per_point * batch.size
        return transforms.each(fn, rows, self._rows(size, layout))

    def _rows(self, forward_bytes: int, layout: Layout) -> int:
        """Return how many rows fit into memory, if a forward pass keeps `forward_bytes`."""
        numbers = sum(shape.numel() for shape in layout.shapes.values())
        row = _TENSORS_PER_ROW * (forward_bytes + numbers * self.reference.element_size())
        return max(self._memory // max(row, 1), 1)

    def _run(self, name: str, compute: Callable[[Transforms], _T]) -> _T:
        """Compute with vmap, or in a loop where vmap cannot go."""
        with self._kernels():
            if name in self._looped:
                return _in_a_loop(name, compute)
            try:
                return _detached(compute(_VECTORIZED))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # vmap has no one kind of error for what it cannot do
                answer = _in_a_loop(name, compute)
                self._looped.add(name)
                _LOGGER.info("%s runs in a loop over points: vmap cannot (%s)", name, error)
                return answer

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        """Compute in the dtype of the parameters, with kernels that can be differentiated."""
        with (
            self.shelter(),
            twice_differentiable(recurrent=self._snapshot.recurrent),
        ):
            yield


def _slices(batch: TorchBatch, size: int) -> Iterator[tuple[slice, TorchBatch]]:
    if size >= batch.size:
        yield slice(None), batch
        return
    for start in range(0, batch.size, size):
        points = slice(start, start + size)
        yield points, batch[points]


def _in_a_loop(name: str, compute: Callable[[Transforms], _T]) -> _T:
    try:
        return _detached(compute(_LOOPED))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"`{name}` of the model and loss fails: {type(error).__name__}: {error}. Every "
            "operation needs a first and a second derivative; replace the one that has none."
        ) from error


def _detached(answer: _T) -> _T:
    return pytree.tree_map(torch.detach, answer)
