"""The calls of watched layers in a forward pass, and what the layers see in them.

With `ε_k = 0` added to the output `z` of call `k`, `∂/∂z` is `∂/∂ε_k`: the gradients are pulled
back to the `ε` like any other, and neither weights nor inputs need be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from influence_core.errors import NotImplementedLayerRepresentationException
from influence_core.problem import FreeParameters, Layer, LayerStatistics
from influence_torch.layers.parts import OnCall, Part
from influence_torch.snapshot import Snapshot
from influence_torch.transforms import Point

Axes = Mapping[str, "int | None"]
"""Site ↦ the axis of its input along which the points stand; None where it sees none of them."""


@dataclass(frozen=True)
class Call:
    """One call at a site.

    Attributes:
        part: whose site it is.
        site: its name.
        inputs: what it was called with, a copy for every point where it was the same for all.
        shape: of what it was called with.
    """

    part: Part
    site: str
    inputs: Tensor
    shape: torch.Size


@dataclass
class Calls:
    """The calls of some parts in one forward pass, in their order.

    Attributes:
        size: the number `n` of points.
        axes: of the points.
        made: the calls.
        zeros: zeros in the shape of what each returned; the keys count the calls.
        outputs: of the model.
    """

    size: int
    axes: Axes
    made: list[Call] = field(default_factory=list)
    zeros: Point = field(default_factory=dict)
    outputs: Any = None

    def statistics(
        self,
        layers: Mapping[str, Layer | FreeParameters],
        gradients: Point,
        slices: int,
        like: Tensor,
    ) -> dict[str, LayerStatistics]:
        """Return what every layer saw in all its calls; one that was never called saw zeros.

        Args:
            layers: name to layer of those that are asked for.
            gradients: `∂/∂ε_k`, `(c, …)`.
            slices: the number `c` of slices.
            like: carries dtype and device of the answer.

        Raises:
            NotImplementedLayerRepresentationException: a layer is called with something that does
                not have the points along an axis of its own.
        """
        inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        for index, call in enumerate(self.made):
            axis = self.axes.get(call.site, 0) or 0
            a = _by_point(call.inputs, 0, axis, self.size, call.site)
            g = _by_point(gradients[str(index)], 1, axis, self.size, call.site)
            for name, (seen, gradient) in call.part.seen(call.site, a, g.to(like)).items():
                if name in layers:
                    inputs[name].append(seen.flatten(1, -2))
                    outputs[name].append(gradient.flatten(2, -2))
        return {
            name: _joined_calls(layer, inputs[name], outputs[name], (slices, self.size), like)
            for name, layer in layers.items()
        }


def record(snapshot: Snapshot, parts: Sequence[Part], x: Any, size: int, axes: Axes) -> Calls:
    """Return what the parts are called with in a forward pass over `size` points."""
    calls = Calls(size, axes)

    def on_call(part: Part, site: str, a: Tensor, z: Tensor) -> Tensor:
        inputs, z = _expanded(a, z, site, axes, size)
        calls.zeros[str(len(calls.made))] = torch.zeros_like(z)
        calls.made.append(Call(part, site, inputs.detach(), a.shape))
        return z

    with torch.no_grad(), _watched(snapshot.module, parts, on_call):
        calls.outputs = snapshot({}, x)
    return calls


def perturbed(
    snapshot: Snapshot, parts: Sequence[Part], x: Any, size: int, axes: Axes, epsilon: Point
) -> Any:
    """Return the outputs of the model with `ε_k` added to what call `k` returns."""
    calls = count()

    def on_call(_: Part, site: str, a: Tensor, z: Tensor) -> Tensor:
        return _expanded(a, z, site, axes, size)[1] + epsilon[str(next(calls))]

    with _watched(snapshot.module, parts, on_call):
        return snapshot({}, x)


def point_axes(snapshot: Snapshot, parts: Sequence[Part], x_of: Callable[[int], Any]) -> Axes:
    """Return along which axis every site has the points, seen on one point and on two.

    Args:
        snapshot: the model.
        parts: the parts that are watched.
        x_of: number of points ↦ the inputs of so many.

    Raises:
        NotImplementedLayerRepresentationException: a site has them along several axes in turn.
    """
    axes: dict[str, int | None] = {}
    while True:
        one, two = (record(snapshot, parts, x_of(size), size, axes).made for size in (1, 2))
        if [call.site for call in one] != [call.site for call in two]:
            return {}  # what is called depends on the points: they stand first, if at all
        found: dict[str, int | None] = {}
        for few, many in zip(one, two, strict=True):
            axis = _grown(few.shape, many.shape)
            if found.setdefault(few.site, axis) != axis:
                places = f"in one call it has them along {found[few.site]}, in another along {axis}"
                raise _unplaced(few.site, places)
        if found == axes or None not in found.values():
            return found
        axes = found  # copies for every point at one site may give the next ones points to see


def joined(parts: Sequence[Mapping[str, LayerStatistics]]) -> dict[str, LayerStatistics]:
    """Return the statistics of all points from those of parts of them.

    Raises:
        NotImplementedLayerRepresentationException: a layer has other positions in other parts.
    """
    if len(parts) == 1:
        return dict(parts[0])
    for name in parts[0]:
        positions = sorted({part[name].inputs.shape[1] for part in parts})
        if len(positions) > 1:
            raise NotImplementedLayerRepresentationException(
                f"the layer {name!r} meets {positions} positions in different parts of a batch, "
                "which is cut to fit into `max_memory`. Let the model keep all positions, or raise "
                "`max_memory`."
            )
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: Sequence[LayerStatistics]) -> LayerStatistics:
    counted = [part.counted for part in parts if part.counted is not None]
    return LayerStatistics(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.output_gradients for part in parts], dim=1),
        torch.cat(counted) if counted else None,
    )


def _grown(one: torch.Size, two: torch.Size) -> int | None:
    """Return the first axis that is longer for two points than for one."""
    if len(one) != len(two):
        return 0
    return next((axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), None)


def _expanded(a: Tensor, z: Tensor, site: str, axes: Axes, size: int) -> tuple[Tensor, Tensor]:
    """Give every point a copy of its own of what a site makes without looking at the points."""
    if axes.get(site, 0) is not None:
        return a, z
    return _copies(a, size), _copies(z, size)


def _copies(tensor: Tensor, size: int) -> Tensor:
    if tensor.shape[0] != 1:
        tensor = tensor.unsqueeze(0)
    return tensor.expand(size, *tensor.shape[1:])


@contextmanager
def _watched(
    module: nn.Module,
    parts: Iterable[Part],
    on_call: Callable[[Part, str, Tensor, Tensor], Tensor],
) -> Iterator[None]:
    with ExitStack() as stack:
        for part in parts:
            of_part: OnCall = lambda site, a, z, part=part: on_call(part, site, a, z)  # noqa: E731
            stack.enter_context(part.watched(module.get_submodule(part.name), of_part))
        yield


def _by_point(tensor: Tensor, before: int, axis: int, size: int, site: str) -> Tensor:
    """Return `(…, n, q, …)` with `before` axes in front, from points along `axis` behind those."""
    rest = tensor.shape[before:]
    if len(rest) <= axis or rest[axis] % size:
        raise _unplaced(site, f"it is called with {tuple(rest)}")
    tensor = tensor.movedim(before + axis, before)
    return tensor.unflatten(before, (size, -1))


def _unplaced(site: str, found: str) -> NotImplementedLayerRepresentationException:
    return NotImplementedLayerRepresentationException(
        f"the layer {site!r} must be called with the points along one axis, the first say; {found}."
        " Bring the points to the front in the model, or freeze its parameters."
    )


def _joined_calls(
    layer: Layer | FreeParameters,
    inputs: list[Tensor],
    gradients: list[Tensor],
    size: tuple[int, int],
    like: Tensor,
) -> LayerStatistics:
    """Return the statistics of all calls of a layer, one position after the other."""
    slices, points = size
    lookup = isinstance(layer, Layer) and layer.lookup
    if inputs:
        a, g = torch.cat(inputs, dim=1), torch.cat(gradients, dim=2)
    else:
        width = layer.inputs if isinstance(layer, Layer) and not lookup else int(lookup)
        a = like.new_zeros(points, 1, width)
        g = like.new_zeros(slices, points, 1, layer.outputs)
    return LayerStatistics(a[..., 0].long() if lookup else a.to(like), g.to(like))
