"""Results that are computed when they are asked for, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from influence_core.arrays import concatenate_trees
from influence_core.calculators.outputs import Form, alone, begin, on_host
from influence_core.calculators.plans import Chunk, Plan, ScoresPlan, Wanted
from influence_core.calculators.progress import progress_bar
from influence_core.calculators.top_k import TopK, collect
from influence_core.errors import OptionError
from influence_core.modes import InfluenceMode
from influence_core.problem import Array


class LazyArray:
    """A result in chunks; nothing is computed before it is asked for.

    The first use reads every loader once, to count its points and to hash their content, and makes
    the checks of a user's data; nothing is differentiated in that pass.

    Args:
        plan: what to compute.
        call: how the user made it, for messages.
        progress: whether to show a bar.
    """

    def __init__(self, plan: Plan, call: str, *, progress: bool) -> None:
        """Keep the plan; nothing is read."""
        self.plan = plan
        self._call = call
        self._progress = progress

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self.plan.shape

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the model's parameters."""
        return self.plan.model.like.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of a chunk; those at the ends have what is left."""
        return self.plan.chunks

    def __repr__(self) -> str:
        """Say what it is; the shape would cost a pass over the data."""
        return f"<{type(self).__name__} of {self._call}>"

    def blocks(self) -> Iterator[Chunk]:
        """Yield `(rows, columns, array)` for every chunk: two slices and the numbers there.

        One chunk is held at a time. All chunks of the same rows come one after the other.

        Raises:
            DataError: the points cannot be used, or are others in a later pass.
            NonFiniteError: an answer is NaN or infinite.
        """
        return self._computed(lambda *_: True, done=0)

    def compute(self) -> Array:
        """Return the whole result as one array in the library and on the device of the model.

        While it is put together, it is held twice.
        """
        lines: dict[int, list[Array]] = {}
        for rows, _, array in self.blocks():
            lines.setdefault(rows.start, []).append(array)
        return concatenate_trees([concatenate_trees(line, axis=1) for line in lines.values()], 0)

    def to_zarr(self, path_or_store: Any, overwrite: bool = False) -> Any:
        """Write the result to disk in the zarr format, chunk by chunk, and return the zarr array.

        What a call that was interrupted has finished is kept: the same call computes what is
        missing, and the result is the same to the last bit. The same call means the same
        parameters, fit, data in the same batches, settings and chunks; their hashes stand in the
        attributes of the array.

        Args:
            path_or_store: a path, or a store of zarr. A local one is locked while it is written to.
            overwrite: whether a result of another call is replaced. What the same call has finished
                is kept in any case.

        Returns:
            The zarr array, in float32 or float64.

        Raises:
            StorageError: another call's result is there, something else, another process is writing
                to it, or the store does not take it.
            MissingExtraError: zarr is not installed.
        """
        plan, call = self.plan, f"{self._call}.to_zarr"
        with alone(path_or_store, call) as place:
            form = Form(
                plan.shape, plan.chunks, on_host(plan.model.like).dtype.name, plan.identity()
            )
            output = begin(place, form, call, overwrite=overwrite)
            missing = output.missing()
            left, done = len(missing), prod(plan.shape) - output.numbers(missing)
            for rows, columns, array in self._computed(lambda i, j: (i, j) in missing, done=done):
                output.write((rows, columns), on_host(array), left)
                left -= 1
            output.finish()
        return output.array

    def _computed(self, wanted: Wanted, *, done: int) -> Iterator[Chunk]:
        shape = self.plan.shape
        with progress_bar(self._call, prod(shape), done, shown=self._progress) as bar:
            for chunk in self.plan.compute(wanted):
                yield chunk
                bar.update(prod(chunk.array.shape))


class LazyScores(LazyArray):
    """Scores in chunks, which can be ranked without being kept."""

    plan: ScoresPlan

    def top_k(self, k: int) -> TopK:
        """Return the `k` most helpful and most harmful training points of every test point.

        Exact; what is held beside one chunk is `m · k` numbers. Equal scores are ordered by the
        index of the training point, the smaller one first.

        Args:
            k: at most `n` are returned.

        Raises:
            OptionError: `k` is no positive integer, or the mode is `Perturbation`.
        """
        if self.plan.mode is not InfluenceMode.Up:
            raise OptionError(
                f"`top_k` ranks scores of mode 'up'; these are of mode {str(self.plan.mode)!r}, "
                "which have a number for every input. Leave the mode out."
            )
        return collect(((rows, c.start, on_host(a)) for rows, c, a in self.blocks()), k)
