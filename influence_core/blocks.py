"""Block structures, and one regularisation for each block.

The curvature is taken as block-diagonal: a block is a set of parameters, and products across blocks
count as zero. Columns stand in the order of the blocks, inside a block in the order of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from influence_core.errors import BlockError, RegularizationError
from influence_core.modes import BlockMode, parse_mode

BlockStructure: TypeAlias = BlockMode | str | Mapping[str, Sequence[str]]
Regularization: TypeAlias = float | Mapping[str, float | None] | None


@dataclass(frozen=True)
class Block:
    """Some parameters of a model.

    Attributes:
        name: the key under which `_by_block` answers stand.
        names: its parameters, in the model's order.
        size: the number `d` of their entries.
    """

    name: str
    names: tuple[str, ...]
    size: int


def make_blocks(
    structure: BlockStructure, parameters: Mapping[str, tuple[int, ...]]
) -> tuple[Block, ...]:
    """Cut `parameters` (name to shape, in the model's order) into blocks.

    Raises:
        OptionError: a string that is no `BlockMode`.
        BlockError: a mapping that names no parameters, unknown ones, or one of them twice.
    """
    if isinstance(structure, Mapping):
        _check(structure, parameters)
        groups = {name: set(members) for name, members in structure.items()}
    else:
        groups = _groups(parse_mode(BlockMode, structure, "block_structure"), parameters)
    return tuple(_block(name, members, parameters) for name, members in groups.items())


def _groups(mode: BlockMode, parameters: Mapping[str, Any]) -> dict[str, set[str]]:
    if mode is BlockMode.PARAMETER_WISE:
        return {name: {name} for name in parameters}
    if mode is BlockMode.FULL:
        return {"": set(parameters)}
    layers: dict[str, set[str]] = {}
    for name in parameters:
        layers.setdefault(name.rpartition(".")[0], set()).add(name)
    return layers


def _block(name: str, members: set[str], parameters: Mapping[str, tuple[int, ...]]) -> Block:
    names = tuple(parameter for parameter in parameters if parameter in members)
    return Block(name, names, sum(math.prod(parameters[parameter]) for parameter in names))


def _check(structure: Mapping[str, Sequence[str]], parameters: Mapping[str, Any]) -> None:
    if not structure:
        raise BlockError("`block_structure` must hold at least one block; got an empty mapping.")
    seen: dict[str, str] = {}
    for block, members in structure.items():
        if isinstance(members, str) or not members:
            raise BlockError(
                f"`block_structure[{block!r}]` must be a list of at least one parameter name; "
                f"got {members!r}."
            )
        for name in members:
            _check_member(name, block, seen, parameters)


def _check_member(
    name: str, block: str, seen: dict[str, str], parameters: Mapping[str, Any]
) -> None:
    if name not in parameters:
        raise BlockError(
            f"`block_structure[{block!r}]` may name parameters that want gradients only; got "
            f"{name!r}. The model has {', '.join(map(repr, parameters))}."
        )
    if name in seen:
        raise BlockError(
            f"`block_structure` must name a parameter once; {name!r} stands in the blocks "
            f"{seen[name]!r} and {block!r}."
        )
    seen[name] = block


def make_regularization(
    regularization: Any,
    block_names: Sequence[str] | None = None,
    *,
    positive: bool = False,
    argument: str = "regularization",
) -> dict[str, float] | float:
    """Return λ as floats: one for each block name, or as it was given where names are unknown yet.

    A mapping may name a subset of the blocks; the others get 0, and so does None.

    Args:
        regularization: what the user passed.
        block_names: all blocks, where they are known.
        positive: whether the method needs `λ > 0` for every block.
        argument: the name that the user knows it by.

    Raises:
        RegularizationError: a λ is no number, negative or not finite, or zero where it must not be;
            or a name is no block's.
    """
    if not isinstance(regularization, Mapping):
        value = _number(regularization, argument, block_names, positive)
        return value if block_names is None else dict.fromkeys(block_names, value)
    given = {
        name: _number(value, f"{argument}[{name!r}]", block_names, positive)
        for name, value in regularization.items()
    }
    if block_names is None:
        return given
    _check_names(given, block_names, positive)
    return {name: given.get(name, 0.0) for name in block_names}


def as_number(value: Any) -> float:
    """Return a single λ as a float.

    Raises:
        RegularizationError: it is no number, negative or not finite.
    """
    return _number(value, "regularization", None, False)


def _check_names(given: Mapping[str, float], block_names: Sequence[str], every_one: bool) -> None:
    unknown = [name for name in given if name not in block_names]
    if unknown:
        raise RegularizationError(
            f"`regularization` may name blocks only; got {unknown}. The blocks are "
            f"{list(block_names)}; a plain number serves all of them."
        )
    missing = [name for name in block_names if name not in given]
    if missing and every_one:
        raise RegularizationError(
            "`regularization` must name every block, for this method needs λ > 0; missing are "
            f"{missing}. The blocks are {list(block_names)}; a plain number serves all of them."
        )


def _number(value: Any, argument: str, block_names: Sequence[str] | None, positive: bool) -> float:
    number = 0.0 if value is None else _as_float(value)
    if not (math.isfinite(number) and number >= 0):
        raise RegularizationError(
            f"`{argument}` must be a finite number, zero or more (None is 0); got {value!r}."
            + (f" The blocks are {list(block_names)}." if block_names else "")
        )
    if positive and not number:
        raise RegularizationError(
            f"`{argument}` must be a number above zero for this method, whose inverse divides by "
            f"λ; got {value!r}. Try 1e-3."
        )
    return number


def _as_float(value: Any) -> float:
    value = value.detach() if hasattr(value, "detach") else value  # torch warns of a lost gradient
    boolean = "bool" in str(getattr(value, "dtype", ""))
    scalar = not (isinstance(value, str | bytes | bool) or boolean)
    scalar = scalar and getattr(value, "ndim", 0) == 0
    try:
        return float(value) if scalar else math.nan
    except (TypeError, ValueError):
        return math.nan
