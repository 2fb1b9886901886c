"""A `Problem` in closed form: what a backend does with automatic differentiation, without it.

The formulas stand in `chain` (the model) and `losses`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from influence_core.arrays import (
    from_host,
    masked_reciprocal,
    move,
    namespace,
    to_host,
    zeros,
)
from influence_core.errors import ModelError, OptionError
from influence_core.memory import DEFAULT_MEMORY
from influence_core.problem import Array, Labels, LayerStatistics
from influence_core.problem import Layer as AffineLayer
from influence_core.testing.batch import ClosedFormBatch, check_numbers, make_batch
from influence_core.testing.chain import Layer, Trace, trace
from influence_core.testing.distributions import output_slopes
from influence_core.testing.losses import Loss, find_loss
from influence_core.testing.models import Model
from influence_core.testing.statistics import affine_layers, layer_statistics


class ClosedFormProblem:
    """The loss of a `LeastSquares`, `Logistic` or `TanhNetwork`, seen through derivatives.

    Implements `Problem` and the protocols `Validates`, `Movable`, `LinearizesHessian`,
    `GeneralizedGaussNewton`, `HasPenalty`, `HasLayers` and `HasValues`. The parameters are copied:
    what is done to the model afterwards changes nothing here.

    Args:
        model: holds arrays of one library, dtype and device.
        loss: ``"squared"``, ``"cross_entropy"``, ``"binary_cross_entropy"``, a `Loss`, or None for
            the model's own.
        device: where to work; None for where the model lies.
        max_memory: bytes that the arrays of a product may take, as far as fewer vectors at a time
            can bring that about; None for all vectors in one pass.
        penalty: parameter name to `c` of a term `½ c ‖θ‖²` of the objective.

    Raises:
        ModelError: a weight is missing, the shapes do not fit, or a parameter is not finite.
        OptionError: an unknown loss, a `max_memory` below one, a penalty on no parameter.
    """

    def __init__(
        self,
        model: Model,
        loss: str | Loss | None = None,
        *,
        device: Any = None,
        max_memory: int | None = None,
        penalty: Mapping[str, float] | None = None,
    ) -> None:
        """Copy the parameters and check them."""
        self._layers = tuple(model.layers)
        self._values = {name: _copy(name, a, device) for name, a in model.parameters.items()}
        self._loss = find_loss(model.loss if loss is None else loss)
        self._max_memory = max_memory
        self._penalty = dict(penalty or {})
        _check_layers(self._layers, self._values)
        _check_options(max_memory, self._penalty, self._values)

    @property
    def reference(self) -> Array:
        """The first weight."""
        return self._values[self._layers[0].weight]

    @property
    def max_memory(self) -> int:
        """Bytes that the core's arrays for this problem may take."""
        return DEFAULT_MEMORY if self._max_memory is None else self._max_memory

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every parameter, in the model's order."""
        return {name: tuple(a.shape) for name, a in self._values.items()}

    def batch(self, data: Any) -> ClosedFormBatch:
        """Check `(x, y)` or `(x, y, weights)` and bring it to the model's dtype and device.

        Args:
            data: `x` is `(n, *)` and is flattened to the `i` inputs of the model; `y` is `(n, o)`
                for a squared loss and `(n,)`, integer, for a cross-entropy; weights are `(n,)`.

        Raises:
            DataError: no points, lengths that differ, shapes that do not fit the model.
            DataTypeError: `x` is not floating-point, or labels are not integers.
        """
        outputs = self._values[self._layers[-1].weight].shape[0]
        return make_batch(data, self._loss, outputs, self.reference)

    def validate(self, batch: ClosedFormBatch, where: str) -> None:
        """Check the numbers of a batch; this reads the device.

        Raises:
            DataError: a number is not finite, a label is no class, a weight is negative.
        """
        check_numbers(batch, self._loss, where)

    def to(self, device: Any) -> ClosedFormProblem:
        """Return the same problem on `device`."""
        moved = copy.copy(self)
        moved._values = {name: move(a, device) for name, a in self._values.items()}
        return moved

    def losses(self, batch: ClosedFormBatch) -> Array:
        """Return `ℓᵢ`, `(n,)`."""
        return self._loss.values(self._trace(batch).outputs, batch.targets)

    def gradients(self, batch: ClosedFormBatch, names: Sequence[str]) -> Array:
        """Return the per-sample gradients `∇ℓᵢ`, `(n, d)`."""
        passed = self._trace(batch)
        return self._columns(passed.per_point(passed.pull(self._slope(passed, batch))), names)

    def gradient_products(self, batch: ClosedFormBatch, v: Array, names: Sequence[str]) -> Array:
        """Return `⟨v, ∇ℓᵢ⟩ = ⟨J v, ∇_f ℓᵢ⟩`, `(k, n)`, without holding `(n, d)`."""
        passed = self._trace(batch)
        slope = self._slope(passed, batch)

        def product(v: Array) -> Array:
            _, tangent = passed.push(self._direction(v, names))
            return namespace(v).sum(tangent * slope, axis=-1)

        return self._by_rows(product, v, batch)

    def gradient_combinations(
        self, batch: ClosedFormBatch, w: Array, names: Sequence[str]
    ) -> Array:
        """Return `Σ wᵢ ∇ℓᵢ = Jᵀ (w ∘ ∇_f ℓ)`, `(k, d)`, for `w` of shape `(k, n)`."""
        passed = self._trace(batch)
        slope = self._slope(passed, batch)

        def product(w: Array) -> Array:
            return self._columns(passed.summed(passed.pull(w[:, :, None] * slope)), names)

        return self._by_rows(product, w, batch)

    def hessian_product(self, batch: ClosedFormBatch, v: Array, names: Sequence[str]) -> Array:
        """Return `v · ∇²(mean ℓ over the batch)`, `(k, d)`; the mean is `Σ wᵢℓᵢ / Σ wᵢ`."""
        return self.linearize(batch, names)(v)

    def linearize(self, batch: ClosedFormBatch, names: Sequence[str]) -> Callable[[Array], Array]:
        """Return `v ↦ hessian_product(batch, v, names)`, with one pass forward and back done."""
        passed, shares = self._trace(batch), self._shares(batch)
        gradients = passed.pull(shares * self._slope(passed, batch))

        def product(v: Array) -> Array:
            direction = self._direction(v, names)
            tangents, tangent = passed.push(direction)
            bent = shares * self._loss.curvature(passed.outputs, tangent)
            pulled = passed.pull_tangents(direction, tangents, gradients, bent)
            return self._columns(passed.summed_tangents(pulled, gradients, tangents), names)

        return lambda v: self._by_rows(product, v, batch)

    def generalized_gauss_newton_product(
        self, batch: ClosedFormBatch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return `v · mean(Jᵢᵀ (∇²_f ℓᵢ) Jᵢ)`, `(k, d)`, the mean weighted as in the Hessian."""
        passed, shares = self._trace(batch), self._shares(batch)

        def product(v: Array) -> Array:
            _, tangent = passed.push(self._direction(v, names))
            bent = shares * self._loss.curvature(passed.outputs, tangent)
            return self._columns(passed.summed(passed.pull(bent)), names)

        return self._by_rows(product, v, batch)

    def mixed_gradient_products(
        self, batch: ClosedFormBatch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, *x.shape[1:])`: the derivative of `∇ₓℓᵢ` along `v`."""
        passed = self._trace(batch)
        gradients = passed.pull(self._slope(passed, batch))

        def product(v: Array) -> Array:
            direction = self._direction(v, names)
            tangents, tangent = passed.push(direction)
            bent = self._loss.curvature(passed.outputs, tangent)
            pulled = passed.pull_tangents(direction, tangents, gradients, bent)
            answer = passed.input_tangents(direction, gradients[0], pulled[0])
            return namespace(v).reshape(answer, (v.shape[0], *batch.x.shape))

        return self._by_rows(product, v, batch)

    def penalty(self, names: Sequence[str], weight: float) -> Array:
        """Return the diagonal second derivative of the penalty, `(d,)`; zeros without one."""
        shapes = self.parameters
        parts = [
            zeros((math.prod(shapes[name]),), self.reference) + self._penalty.get(name, 0.0)
            for name in names
        ]
        return namespace(self.reference).concat(parts)

    def values(self, names: Sequence[str]) -> Array:
        """Return the parameters themselves, `(d,)`."""
        xp = namespace(self.reference)
        return xp.concat([xp.reshape(self._values[name], (-1,)) for name in names])

    def layers(self) -> dict[str, AffineLayer]:
        """Return name to layer, first to last; every layer can be factored."""
        return affine_layers(self._layers, self._values)

    def layer_statistics(
        self, batch: ClosedFormBatch, layers: Sequence[str], labels: Labels
    ) -> dict[str, LayerStatistics]:
        """Return what some layers saw of the batch, at one position a point (`s = 1`).

        Raises:
            CapabilityError: labels other than the given ones, for a `Loss` of the user's own.
        """
        passed = self._trace(batch)
        slopes = output_slopes(self._loss, passed.outputs, batch.targets, labels)
        return layer_statistics(passed, passed.pull(slopes), layers)

    def _trace(self, batch: ClosedFormBatch) -> Trace:
        shape = (batch.size, self.reference.shape[1])
        return trace(self._layers, self._values, namespace(batch.x).reshape(batch.x, shape))

    def _slope(self, passed: Trace, batch: ClosedFormBatch) -> Array:
        return self._loss.gradient(passed.outputs, batch.targets)

    def _shares(self, batch: ClosedFormBatch) -> Any:
        """Return what the points count in the mean: a number or `(n, 1)`."""
        if batch.weights is None:
            return 1 / max(batch.size, 1)
        total = namespace(batch.weights).sum(batch.weights)
        # a batch of weight zero has the mean zero: it then adds nothing to a sum over batches
        return (batch.weights * masked_reciprocal(total, total > 0))[:, None]

    def _direction(self, v: Array, names: Sequence[str]) -> dict[str, Array]:
        """Return name to `(k, *shape)`: the columns of `v`, and zeros for what it leaves out."""
        xp, rows, start = namespace(v), v.shape[0], 0
        shapes = self.parameters
        answer = {name: zeros((rows, *shape), v) for name, shape in shapes.items()}
        for name in names:
            stop = start + math.prod(shapes[name])
            answer[name] = xp.reshape(v[:, start:stop], (rows, *shapes[name]))
            start = stop
        return answer

    def _columns(self, arrays: Mapping[str, Array], names: Sequence[str]) -> Array:
        """Return `(k, d)` from name to `(k, *shape)`."""
        xp, shapes = namespace(self.reference), self.parameters
        flat = [
            xp.reshape(arrays[name], (arrays[name].shape[0], math.prod(shapes[name])))
            for name in names
        ]
        return xp.concat(flat, axis=1)

    def _by_rows(
        self, product: Callable[[Array], Array], v: Array, batch: ClosedFormBatch
    ) -> Array:
        """Apply `product` to as many rows of `v` at a time as `max_memory` has room for."""
        if self._max_memory is None:
            return product(v)
        rows, size = self._rows_at_once(self._max_memory, batch.size), v.shape[0]
        if size <= rows:
            return product(v)
        # the standard leaves slices that end beyond an axis undefined
        parts = [product(v[at : min(at + rows, size), :]) for at in range(0, size, rows)]
        return namespace(v).concat(parts, axis=0)

    def _rows_at_once(self, memory: int, points: int) -> int:
        width = sum(sum(self._values[layer.weight].shape) for layer in self._layers)
        size = sum(math.prod(shape) for shape in self.parameters.values())
        item = int(namespace(self.reference).finfo(self.reference.dtype).bits) // 8
        # a vector and its answer; a tangent and its transpose at both ends of every layer
        return max(1, memory // (item * (2 * size + 2 * points * width)))


def _copy(name: str, parameter: Array, device: Any) -> Array:
    # by the host: this leaves the library's own record of derivatives behind, in every library
    host = to_host(parameter)
    if not np.all(np.isfinite(host)):
        raise ModelError(
            f"`ClosedFormProblem(model)`: parameters must be finite; {name!r} holds NaN or "
            f"infinity. Train the model anew, or load another state."
        )
    answer = from_host(host, parameter)
    return answer if device is None else move(answer, device)


def _check_layers(layers: Sequence[Layer], values: Mapping[str, Array]) -> None:
    shapes = {name: tuple(a.shape) for name, a in values.items()}
    allowed = {name for layer in layers for name in (layer.weight, layer.bias)}
    fits = set(shapes) <= allowed and all(_fits(layer, shapes) for layer in layers)
    sizes = [shapes[layer.weight] for layer in layers] if fits else []
    if not fits or any(a[0] != b[1] for a, b in itertools.pairwise(sizes)):
        wanted = ", ".join(f"{layer.weight!r} (o, i), {layer.bias!r} (o,)" for layer in layers)
        raise ModelError(
            f"`ClosedFormProblem(model)`: the parameters must be {wanted}, each `i` the `o` "
            f"before it (a bias may be missing); got {shapes}. Correct `model.parameters`."
        )


def _fits(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    weight = shapes.get(layer.weight, ())
    return len(weight) == 2 and shapes.get(layer.bias, weight[:1]) == weight[:1]


def _check_options(
    max_memory: int | None, penalty: Mapping[str, float], values: Mapping[str, Array]
) -> None:
    if max_memory is not None and max_memory < 1:
        raise OptionError(
            f"`max_memory` must be a number of bytes, one or more, or None; got {max_memory!r}."
        )
    unknown = [name for name in penalty if name not in values]
    if unknown:
        raise OptionError(
            f"`penalty` may name parameters only; got {unknown}. The model has {list(values)}."
        )
