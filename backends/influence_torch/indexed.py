"""The batches of a DataLoader by their index: any order, one batch in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from influence_torch.data import read_untouched, untouched_random_state


def indexed_batches(data: Any) -> Sequence[Any] | None:
    """Return the `(x, y)` pairs of `data` as a sequence, or None where only a pass yields them.

    A list or tuple is one already. Of a DataLoader with a map-style data set one pass of its
    sampler is recorded; batches are then fetched from the data set, and collated, in this process.
    """
    if isinstance(data, Sequence):
        return data
    # a subclass that iterates in its own way may yield other batches than the sampler says
    if not isinstance(data, DataLoader) or type(data).__iter__ is not DataLoader.__iter__:
        return None
    if isinstance(data.dataset, IterableDataset):
        return None
    return LoaderBatches(data, tuple(read_untouched(_recorder(data))))


@dataclass(frozen=True)
class LoaderBatches(Sequence[Any]):
    """What a DataLoader yields, fetched when it is asked for.

    Attributes:
        loader: has the data set and the collate function.
        indices: of the points of each batch, or what the sampler yields where there are no batches.
    """

    loader: DataLoader[Any]
    indices: tuple[Any, ...]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        """Return one `(x, y)` pair; no random generator is changed by loading it."""
        indices, dataset = self.indices[index], self.loader.dataset
        with untouched_random_state(self.loader):
            if self.loader.batch_sampler is None:
                points = dataset[indices]
            elif hasattr(dataset, "__getitems__"):
                points = dataset.__getitems__(indices)
            else:
                points = [dataset[i] for i in indices]
            return self.loader.collate_fn(points)


class _Echo(Dataset[Any]):
    """A data set whose points are their indices."""

    def __getitem__(self, index: Any) -> Any:
        return index


def _recorder(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that yields the indices; it draws random numbers as `loader` itself does."""
    if loader.batch_sampler is None:
        return DataLoader(
            _Echo(),
            batch_size=None,
            sampler=loader.sampler,
            collate_fn=copy.copy,
            generator=loader.generator,
        )
    # copies: a sampler may use one list for all batches
    return DataLoader(
        _Echo(),
        batch_sampler=loader.batch_sampler,
        collate_fn=copy.copy,
        generator=loader.generator,
    )
