"""Which layer every parameter of a block belongs to, and what is wrong where it is not one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from influence_core.errors import NotImplementedLayerRepresentationException
from influence_core.layers.columns import (
    AffineColumns,
    FreeColumns,
    FreePlace,
    LayerColumns,
    Place,
)
from influence_core.problem import FreeParameters, Layer

_Layers = Mapping[str, Layer | FreeParameters]
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Claim:
    """Some rows of a parameter that a layer says are its own."""

    layer: str
    first: int
    rows: int
    width: int


def unfactored(
    faults: Mapping[str, str], remedy: str = ""
) -> NotImplementedLayerRepresentationException:
    """Return the exception that says which parameters EK-FAC cannot serve, and the way out.

    Args:
        faults: name of the parameter -> what is wrong.
        remedy: a further way out.
    """
    by_fault: dict[str, list[str]] = {}
    for name, fault in faults.items():
        by_fault.setdefault(fault, []).append(repr(name))
    told = "; ".join(f"{', '.join(names)}: {fault}" for fault, names in by_fault.items())
    return NotImplementedLayerRepresentationException(
        f"EK-FAC needs every parameter to belong to one layer that can be factored. {told}. "
        f"Make a constant of what does not fit (freeze the parameter), {remedy}or use another "
        "method, such as Cg."
    )


def find_faults(names: Sequence[str], layers: _Layers, parameters: _Shapes) -> dict[str, str]:
    """Return name -> what is wrong, for every parameter that is not wholly one or several layers'.

    Args:
        names: of the parameters.
        layers: name to layer.
        parameters: name to shape of all parameters.
    """
    claims = _claims(layers)
    told = {
        name: layer.fault
        for layer in layers.values()
        if isinstance(layer, FreeParameters) and layer.fault is not None
        for name in layer.names
    }
    faults = {}
    for name in names:
        fault = _fault(claims.get(name, []), math.prod(parameters[name])) or told.get(name)
        if fault is not None:
            faults[name] = fault
    return faults


def columns_of_layers(
    names: Sequence[str],
    layers: _Layers,
    parameters: _Shapes,
    left_out: Collection[str] = (),
) -> tuple[LayerColumns, ...]:
    """Return the columns of every layer that has a parameter in a block.

    Args:
        names: of the parameters of the block, in the order of its columns.
        layers: name to layer; each parameter is wholly theirs.
        parameters: name to shape of all parameters.
        left_out: parameters of the block that no layer shall have.
    """
    starts, start = {}, 0
    for name in names:
        starts[name] = start
        start += math.prod(parameters[name])
    own = {name: at for name, at in starts.items() if name not in left_out}
    found = [
        _free(name, layer, own, parameters)
        if isinstance(layer, FreeParameters)
        else _affine(name, layer, own, parameters)
        for name, layer in layers.items()
    ]
    return tuple(columns for columns in found if columns is not None)


def _affine(
    name: str, layer: Layer, starts: Mapping[str, int], parameters: _Shapes
) -> LayerColumns | None:
    def place(parameter: str | None, width: int) -> Place | None:
        if parameter is None or parameter not in starts:
            return None
        return Place(parameter, starts[parameter], math.prod(parameters[parameter]) // width)

    weight, bias = place(layer.weight, layer.inputs), place(layer.bias, 1)
    return None if weight is bias is None else AffineColumns(name, layer, weight, bias)


def _free(
    name: str, layer: FreeParameters, starts: Mapping[str, int], parameters: _Shapes
) -> LayerColumns | None:
    places, first = [], 0
    for parameter in layer.names:
        size = math.prod(parameters[parameter])
        if parameter in starts:
            places.append(FreePlace(parameter, starts[parameter], first, size))
        first += size
    return FreeColumns(name, layer, tuple(places)) if places else None


def _claims(layers: _Layers) -> dict[str, list[_Claim]]:
    claims: dict[str, list[_Claim]] = {}
    for name, layer in layers.items():
        if isinstance(layer, FreeParameters):
            for parameter in layer.names:
                claims.setdefault(parameter, []).append(_Claim(name, 0, -1, 0))
            continue
        for own, width in ((layer.weight, layer.inputs), (layer.bias, 1)):
            if own is not None:
                claim = _Claim(name, layer.first, layer.outputs, width)
                claims.setdefault(own, []).append(claim)
    return claims


def _fault(claims: list[_Claim], size: int) -> str | None:
    """Return what is wrong with the claims to a parameter of so many entries."""
    if not claims:
        return "of no such layer"
    if len(claims) == 1 and claims[0].rows < 0:  # a free parameter is one whole
        return None
    widths = {claim.width for claim in claims}
    if len(widths) > 1 or 0 in widths:
        return _shared(claims)
    (width,) = widths
    rows, at = size // width, 0
    if rows * width != size:
        return f"the layer {claims[0].layer!r} says that its rows are of length {width}"
    for index, claim in enumerate(sorted(claims, key=lambda claim: claim.first)):
        if claim.first < at:
            return _shared(sorted(claims, key=lambda claim: claim.first)[index - 1 : index + 1])
        if claim.first > at:
            break
        at += claim.rows
    if at > rows:
        return f"it has {rows} rows, where its layers have {at}"
    return None if at == rows else f"its rows from {at} on are of no such layer"


def _shared(claims: Sequence[_Claim]) -> str:
    return f"shared by several layers ({', '.join(repr(claim.layer) for claim in claims)})"
