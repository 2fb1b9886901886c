"""Dicts, tuples and lists of arrays, as models take them for `x` and perturbation returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from influence_core.arrays.namespace import namespace
from influence_core.problem import Tree


def map_tree(fn: Callable[..., Any], *trees: Tree) -> Tree:
    """Apply `fn` to the corresponding leaves of `trees`, which share one structure.

    None is a place without a leaf and stays None.
    """
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {key: map_tree(fn, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, tuple | list):
        leaves = [map_tree(fn, *children) for children in zip(*trees, strict=True)]
        return type(first)(*leaves) if hasattr(first, "_fields") else type(first)(leaves)
    return fn(*trees)


def concatenate_trees(trees: Sequence[Tree], axis: int) -> Tree:
    """Concatenate the corresponding leaves of `trees` along `axis`."""
    if len(trees) == 1:
        return trees[0]
    return map_tree(lambda *leaves: namespace(leaves[0]).concat(leaves, axis=axis), *trees)
