"""What the linear layers of a module see: their inputs, and gradients in their outputs.

With `ε_k = 0` added to the output `z = W a + b` of call `k`, `∂/∂z` is `∂/∂ε_k`: the gradients are
pulled back to the `ε` like any other, and neither weights nor inputs need be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_core.errors import NotImplementedLayerRepresentationException
from influence_core.problem import Layer, LayerStatistics
from influence_torch.snapshot import Snapshot
from influence_torch.transforms import Point

_OnCall = Callable[[str, Tensor, Tensor], Tensor]
"""`(layer, a, z)` ↦ what the layer returns."""


@dataclass
class Calls:
    """The calls of some layers in one forward pass, in their order.

    Attributes:
        wanted: name to layer of those that are watched.
        size: the number `n` of points.
        names: the name of the layer that was called.
        inputs: what it was called with, `(…, i)`.
        zeros: zeros in the shape of what it returned, `(…, o)`; the keys count the calls.
        outputs: of the model.
    """

    wanted: Mapping[str, Layer]
    size: int
    names: list[str] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    zeros: Point = field(default_factory=dict)
    outputs: Any = None

    def statistics(self, gradients: Point, slices: int, like: Tensor) -> dict[str, LayerStatistics]:
        """Return what every layer saw in all its calls; one that was never called saw zeros.

        Args:
            gradients: `∂/∂ε_k`, `(c, …, o)`.
            slices: the number `c` of slices.
            like: carries dtype and device of the answer.

        Raises:
            NotImplementedLayerRepresentationException: a layer is called with something that does
                not have the points along its first axis.
        """
        a = {n: [like.new_zeros(self.size, 0, layer.inputs)] for n, layer in self.wanted.items()}
        g = {
            n: [like.new_zeros(slices, self.size, 0, layer.outputs)]
            for n, layer in self.wanted.items()
        }
        for call, (name, inputs) in enumerate(zip(self.names, self.inputs, strict=True)):
            a[name].append(_by_point(inputs, name, self.size).to(like))
            outputs = self.wanted[name].outputs
            gradient = gradients[str(call)].reshape(slices, self.size, -1, outputs)
            g[name].append(gradient.to(like))
        return {
            name: LayerStatistics(
                _padded(torch.cat(a[name], dim=1), 1), _padded(torch.cat(g[name], dim=2), 1)
            )
            for name in self.wanted
        }


def find_layers(snapshot: Snapshot) -> dict[str, Layer]:
    """Return name to layer of every `nn.Linear` with a parameter of its own that wants a gradient.

    A parameter that several modules hold is none of theirs: what one of them sees is only a part of
    its gradient.
    """
    module = snapshot.module
    holders: dict[Tensor, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            holders[parameter] = holders.get(parameter, 0) + 1
    names = {
        parameter: name
        for name, parameter in module.named_parameters()
        if name in snapshot.parameters and holders[parameter] == 1
    }
    found = {name: _layer(part, names) for name, part in module.named_modules() if _is_linear(part)}
    return {name: layer for name, layer in found.items() if layer.weight or layer.bias}


def record(snapshot: Snapshot, layers: Mapping[str, Layer], x: Any, size: int) -> Calls:
    """Return what the layers are called with in a forward pass over `size` points."""
    calls = Calls(layers, size)

    def on_call(name: str, a: Tensor, z: Tensor) -> Tensor:
        calls.zeros[str(len(calls.names))] = torch.zeros_like(z)
        calls.inputs.append(a.detach())
        calls.names.append(name)
        return z

    with torch.no_grad(), _watched(snapshot.module, layers, on_call):
        calls.outputs = snapshot({}, x)
    return calls


def perturbed(snapshot: Snapshot, layers: Iterable[str], x: Any, epsilon: Point) -> Any:
    """Return the outputs of the model with `ε_k` added to what call `k` returns."""
    calls = count()
    with _watched(snapshot.module, layers, lambda _name, _a, z: z + epsilon[str(next(calls))]):
        return snapshot({}, x)


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
    return {
        name: LayerStatistics(
            torch.cat([part[name].inputs for part in parts]),
            torch.cat([part[name].output_gradients for part in parts], dim=1),
        )
        for name in parts[0]
    }


@contextmanager
def _watched(module: nn.Module, layers: Iterable[str], on_call: _OnCall) -> Iterator[None]:
    with ExitStack() as stack:
        for name in layers:
            # before the hooks of the user: they may change what the layer returns
            handle = module.get_submodule(name).register_forward_hook(
                partial(_hook, on_call, name), prepend=True, with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


def _hook(
    on_call: _OnCall,
    name: str,
    _linear: nn.Module,
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    z: Tensor,
) -> Tensor:
    (a,) = (*arguments, *keywords.values())
    return on_call(name, a, z)


def _is_linear(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and "forward" not in vars(module)
    )


def _layer(module: nn.Linear, names: Mapping[Tensor, str]) -> Layer:
    own = dict(module.named_parameters(recurse=False))  # without what a parametrization computes
    weight, bias = (names.get(own[kind]) if kind in own else None for kind in ("weight", "bias"))
    return Layer(weight, bias, module.in_features, module.out_features)


def _by_point(inputs: Tensor, name: str, size: int) -> Tensor:
    """Return `(n, …, i)` or `(n · s, i)` as `(n, s, i)`."""
    if inputs.ndim < 2 or inputs.shape[0] % size:
        raise NotImplementedLayerRepresentationException(
            f"the layer {name!r} must be called with the {size} points along the first axis, as "
            f"(n, …, {inputs.shape[-1]}); it is called with {tuple(inputs.shape)}. Bring the "
            "points to the front in the model, or freeze its parameters."
        )
    return inputs.reshape(size, -1, inputs.shape[-1])


def _padded(tensor: Tensor, least: int) -> Tensor:
    """Return `(…, s, f)` with zeros up to at least `least` positions."""
    return F.pad(tensor, (0, 0, 0, max(least - tensor.shape[-2], 0)))
