"""The training points with the largest and the smallest scores, found as the chunks go by.

A ranking of `k` entries a test point is merged with that of the next chunk: `O(m k)` numbers in
all. Merging is exact and does not depend on how the training points are cut, for entries are
ordered by score and then by index; rankings of parts can be merged in any order.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.calculators.chunks import slices
from influence_core.errors import MissingExtraError
from influence_core.methods.base import check_positive_integer

Host = npt.NDArray[Any]

# test points whose scores are sorted at a time: sorting holds copies of them
_AT_ONCE = 64
# so many test points and entries are printed
_SHOWN = 5


@dataclass(frozen=True)
class Ranking:
    """Training points of every test point, the strongest first.

    Attributes:
        indices: `(m, k)`, from 0, in the order of the training loader.
        scores: `(m, k)`.
    """

    indices: npt.NDArray[np.int64]
    scores: Host

    @classmethod
    def of(cls, scores: Host, first: int, k: int, sign: int) -> Ranking:
        """Return the ranking of the scores `(m, n)` with points `first`, `first + 1`, ….

        Args:
            scores: of all of the points.
            first: the index of the first one.
            k: how many to keep.
            sign: 1 for the largest scores first, -1 for the smallest.
        """
        count = min(k, scores.shape[1])
        parts = [_strongest(-sign * scores[rows], count) for rows in slices(len(scores), _AT_ONCE)]
        columns = np.concatenate(parts)
        return cls(columns + first, np.take_along_axis(scores, columns, 1))

    def merged(self, other: Ranking, k: int, sign: int) -> Ranking:
        """Return the ranking of the points of both, for the same test points."""
        indices = np.concatenate([self.indices, other.indices], axis=1)
        scores = np.concatenate([self.scores, other.scores], axis=1)
        return Ranking(indices, scores)._best(k, sign)

    def _best(self, k: int, sign: int) -> Ranking:
        order = np.lexsort((self.indices, -sign * self.scores), axis=1)[:, :k]
        indices, scores = (np.take_along_axis(a, order, 1) for a in (self.indices, self.scores))
        return Ranking(indices, scores)


@dataclass(frozen=True)
class TopK:
    """The most helpful and the most harmful training points of every test point.

    Attributes:
        helpful: the largest scores: without the point, the test loss rises.
        harmful: the smallest scores: without the point, the test loss falls.
    """

    helpful: Ranking
    harmful: Ranking

    @classmethod
    def of(cls, scores: Host, first: int, k: int) -> TopK:
        """Return the rankings of scores `(m, n)` with training points `first`, `first + 1`, …."""
        return cls(Ranking.of(scores, first, k, 1), Ranking.of(scores, first, k, -1))

    @property
    def k(self) -> int:
        """How many points there are on either side."""
        return int(self.helpful.indices.shape[1])

    def merged(self, other: TopK, k: int) -> TopK:
        """Return the rankings for the training points of both and the same test points."""
        return TopK(
            self.helpful.merged(other.helpful, k, 1), self.harmful.merged(other.harmful, k, -1)
        )

    def to_pandas(self) -> Any:
        """Return a data frame with the columns test, kind, rank, train and score.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "`to_pandas` needs pandas, which is not installed. Install it with `pip install "
                "pandas`, or take `indices` and `scores` of `helpful` and `harmful`."
            ) from error
        m, k = self.helpful.indices.shape
        frames = [
            pandas.DataFrame(
                {
                    "test": np.repeat(np.arange(m), k),
                    "kind": kind,
                    "rank": np.tile(np.arange(1, k + 1), m),
                    "train": ranking.indices.ravel(),
                    "score": ranking.scores.ravel(),
                }
            )
            for kind, ranking in (("helpful", self.helpful), ("harmful", self.harmful))
        ]
        return pandas.concat(frames, ignore_index=True)

    def __str__(self) -> str:
        """Return a table of the first test points: train index and score, the strongest first."""
        rows, columns = self.helpful.indices.shape
        lines = [f"{'test':>6}  {'kind':<8} training point (score)"]
        for test in range(min(rows, _SHOWN)):
            for kind, ranking in (("helpful", self.helpful), ("harmful", self.harmful)):
                lines.append(f"{test:>6}  {kind:<8} {_entries(ranking, test, columns)}")
        more = rows - _SHOWN
        return "\n".join([*lines, f"… and {more} more test points"] if more > 0 else lines)


def collect(chunks: Iterable[tuple[slice, int, Host]], k: int) -> TopK:
    """Return the rankings of scores that go by in chunks.

    Args:
        chunks: the rows of a chunk, the index of its first training point, and its scores; all
            chunks of the same rows one after the other, rows in their order.
        k: how many points to keep.

    Raises:
        OptionError: `k` is no positive integer.
    """
    check_positive_integer("k", k)
    lines: dict[int, TopK] = {}
    for rows, first, scores in chunks:
        part, line = TopK.of(scores, first, k), lines.get(rows.start)
        lines[rows.start] = part if line is None else line.merged(part, k)
    return TopK(
        _stacked([line.helpful for line in lines.values()]),
        _stacked([line.harmful for line in lines.values()]),
    )


def _stacked(rankings: list[Ranking]) -> Ranking:
    indices = np.concatenate([ranking.indices for ranking in rankings])
    return Ranking(indices, np.concatenate([ranking.scores for ranking in rankings]))


def _strongest(keys: Host, k: int) -> npt.NDArray[np.int64]:
    """Return the columns of the `k` smallest keys of every row, `(m, k)`, in their order.

    Of equal keys the first columns are taken, in their order.
    """
    bound = np.partition(keys, k - 1, axis=1)[:, k - 1 : k]
    below, equal = keys < bound, keys == bound
    room = k - below.sum(axis=1, keepdims=True)
    kept = below | (equal & (np.cumsum(equal, axis=1) <= room))
    columns = np.nonzero(kept)[1].reshape(len(keys), k)
    order = np.argsort(np.take_along_axis(keys, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


def _entries(ranking: Ranking, test: int, count: int) -> str:
    pairs = zip(ranking.indices[test], ranking.scores[test], strict=True)
    shown = [f"{index} ({score:+.3g})" for index, score in list(pairs)[:_SHOWN]]
    return "  ".join([*shown, "…"] if count > _SHOWN else shown)
