"""Derivatives of a chain of affine layers with tanh between them, in closed form.

With `a₀ = x` and layers `l = 1 … L`, for every point:

    s_l = a_{l-1} W_lᵀ + b_l,    a_l = tanh(s_l),    f = s_L
    g_L = ∇_f ℓ,                 g_{l-1} = (g_l W_l) ∘ (1 - a_{l-1}²)
    ∇_{W_l} ℓ = g_l ⊗ a_{l-1},   ∇_{b_l} ℓ = g_l,    ∇ₓℓ = g_1 W_1

The derivative `R` of all of these along a direction `(V_l, c_l)` of the parameters gives products
with second derivatives at the cost of a gradient (Pearlmutter, Fast exact multiplication by the
Hessian, Neural Computation 6, 1994):

    R a₀ = 0,    R s_l = (R a_{l-1}) W_lᵀ + a_{l-1} V_lᵀ + c_l,    R a_l = (1 - a_l²) ∘ R s_l
    R g_L = (∇²_f ℓ) R f,    R(g_l W_l) = (R g_l) W_l + g_l V_l
    R g_{l-1} = (1 - a_{l-1}²) ∘ R(g_l W_l) - 2 a_{l-1} ∘ R a_{l-1} ∘ (g_l W_l)

`R ∇_{W_l} ℓ` is a row of the Hessian times the direction, `R ∇ₓℓ` the mixed derivative. Arrays of
`k` directions have a leading axis `k`, before the axis of the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from influence_core.arrays import namespace
from influence_core.problem import Array


@dataclass(frozen=True)
class Layer:
    """The names of an affine layer's parameters; a chain may lack any of the biases."""

    weight: str
    bias: str

    @classmethod
    def of(cls, module: str) -> Layer:
        """Return the layer that the module of this name owns; ``""`` is the root."""
        prefix = f"{module}." if module else ""
        return cls(f"{prefix}weight", f"{prefix}bias")


@dataclass(frozen=True)
class Trace:
    """What one forward pass leaves behind.

    Attributes:
        layers: the `L` layers, first to last.
        parameters: name to array, `(o, i)` for a weight and `(o,)` for a bias.
        inputs: `a₀ … a_{L-1}`, each `(n, i)`.
        outputs: `f`, `(n, o)`.
    """

    layers: Sequence[Layer]
    parameters: Mapping[str, Array]
    inputs: Sequence[Array]
    outputs: Array

    def pull(self, gradient: Array) -> list[Array]:
        """Return `g_1 … g_L` from `g_L`, `(…, n, o)`."""
        answers = [gradient]
        for layer, a in reversed(list(zip(self.layers, self.inputs, strict=True))[1:]):
            gradient = (gradient @ self.parameters[layer.weight]) * (1 - a * a)
            answers.append(gradient)
        return answers[::-1]

    def push(self, direction: Mapping[str, Array]) -> tuple[list[Array], Array]:
        """Return `R a₀ … R a_{L-1}` and `R f`, `(k, n, o)`.

        Args:
            direction: name to `(k, *shape)`, for every parameter.
        """
        xp = namespace(self.outputs)
        tangents = [xp.zeros_like(self.inputs[0])]
        for position, layer in enumerate(self.layers):
            a, weight = self.inputs[position], self.parameters[layer.weight]
            tangent = _affine(a, layer, direction) + tangents[-1] @ xp.matrix_transpose(weight)
            if position + 1 < len(self.layers):
                a = self.inputs[position + 1]
                tangents.append((1 - a * a) * tangent)
        return tangents, tangent

    def pull_tangents(
        self,
        direction: Mapping[str, Array],
        tangents: Sequence[Array],
        gradients: Sequence[Array],
        tangent: Array,
    ) -> list[Array]:
        """Return `R g_1 … R g_L`, `(k, n, o)` each.

        Args:
            direction: as for `push`.
            tangents: `R a₀ … R a_{L-1}`, from `push`.
            gradients: `g_1 … g_L`, from `pull`.
            tangent: `R g_L`, `(k, n, o)`.
        """
        answers = [tangent]
        steps = list(zip(self.layers, self.inputs, tangents, gradients, strict=True))
        for layer, a, ra, g in reversed(steps[1:]):
            bend = 2 * a * ra * (g @ self.parameters[layer.weight])
            tangent = (1 - a * a) * self._through(layer, direction, g, tangent) - bend
            answers.append(tangent)
        return answers[::-1]

    def input_tangents(
        self, direction: Mapping[str, Array], gradient: Array, tangent: Array
    ) -> Array:
        """Return `R ∇ₓℓ`, `(k, n, i)`, from `g_1` and `R g_1`."""
        return self._through(self.layers[0], direction, gradient, tangent)

    def _through(self, layer: Layer, direction: Mapping[str, Array], g: Array, rg: Array) -> Array:
        return rg @ self.parameters[layer.weight] + g @ direction[layer.weight]

    def per_point(self, gradients: Sequence[Array]) -> dict[str, Array]:
        """Return `g_l ⊗ a_{l-1}` and `g_l` of every point: name to `(n, *shape)`."""
        answer = {}
        for layer, a, g in zip(self.layers, self.inputs, gradients, strict=True):
            answer[layer.weight] = g[:, :, None] * a[:, None, :]
            answer[layer.bias] = g
        return answer

    def summed(self, gradients: Sequence[Array]) -> dict[str, Array]:
        """Return `Σ g_l ⊗ a_{l-1}` and `Σ g_l` over the points: name to `(k, *shape)`."""
        xp = namespace(self.outputs)
        answer = {}
        for layer, a, g in zip(self.layers, self.inputs, gradients, strict=True):
            answer[layer.weight] = xp.matrix_transpose(g) @ a
            answer[layer.bias] = xp.sum(g, axis=-2)
        return answer

    def summed_tangents(
        self, pulled: Sequence[Array], gradients: Sequence[Array], tangents: Sequence[Array]
    ) -> dict[str, Array]:
        """Return `R` of the sums: of `R g_l ⊗ a_{l-1} + g_l ⊗ R a_{l-1}`, and of `R g_l`."""
        answer = self.summed(pulled)
        for layer, g, ra in zip(self.layers, gradients, tangents, strict=True):
            answer[layer.weight] = answer[layer.weight] + namespace(g).matrix_transpose(g) @ ra
        return answer


def trace(layers: Sequence[Layer], parameters: Mapping[str, Array], x: Array) -> Trace:
    """Run the chain forward at `x`, `(n, i)`."""
    xp = namespace(x)
    inputs, outputs = [x], _affine(x, layers[0], parameters)
    for layer in layers[1:]:
        inputs.append(xp.tanh(outputs))
        outputs = _affine(inputs[-1], layer, parameters)
    return Trace(layers, parameters, inputs, outputs)


def _affine(a: Array, layer: Layer, parameters: Mapping[str, Array]) -> Array:
    answer = a @ namespace(a).matrix_transpose(parameters[layer.weight])
    bias = parameters.get(layer.bias)
    return answer if bias is None else answer + bias[..., None, :]
