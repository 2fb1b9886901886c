"""Gradients or factors of training points that `store_gradients` or `store_factors` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from influence_core.calculators import identity as identities
from influence_core.calculators import outputs
from influence_core.calculators.model import FittedModel
from influence_core.calculators.projection import Projection
from influence_core.errors import StorageError
from influence_core.problem import Array

GRADIENTS, FACTORS = "training gradients", "training factors"


@dataclass(frozen=True)
class StoredRows:
    """Rows on disk, `(n, p)` or `(n, r)` projected, and what they are.

    Attributes:
        array: the zarr array.
        identity: what told them from others when they were written.
    """

    array: Any
    identity: dict[str, Any]

    @classmethod
    def open(cls, store: Any, model: FittedModel, call: str) -> StoredRows:
        """Open what a calculator wrote, for scores by `model`.

        Args:
            store: what it was written to.
            model: the fitted model; its own parameters must be those of the stored rows.
            call: for the messages.

        Raises:
            StorageError: there is no such store, it is not complete, or of another model.
            MissingExtraError: zarr is not installed.
        """
        array, identity = outputs.read(store, call)
        if identity.get("what") not in (GRADIENTS, FACTORS):
            raise StorageError(
                f"`{call}` needs gradients or factors of training points; the store holds "
                f"{identity.get('what')!r}. Pass what `store_gradients` or `store_factors` wrote."
            )
        stored = cls(array, identity)
        stored._check(model, call)
        return stored

    @property
    def solved(self) -> bool:
        """Whether `(C + λI)⁻¹` is applied to the rows."""
        return bool(self.identity["what"] == FACTORS)

    @property
    def projection(self) -> Projection | None:
        """What the rows were projected by."""
        saved = self.identity["projection"]
        return None if saved is None else Projection(**saved)

    def like_stored(self, rows: Array) -> Array:
        """Return rows over all parameters as the stored ones are: projected, where they are."""
        return rows if self.projection is None else self.projection.of(rows)

    def read(self, rows: slice) -> npt.NDArray[Any]:
        """Return some of the rows on the host.

        Raises:
            StorageError: they cannot be read, or are damaged.
        """
        return outputs.read_chunk(self.array, (rows, slice(None)))

    def _check(self, model: FittedModel, call: str) -> None:
        """Compare what the rows depend on: gradients on the parameters, factors on the fit too."""
        present = identities.of_model(model)
        names = present if self.solved else identities.OF_GRADIENTS
        differing = [n for n in names if self.identity["model"].get(n) != present.get(n)]
        if differing:
            raise StorageError(
                f"`{call}` needs {self.identity['what']} of the same model; those in the store "
                f"were written with other {', '.join(differing)}. Store them again."
            )
