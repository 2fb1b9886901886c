"""64-bit numbers: JAX has them only where it was told to, and else halves them without a word."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from influence_core.errors import DataTypeError

ENABLE = 'jax.config.update("jax_enable_x64", True)'


def check_precision(dtype: Any, what: str, remedy: str) -> None:
    """Raise if JAX, as it is set up now, would halve numbers of `dtype`.

    Args:
        dtype: of the numbers.
        what: they are, for the message.
        remedy: what else could be done about it.

    Raises:
        DataTypeError: it would.
    """
    exact = jnp.issubdtype(dtype, jnp.inexact)
    wide = exact and jnp.dtype(dtype) in (jnp.dtype("float64"), jnp.dtype("complex128"))
    if wide and not jax.config.jax_enable_x64:
        raise DataTypeError(
            f"{what} must have numbers that JAX can hold; got {jnp.dtype(dtype).name} while "
            f"64-bit numbers are disabled, and nothing is rounded silently here. Call "
            f"`{ENABLE}` before anything else, or {remedy}."
        )
