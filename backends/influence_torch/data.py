"""Batches of torch data: checked, on the model's device, read without leaving a trace."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence_core.arrays import map_tree
from influence_core.errors import DataError, DataTypeError

_ONE_AT_A_TIME = threading.RLock()
_PAIRS = "Pass a list of (x, y) batches, such as [(x, y)], or a DataLoader of pairs."
# the key of the targets where a batch is a mapping, as the collators of transformers make it
_LABELS = "labels"


@dataclass(frozen=True)
class TorchBatch:
    """`n` points: inputs and targets, each a tensor or a dict or tuple of tensors."""

    x: Any
    y: Any
    size: int
    weights: None = None

    def __getitem__(self, points: slice) -> TorchBatch:
        """Return the points of a slice."""
        x, y = (map_tree(lambda t: t[points], tree) for tree in (self.x, self.y))
        return TorchBatch(x, y, len(range(self.size)[points]))


def make_batch(data: Any, device: torch.device, half_to: torch.dtype | None) -> TorchBatch:
    """Check an `(x, y)` pair and move it.

    Args:
        data: the pair; or a mapping with the key ``"labels"``, which is read as `(rest, labels)`.
        device: where to.
        half_to: the dtype that floating-point data is cast to; None leaves it as it is.

    Raises:
        DataTypeError: it is no pair, or holds something else than tensors.
        DataError: the lengths differ or are zero.
    """
    if isinstance(data, Mapping) and _LABELS in data:
        data = {key: value for key, value in data.items() if key != _LABELS}, data[_LABELS]
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataTypeError(
            "a batch must be a pair (x, y), or a mapping with the key 'labels'; got "
            f"{_described(data)}. {_PAIRS}"
        )
    lengths = [*_lengths(data[0], "x"), *_lengths(data[1], "y")]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise DataError(
            "`x` and `y` must have the same number of points, at least one, along the first axis; "
            f"got {lengths[0]} and {', '.join(map(str, lengths[1:]))}. {_PAIRS}"
        )
    x, y = (map_tree(lambda t: _moved(t, device, half_to), tree) for tree in data)
    return TorchBatch(x, y, lengths[0])


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree with their paths, such as ``"x['ids'][0]"``."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from leaves(child, f"{path}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for index, child in enumerate(tree):
            yield from leaves(child, f"{path}[{index}]")
    else:
        yield path, tree


def with_leaves(tree: Any, by_path: Mapping[str, Any]) -> Any:
    """Return `tree` with the leaves at some paths replaced."""
    paths = iter([path for path, _ in leaves(tree)])
    return map_tree(lambda t: by_path.get(next(paths), t), tree)


def only_leaves(tree: Any, by_path: Mapping[str, Any], path: str = "") -> Any:
    """Return the leaves at some paths in the structure of `tree`.

    In a dict the others are left out, in a tuple or list None stands in their places.
    """
    if isinstance(tree, Mapping):
        parts = {k: only_leaves(child, by_path, f"{path}[{k!r}]") for k, child in tree.items()}
        return {k: part for k, part in parts.items() if part is not None}
    if isinstance(tree, tuple | list):
        found = [only_leaves(t, by_path, f"{path}[{i}]") for i, t in enumerate(tree)]
        return type(tree)(*found) if hasattr(tree, "_fields") else type(tree)(found)
    return by_path.get(path)


def check_finite(batch: TorchBatch, where: str) -> None:
    """Raise `DataError` if a floating-point leaf holds NaN or infinity."""
    for path, leaf in [*leaves(batch.x, "x"), *leaves(batch.y, "y")]:
        if leaf.is_floating_point() and not (finite := torch.isfinite(leaf)).all():
            rows = (~finite.reshape(batch.size, -1).all(dim=1)).nonzero()[:5, 0].tolist()
            raise DataError(
                f"`{where}`: {path} holds NaN or infinity, first in the points {rows}. "
                "Clean or drop these points."
            )


class RandomStates:
    """The states of the global generators, and of those that a DataLoader owns, at one moment."""

    def __init__(self, loader: Any = None) -> None:
        """Read them all."""
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - kept, not drawn from
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._own = [generator.get_state() for generator in _generators(loader)]

    def restore(self, loader: Any = None) -> None:
        """Put every generator back; `loader` is the one whose generators were read."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        for generator, state in zip(_generators(loader), self._own, strict=False):
            generator.set_state(state)


@contextmanager
def untouched_random_state(loader: Any = None) -> Iterator[None]:
    """Restore the generators at the end; one thread at a time, for they belong to the process."""
    with _ONE_AT_A_TIME:
        states = RandomStates(loader)
        try:
            yield
        finally:
            states.restore(loader)


def read_untouched(loader: Any, start: RandomStates | None = None) -> Iterator[Any]:
    """Yield what `loader` does; outside of it no generator moves, inside they move on as usual.

    One pass over any DataLoader draws from torch's global generator; datasets may draw from others.

    Args:
        loader: an iterable.
        start: the states that the pass starts from; None for the present ones.
    """
    iterator, inside = None, start
    while True:
        with untouched_random_state(loader):
            if inside is not None:
                inside.restore(loader)
            iterator = iter(loader) if iterator is None else iterator
            try:
                item = next(iterator)
            except StopIteration:
                return
            inside = RandomStates(loader)
        yield item


def _generators(loader: Any) -> list[torch.Generator]:
    outer = [getattr(loader, name, None) for name in ("batch_sampler", "sampler")]
    inner = [getattr(sampler, "sampler", None) for sampler in outer]
    found = (getattr(owner, "generator", None) for owner in (loader, *outer, *inner))
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _lengths(tree: Any, path: str) -> list[int]:
    found = []
    for where, leaf in leaves(tree, path):
        if not isinstance(leaf, Tensor):
            raise DataTypeError(
                f"`{where}` must be a tensor (or a dict or tuple of tensors); got "
                f"{_described(leaf)}. Use `torch.as_tensor`."
            )
        if leaf.ndim == 0:
            raise DataError(f"`{where}` must have the points along its first axis; got a scalar.")
        found.append(leaf.shape[0])
    if not found:
        raise DataError(f"`{path}` must hold at least one tensor; got {_described(tree)}.")
    return found


def _moved(tensor: Tensor, device: torch.device, half_to: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().to(device)
    return tensor.to(half_to) if half_to and tensor.is_floating_point() else tensor


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {list(value)}"
    return type(value).__name__
