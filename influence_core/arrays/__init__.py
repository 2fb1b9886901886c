"""The only room that may know an array library: everything else speaks the array API standard."""

from influence_core.arrays.exchange import Exchange, check_array_backend, exchange_for
from influence_core.arrays.indexing import sum_by_index
from influence_core.arrays.linalg import (
    eigh,
    masked_reciprocal,
    row_dots,
    row_norms,
    singular_value_decomposition,
    symmetrize,
    unit_rows,
)
from influence_core.arrays.namespace import (
    device,
    epsilon,
    eye,
    from_host,
    is_array,
    matching,
    move,
    namespace,
    ones,
    read_flag,
    read_float,
    supports_float64,
    to_host,
    widen,
    zeros,
)
from influence_core.arrays.random import normal_rows, permutations, rademacher_rows, uniforms
from influence_core.arrays.trees import concatenate_trees, map_tree

__all__ = [
    "Exchange",
    "check_array_backend",
    "concatenate_trees",
    "device",
    "eigh",
    "epsilon",
    "exchange_for",
    "eye",
    "from_host",
    "is_array",
    "map_tree",
    "masked_reciprocal",
    "matching",
    "move",
    "namespace",
    "normal_rows",
    "ones",
    "permutations",
    "rademacher_rows",
    "read_flag",
    "read_float",
    "row_dots",
    "row_norms",
    "singular_value_decomposition",
    "sum_by_index",
    "supports_float64",
    "symmetrize",
    "to_host",
    "uniforms",
    "unit_rows",
    "widen",
    "zeros",
]
