"""What the layers of a module see: their inputs, and gradients in their outputs.

One file for every kind of layer; `finding` knows which module is of which kind.
"""

from influence_torch.layers.calls import Axes, Calls, joined, perturbed, point_axes, record
from influence_torch.layers.finding import Parts, find_parts

__all__ = [
    "Axes",
    "Calls",
    "Parts",
    "find_parts",
    "joined",
    "perturbed",
    "point_axes",
    "record",
]
