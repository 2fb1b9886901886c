"""Layers, as the core sees them: where their parameters stand, and what they saw of some points.

Whatever its kind, a layer's parameters make one matrix `M`, `(o, i')`, and the gradient of a point
is `Σ_s g_s ⊗ a'_s`. Each kind says in its own file what `a'` is:

    affine    `[a, 1]`, with the one where there is a bias
    lookup    the unit vector of an index
    free      nothing but the one: `M` is a column, and `g` the gradient at a position
"""

from influence_core.layers.affine import AffineSeen
from influence_core.layers.bases import Bases
from influence_core.layers.columns import (
    AffineColumns,
    FreeColumns,
    FreePlace,
    LayerColumns,
    Piece,
    Place,
    join_pieces,
)
from influence_core.layers.free import FreeSeen
from influence_core.layers.lookup import LookupSeen
from influence_core.layers.owners import columns_of_layers, find_faults, unfactored
from influence_core.layers.seen import Seen, numbers_of

__all__ = [
    "AffineColumns",
    "AffineSeen",
    "Bases",
    "FreeColumns",
    "FreePlace",
    "FreeSeen",
    "LayerColumns",
    "LookupSeen",
    "Piece",
    "Place",
    "Seen",
    "columns_of_layers",
    "find_faults",
    "join_pieces",
    "numbers_of",
    "unfactored",
]
