"""Fitted state on disk, and the hashes by which content is told apart.

A directory holds the arrays as safetensors and everything else as readable JSON; nothing is
pickled. What an inverse consists of is said by the fields of its dataclass: a method that is added
needs no code here.
"""

from influence_core.storage.load import load
from influence_core.storage.save import save
from influence_core.storage.setup import Setup

__all__ = ["Setup", "load", "save"]
