"""Trees of arrays, leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from influence_core.arrays import is_array, map_tree, to_host
from influence_core.problem import Tree


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves in their order; None is no leaf."""
    found: list[Any] = []
    map_tree(found.append, tree)
    return found


def replaced(tree: Tree, position: int, leaf: Any) -> Tree:
    """Return the tree with another leaf at a position in their order."""
    count = iter(range(len(leaves(tree))))
    return map_tree(lambda old: leaf if next(count) == position else old, tree)


def part_of(tree: Tree, start: int, stop: int) -> Tree:
    """Return the points from `start` to `stop`, along the first axes."""
    return map_tree(lambda leaf: leaf[start:stop, ...], tree)


def on_host(tree: Tree) -> Tree:
    """Return NumPy copies; floating-point numbers become float64."""
    return map_tree(_on_host, tree)


def same(one: Tree, other: Tree) -> bool:
    """Tell whether two trees on the host have the same form and the same leaves."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return one is other  # None, or trees of another form
    # NaN, which differs from itself, counts as the same
    equal = one.shape == other.shape and np.all((one == other) | (one != one) & (other != other))
    return bool(equal)


def _on_host(leaf: Any) -> Any:
    host = to_host(leaf) if is_array(leaf) else np.array(leaf)
    return host.astype(np.float64) if host.dtype.kind == "f" else host
