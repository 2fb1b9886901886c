"""Loaders that count what is asked of them, or break the rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class CountingLoader:
    """A list of batches that counts the passes over it."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.batches)

    def since(self) -> int:
        """The passes since this was asked last."""
        passes, self.passes = self.passes, 0
        return passes


class ChangingLoader(CountingLoader):
    """Yields one batch less in every pass but the first."""

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.batches if self.passes == 1 else self.batches[:-1])
