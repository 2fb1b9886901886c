"""Loaders that cannot be used: columns are points, so every pass must yield them in one order.

A loader that shuffles is refused. It is recognised without the library that it comes from: by an
attribute `shuffle` that is true, or a sampler whose class is random by name, on the loader, its
`sampler` or its `batch_sampler`. What escapes this yields other points in another pass, which
`reading` finds by their content.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from influence_core.errors import DataError, DataTypeError
from influence_core.objective import check_iterable

_RANDOM = ("random", "shuffl")


def check_order(loader: Any, argument: str) -> None:
    """Raise unless `loader` can be iterated again, and keeps its order as far as can be seen.

    Args:
        loader: what a user passed as an iterable of `(x, y)` batches.
        argument: how it is called, for the message.

    Raises:
        DataTypeError: it is no iterable, or can be iterated only once.
        DataError: it shuffles.
    """
    check_iterable(loader, argument)
    if hasattr(type(loader), "__next__"):
        raise DataTypeError(
            f"`{argument}` needs data that can be iterated again; got {type(loader).__name__}, "
            "which is used up after one pass. Pass a DataLoader, or `list(...)` of it."
        )
    for owner in (loader, *_samplers(loader)):
        if found := _disorder(owner, named=owner is not loader):
            raise DataError(
                f"`{argument}` must yield its points in one known order, which the rows and "
                f"columns of the result stand for; got a {type(loader).__name__} with {found}. "
                "Pass a loader with `shuffle=False` over the same data."
            )


def _samplers(loader: Any) -> Iterator[Any]:
    """Yield the samplers of the loader and theirs."""
    for name in ("sampler", "batch_sampler"):
        sampler = getattr(loader, name, None)
        yield from (
            each for each in (sampler, getattr(sampler, "sampler", None)) if each is not None
        )


def _disorder(owner: Any, *, named: bool) -> str | None:
    """Say how a loader or sampler shuffles; None where nothing is seen."""
    if getattr(owner, "shuffle", None) is True:
        return f"`shuffle=True` of its {type(owner).__name__}"
    names = [kind.__name__ for kind in type(owner).__mro__] if named else []
    random = [name for name in names if any(word in name.lower() for word in _RANDOM)]
    return f"a {random[0]}" if random else None
