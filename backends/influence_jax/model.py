"""A model of JAX: a function and the tree of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from influence_core.errors import ModelError

Apply: TypeAlias = Callable[[Any, Any], Any]
"""`apply(params, x)`, the outputs for a batch of points."""


@dataclass(frozen=True, eq=False)
class Model:
    """A function `apply(params, x)` and the parameters that it was trained to.

    Attributes:
        apply: pure, and traceable by JAX; `x` has the points along its first axis.
        params: any tree of JAX arrays. Its floating-point arrays are the parameters, called by
            their dotted paths, such as ``"Dense_0.kernel"``; integers, booleans and
            what is no number (functions, None) are constants, which `apply` gets as they are. A
            Python float is refused: it may be either.

    Raises:
        ModelError: `apply` cannot be called.
    """

    apply: Apply
    params: Any

    def __post_init__(self) -> None:
        """Check the function; the parameters are looked at when they are read."""
        if not callable(self.apply):
            raise ModelError(
                "`apply` must be callable as apply(params, x); got "
                f"{type(self.apply).__name__}. Pass the function first and the parameters second."
            )
