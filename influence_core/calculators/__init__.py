"""Influences of more points than memory holds: lazy results in chunks, on disk, and ranked."""

from influence_core.calculators.lazy import LazyArray, LazyScores
from influence_core.calculators.plans import Chunk
from influence_core.calculators.projection import Projection
from influence_core.calculators.sequential import SequentialInfluenceCalculator
from influence_core.calculators.top_k import Ranking, TopK

__all__ = [
    "Chunk",
    "LazyArray",
    "LazyScores",
    "Projection",
    "Ranking",
    "SequentialInfluenceCalculator",
    "TopK",
]
