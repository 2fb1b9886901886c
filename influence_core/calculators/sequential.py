"""Influences of more points than memory holds, in one process."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_core.calculators.chunks import MOST, ROWS, Budget
from influence_core.calculators.columns import Columns, LoaderColumns, StoredColumns
from influence_core.calculators.lazy import LazyArray, LazyScores
from influence_core.calculators.model import FittedModel
from influence_core.calculators.plans import RowsPlan, ScoresPlan
from influence_core.calculators.projection import Projection
from influence_core.calculators.reading import Reader
from influence_core.calculators.reporting import RunReport
from influence_core.calculators.rows import ArrayRows, LoaderRows, Rows
from influence_core.calculators.stored import FACTORS, GRADIENTS, StoredRows
from influence_core.calculators.top_k import TopK
from influence_core.calls import InfluenceFunctionModel
from influence_core.errors import DataError, OptionError
from influence_core.modes import InfluenceMode, parse_mode


class SequentialInfluenceCalculator:
    """The calls of a fitted model for loaders of any length, chunk by chunk.

    For `m` test and `n` training points, the test points are cut into as few chunks as memory
    allows. Each is solved once, and then one pass over the training data gives its scores. Passes
    over the training data: one for each chunk of test points, and a first one that reads and hashes
    the points and computes no gradients. The test data is read twice, likewise.

    A calculator takes the λ that the model has at the call.

    Args:
        influence: any fitted influence function model.
        max_memory: bytes that are held at once, a product of the backend (`max_memory` of the
            model) included; a result that is returned as one array, and the batches of the loaders,
            come on top. None allows as much as a product of the model, beside it.
        progress: show a bar with the rate and the time left.

    Raises:
        NotFittedException: the model is not fitted.
        OptionError: `influence` is none, or `max_memory` leaves nothing beside a product.
    """

    def __init__(
        self,
        influence: InfluenceFunctionModel,
        *,
        max_memory: int | None = None,
        progress: bool = False,
    ) -> None:
        """Check the settings; nothing is computed."""
        self._influence = influence
        self._max_memory = max_memory
        self._progress = progress
        self._budget(self._model("SequentialInfluenceCalculator"))

    def influences(
        self, test_loader: Any, train_loader: Any, mode: InfluenceMode | str = InfluenceMode.Up
    ) -> LazyScores:
        """Return the influence of every training point on the loss at every test point, lazily.

        Args:
            test_loader: an iterable of `(x, y)` batches that does not shuffle, `m` points.
            train_loader: the same, `n` points.
            mode: `Up`, to remove a training point, or `Perturbation`, to change its input.

        Returns:
            `(m, n)`, or `(m, n, *x.shape[1:])`: what `influences` of the model returns.

        Raises:
            UnsupportedInfluenceModeException: an unknown `mode`.
            DataError: a loader shuffles.
            DataTypeError: a loader is no iterable, or can be iterated only once.
        """
        model = self._model("influences")
        rows = self._rows(model, test_loader, "influences(test_loader, …)", solved=True)
        return self._from_rows(model, "influences", rows, train_loader, mode)

    def influence_factors(self, loader: Any) -> LazyArray:
        """Return `(C + λI)⁻¹ ∇θℓ` of every point of `loader`, `(n, p)`, lazily."""
        model = self._model("influence_factors")
        rows = self._rows(model, loader, "influence_factors(loader)", solved=True)
        plan = RowsPlan("influence_factors", model, rows, self._budget(model))
        return LazyArray(plan, "influence_factors", progress=self._progress)

    def influences_from_factors(
        self,
        z_test_factors: Any,
        train_loader: Any,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> LazyScores:
        """Return what `influences` does, from factors, lazily.

        Args:
            z_test_factors: what `influence_factors` returned, lazy or computed; or a zarr array.
            train_loader: an iterable of `(x, y)` batches that does not shuffle.
            mode: as for `influences`.

        Raises:
            UnsupportedInfluenceModeException: an unknown `mode`.
            DataError: the factors have the wrong shape, or the loader shuffles.
        """
        call = "influences_from_factors"
        model = self._model(call)
        rows = _given(model, z_test_factors, f"{call}(z_test_factors, …)")
        return self._from_rows(model, call, rows, train_loader, mode)

    def top_k(self, test_loader: Any, train_loader: Any, k: int) -> TopK:
        """Return the `k` most helpful and most harmful training points of every test point.

        The matrix of scores is never held: see `LazyScores.top_k`.
        """
        return self.influences(test_loader, train_loader).top_k(k)

    def store_gradients(
        self,
        train_loader: Any,
        path_or_store: Any,
        *,
        projection: Projection | None = None,
        overwrite: bool = False,
    ) -> Any:
        """Write the gradients of training points to disk, for `influences_from_store`.

        Later test points then cost a solve and no pass over the training data. A call that was
        interrupted is taken up again by the same call, as in `LazyArray.to_zarr`.

        Args:
            train_loader: an iterable of `(x, y)` batches that does not shuffle, `n` points.
            path_or_store: a path, or a store of zarr.
            projection: keep `r` numbers of a gradient instead of `p`; the scores have an error
                then, see `Projection`. None keeps the gradients.
            overwrite: whether a result of another call is replaced.

        Returns:
            The zarr array, `(n, p)` or `(n, r)`.

        Raises:
            StorageError: as for `LazyArray.to_zarr`.
            MissingExtraError: zarr is not installed.
        """
        stored = self._training_rows("store_gradients", GRADIENTS, train_loader, projection)
        return stored.to_zarr(path_or_store, overwrite)

    def store_factors(
        self,
        train_loader: Any,
        path_or_store: Any,
        *,
        projection: Projection | None = None,
        overwrite: bool = False,
    ) -> Any:
        """Write the factors of training points to disk, for `influences_from_store`.

        Every training point is solved for once; later test points then cost their gradients only.
        Otherwise as `store_gradients`.
        """
        stored = self._training_rows("store_factors", FACTORS, train_loader, projection)
        return stored.to_zarr(path_or_store, overwrite)

    def influences_from_store(self, test_loader: Any, store: Any) -> LazyScores:
        """Return the influence of stored training points on the loss at every test point, lazily.

        Args:
            test_loader: an iterable of `(x, y)` batches that does not shuffle, `m` points.
            store: what `store_gradients` or `store_factors` wrote.

        Returns:
            `(m, n)`: what `influences` returns, up to the error of the projection if there is one.

        Raises:
            StorageError: the store is not complete, or of a model with other parameters; for
                factors, of another fit, method or λ.
            MissingExtraError: zarr is not installed.
        """
        call = "influences_from_store"
        model = self._model(call)
        stored = StoredRows.open(store, model, call)
        rows = self._rows(model, test_loader, f"{call}(test_loader, …)", solved=not stored.solved)
        return self._scores(model, call, rows, StoredColumns(model, stored), InfluenceMode.Up)

    def _from_rows(
        self,
        model: FittedModel,
        call: str,
        rows: Rows,
        train_loader: Any,
        mode: InfluenceMode | str,
    ) -> LazyScores:
        mode = parse_mode(InfluenceMode, mode, "mode")
        argument = f"{call}(…, train_loader)"
        reader = Reader(model.problem, model.exchange, train_loader, argument)
        return self._scores(model, call, rows, LoaderColumns(model, reader, mode), mode)

    def _scores(
        self, model: FittedModel, call: str, rows: Rows, columns: Columns, mode: InfluenceMode
    ) -> LazyScores:
        plan = ScoresPlan("influences", model, rows, columns, mode, self._budget(model))
        return LazyScores(plan, call, progress=self._progress)

    def _training_rows(
        self, call: str, what: str, loader: Any, projection: Projection | None
    ) -> LazyArray:
        if projection is not None and not isinstance(projection, Projection):
            raise OptionError(
                f"`{call}(projection=…)` must be a Projection, such as Projection(1024), or None; "
                f"got {projection!r}."
            )
        model = self._model(call)
        reader = Reader(model.problem, model.exchange, loader, f"{call}(train_loader, …)")
        rows = LoaderRows(model, reader, what == FACTORS, RunReport(self._influence))
        most = MOST if rows.solved else ROWS
        plan = RowsPlan(what, model, rows, self._budget(model), projection, most)
        return LazyArray(plan, call, progress=self._progress)

    def _rows(self, model: FittedModel, loader: Any, argument: str, *, solved: bool) -> LoaderRows:
        reader = Reader(model.test_problem, model.exchange, loader, argument)
        return LoaderRows(model, reader, solved, RunReport(self._influence))

    def _model(self, call: str) -> FittedModel:
        return FittedModel.of(self._influence, call)

    def _budget(self, model: FittedModel) -> Budget:
        return Budget.of(model, self._max_memory, type(self).__name__)


def _given(model: FittedModel, factors: Any, argument: str) -> Rows:
    """Return the rows that a user passed, after a look at their shape."""
    if isinstance(factors, LazyArray):
        plan = factors.plan
        if not (isinstance(plan, RowsPlan) and plan.model.size == model.size):
            raise DataError(
                f"`{argument}` needs factors over {model.size} parameters; got {factors!r}. Pass "
                "what `influence_factors` returned."
            )
        return plan.rows
    if not hasattr(factors, "shape"):
        factors = np.asarray(factors)
    if len(factors.shape) != 2 or factors.shape[1] != model.size or factors.shape[0] == 0:
        raise DataError(
            f"`{argument}` needs factors of shape (m, {model.size}) with m of one or more; got "
            f"{tuple(factors.shape)}. Pass what `influence_factors` returned."
        )
    return ArrayRows(model, factors, argument)
