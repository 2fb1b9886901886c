"""Trees of arrays, leaf by leaf."""

from __future__ import annotations

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


def _on_host(leaf: Any) -> Any:
    host = to_host(leaf) if is_array(leaf) else np.array(leaf)
    return host.astype(np.float64) if host.dtype.kind == "f" else host
