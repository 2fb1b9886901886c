"""Dense layers in a traced model, and what they see: inputs, and gradients in their outputs.

A layer is a product `dot_general` of an activation with a parameter, which no other step uses; its
bias is a parameter that is added to the product, and to nothing else. Between the parameter and its
step may stand views: what changes the shape or the order of the axes, and casts. With `ε = 0` added
to the product `z`, `∂/∂z` is `∂/∂ε`.

A view is tracked by its strides: `numpy` computes them for an array that has no memory of its own
and is never read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from numpy.lib.stride_tricks import as_strided

from influence_core.problem import Layer
from influence_jax.tracing import Step, Trace

_Strided = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Call:
    """The step that is a layer's product.

    Attributes:
        position: which operand the weight is, 0 or 1.
        contracted: the axes of the activation that are summed over, in the weight's order.
        inputs: `i`.
        outputs: `o`.
        transposed: whether the weight is `(i, o)`.
    """

    position: int
    contracted: tuple[int, ...]
    inputs: int
    outputs: int
    transposed: bool

    def activation(self, operands: Sequence[Array]) -> Array:
        """Return `a`, `(s, i)`."""
        a = operands[1 - self.position]
        free = [axis for axis in range(a.ndim) if axis not in self.contracted]
        return a.transpose((*free, *self.contracted)).reshape(-1, self.inputs)

    def by_position(self, product: Array) -> Array:
        """Return the product, or its gradient, as `(s, o)`."""
        if self.position == 1:
            return product.reshape(-1, self.outputs)
        return product.reshape(self.outputs, -1).T


@dataclass(frozen=True)
class Layers:
    """The dense layers of a traced model.

    Attributes:
        found: name to layer.
        steps: number of the step to the name of the layer and its call.
    """

    found: Mapping[str, Layer]
    steps: Mapping[int, tuple[str, Call]]


@dataclass(frozen=True)
class _View:
    """A value that is a parameter, or a product with one, seen in another shape.

    Attributes:
        of: the name of the parameter, or the number of the step that is the product.
        entries: of the parameter, or those of `o` (positions have stride zero).
    """

    of: str | int
    entries: _Strided


def find_layers(trace: Trace, shapes: Mapping[str, tuple[int, ...]]) -> Layers:
    """Return the dense layers.

    Args:
        trace: of the model; its first inputs are the parameters.
        shapes: name to shape of the parameters, in the order of the inputs.
    """
    search = _Search()
    for place, (name, shape) in zip(trace.inputs, shapes.items(), strict=False):
        search.views[place] = _View(name, _entries(shape))
    for index, step in enumerate(trace.steps):
        search.visit(index, step)
    search.leave(trace)
    return search.layers()


class _Search:
    """A walk along the steps that follows parameters and products."""

    def __init__(self) -> None:
        self.views: dict[int, _View] = {}
        self.calls: dict[int, Call] = {}
        self.weights: dict[int, str] = {}
        self.biases: dict[int, str] = {}
        self.uses: dict[str | int, int] = {}

    def visit(self, index: int, step: Step) -> None:
        seen = {
            position: self.views[place]
            for position, place in enumerate(step.inputs)
            if isinstance(place, int) and place in self.views
        }
        viewed = _viewed(step, seen[0].entries) if list(seen) == [0] else None
        if viewed is not None:
            self.views[step.outputs[0]] = replace(seen[0], entries=viewed)
            return
        for view in seen.values():
            self.uses[view.of] = self.uses.get(view.of, 0) + 1
        if step.name == "dot_general":
            self._product(index, step, seen)
        elif step.name == "add" and len(seen) == 2:
            self._sum(*seen.values())

    def leave(self, trace: Trace) -> None:
        """Count the outputs of the model as uses."""
        for place in trace.outputs:
            if isinstance(place, int) and place in self.views:
                of = self.views[place].of
                self.uses[of] = self.uses.get(of, 0) + 1

    def layers(self) -> Layers:
        own = {i: name for i, name in self.weights.items() if self.uses[name] == 1}
        parents = [name.rpartition(".")[0] for name in own.values()]
        found, steps = {}, {}
        for index, weight in own.items():
            call, parent = self.calls[index], weight.rpartition(".")[0]
            name = parent if parents.count(parent) == 1 else weight
            found[name] = Layer(
                weight, self._bias(index), call.inputs, call.outputs, call.transposed
            )
            steps[index] = (name, call)
        return Layers(found, steps)

    def _bias(self, index: int) -> str | None:
        # a product that is used without its bias as well has other gradients than the bias
        bias = self.biases.get(index)
        return bias if bias and self.uses[bias] == self.uses[index] == 1 else None

    def _product(self, index: int, step: Step, seen: Mapping[int, _View]) -> None:
        weights = {p: view for p, view in seen.items() if isinstance(view.of, str)}
        if len(weights) != 1:
            return
        ((position, view),) = weights.items()
        call = _call(step, position, view.entries)
        if call is not None:
            self.calls[index], self.weights[index] = call, str(view.of)
            self.views[step.outputs[0]] = _View(index, _output_entries(step, call))

    def _sum(self, a: _View, b: _View) -> None:
        product, bias = (a, b) if isinstance(a.of, int) else (b, a)
        if isinstance(product.of, int) and isinstance(bias.of, str):
            outputs = self.calls[product.of].outputs
            if _same(product.entries, bias.entries, outputs):
                self.biases[product.of] = bias.of


def watch(
    trace: Trace, layers: Layers, arguments: Sequence[Any], epsilon: Mapping[int, Array]
) -> tuple[Any, dict[int, Array]]:
    """Run the model with `ε` added to the products.

    Args:
        trace: of the model at one point.
        layers: found in it.
        arguments: of the trace.
        epsilon: number of the step to what is added; these are watched.

    Returns:
        The outputs, and number of the step to what the layer is called with, `(s, i)`.
    """
    activations = {}

    def on_step(index: int, inputs: Sequence[Any], outputs: list[Any]) -> list[Any]:
        if index not in epsilon:
            return outputs
        _, call = layers.steps[index]
        activations[index] = call.activation(inputs)
        return [outputs[0] + epsilon[index]]

    return trace.run(arguments, on_step), activations


def zeros_of(trace: Trace, layers: Layers, names: Sequence[str]) -> dict[int, Array]:
    """Return `ε = 0` for the products of some layers, by the number of the step."""
    return {
        index: jnp.zeros(aval.shape, aval.dtype)
        for index, (name, _) in layers.steps.items()
        if name in names
        for aval in (trace.steps[index].equation.outvars[0].aval,)
    }


def _entries(shape: tuple[int, ...]) -> _Strided:
    """Return the entries of an array in row-major order, as strides without memory."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return as_strided(np.empty(1, np.int8), shape, strides)


def _viewed(step: Step, entries: _Strided) -> _Strided | None:
    """Return the entries that the step's output shows, or None where it is no view."""
    parameters = step.parameters
    try:
        if step.name == "transpose":
            return entries.transpose(parameters["permutation"])
        if (step.name == "reshape" and parameters["dimensions"] is None) or step.name == "squeeze":
            return np.reshape(entries, step.output_shape, copy=False)
        if step.name == "broadcast_in_dim":
            shape = [1] * len(step.output_shape)
            for axis, target in enumerate(parameters["broadcast_dimensions"]):
                shape[target] = entries.shape[axis]
            return np.broadcast_to(np.reshape(entries, shape, copy=False), step.output_shape)
        if step.name == "convert_element_type":
            return entries if jnp.issubdtype(parameters["new_dtype"], jnp.floating) else None
    except ValueError:  # no strides say it
        pass
    return None


def _call(step: Step, position: int, entries: _Strided) -> Call | None:
    """Return the product with a weight, or None where it is none of a dense layer."""
    contracting, batch = step.parameters["dimension_numbers"]
    if any(batch):
        return None
    summed, partners = contracting[position], contracting[1 - position]
    pairs = sorted(zip(map(int, summed), map(int, partners), strict=True))
    order = [axis for axis, _ in pairs]
    free = [axis for axis in range(entries.ndim) if axis not in order]
    outputs = math.prod(entries.shape[axis] for axis in free)
    inputs = math.prod(entries.shape[axis] for axis in order)
    try:
        matrix = np.reshape(entries.transpose(free + order), (outputs, inputs), copy=False)
    except ValueError:
        return None
    transposed = not _has_strides(matrix, (inputs, 1))
    if transposed and not _has_strides(matrix, (1, outputs)):
        return None
    return Call(position, tuple(axis for _, axis in pairs), inputs, outputs, transposed)


def _output_entries(step: Step, call: Call) -> _Strided:
    """Return the entries of `o` in the product, with stride zero along the positions."""
    shape = step.output_shape
    contracting, _ = step.parameters["dimension_numbers"]
    weight_shape, summed = step.shape(call.position), contracting[call.position]
    free = [length for axis, length in enumerate(weight_shape) if axis not in summed]
    own = _entries(tuple(free))
    lead = len(shape) - len(free)
    places = (1,) * lead + own.shape if call.position == 1 else own.shape + (1,) * lead
    return np.broadcast_to(np.reshape(own, places, copy=False), shape)


def _has_strides(matrix: _Strided, strides: tuple[int, int]) -> bool:
    pairs = zip(matrix.shape, matrix.strides, strides, strict=True)
    return all(length == 1 or own == wanted for length, own, wanted in pairs)


def _same(product: _Strided, bias: _Strided, outputs: int) -> bool:
    """Tell whether a bias of `o` entries is added to a product, entry by entry of `o`."""
    if _distinct(bias) != outputs:
        return False
    try:
        spread = np.broadcast_to(bias, product.shape)
    except ValueError:  # the product is the one that is spread
        return False
    pairs = zip(product.shape, product.strides, spread.strides, strict=True)
    return all(length == 1 or one == other for length, one, other in pairs)


def _distinct(entries: _Strided) -> int:
    axes = zip(entries.shape, entries.strides, strict=True)
    return math.prod(length for length, stride in axes if stride)
