"""What a backend supplies: one model and loss, seen through derivatives.

Letters for shapes, here and everywhere: `n` points, `m` test points, `k` vectors, `d` parameters
of a block, `p` all parameters. Vectors are rows: `k` vectors in a block are `(k, d)`. Columns
follow `names`; inside a parameter they are row-major.

`Problem` is what every method may count on. Each further ability is a protocol of its own, found
by `isinstance` and asked for by name when it is missing: no solver adds a method to `Problem`.

Everything that leaves a backend is detached, fresh (no alias of a parameter or of an input) and in
the namespace, dtype and device of `Problem.reference`. Nothing it does changes the user's model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from influence_core.modes import LabelKind

Array: TypeAlias = Any
"""An array of any library that follows the array API standard."""

Tree: TypeAlias = Any
"""An `Array`, or a dict, tuple or list of trees."""


class Batch(Protocol):
    """Some points, checked and on the model's device."""

    @property
    def size(self) -> int:
        """Number of points `n`."""
        ...

    @property
    def weights(self) -> Array | None:
        """Weights `(n,)` of the points in the objective; None means ones."""
        ...

    def __getitem__(self, points: slice) -> Batch:
        """Return the points of a slice along the first axis."""
        ...


class Problem(Protocol):
    """The loss of one model at its present parameters, seen through derivatives.

    `ℓᵢ` is the loss of point `i` alone. A backend for a new framework implements this class and
    nothing else; `influence_core.testing` ships an implementation in closed form.
    """

    @property
    def reference(self) -> Array:
        """A parameter: carries the namespace, dtype and device of every answer."""
        ...

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of every differentiable parameter, in the model's order."""
        ...

    def batch(self, data: Any) -> Batch:
        """Check one `(x, y)` pair and bring it to the device."""
        ...

    def gradients(self, batch: Batch, names: Sequence[str]) -> Array:
        """Return the per-sample gradients `∇ℓᵢ`, `(n, d)`."""
        ...

    def gradient_products(self, batch: Batch, v: Array, names: Sequence[str]) -> Array:
        """Return `v · gradientsᵀ`, `(k, n)`, without holding `(n, d)` where that is possible."""
        ...

    def gradient_combinations(self, batch: Batch, w: Array, names: Sequence[str]) -> Array:
        """Return `w · gradients`, `(k, d)`, for `w` of shape `(k, n)`."""
        ...

    def hessian_product(self, batch: Batch, v: Array, names: Sequence[str]) -> Array:
        """Return `v · ∇²(mean ℓ over the batch)`, `(k, d)`, all `k` vectors in one pass.

        Where the batch has weights, the mean is the weighted one.
        """
        ...

    def mixed_gradient_products(self, batch: Batch, v: Array, names: Sequence[str]) -> Tree:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, *x.shape[1:])`; a tree of those where `x` is a tree."""
        ...


@runtime_checkable
class ReadsData(Protocol):
    """Reads an iterable of batches itself (to restore random state, say)."""

    def batches(self, data: Any) -> Iterator[Batch]:
        """Yield one checked batch for each `(x, y)` pair of `data`."""
        ...


@runtime_checkable
class ReadsByIndex(Protocol):
    """Reads the batches of an iterable in any order."""

    def indexed(self, data: Any) -> Sequence[Any] | None:
        """Return the `(x, y)` pairs of one pass over `data`, each loaded when it is asked for.

        None where `data` can only be read in its order. No random state is changed.
        """
        ...


@runtime_checkable
class Validates(Protocol):
    """Makes the expensive checks of a batch: finite values, the contract of the loss."""

    def validate(self, batch: Batch, where: str) -> None:
        """Raise if the batch cannot be used; asked once for every batch that a user passes.

        `where` names the argument in the message, such as ``"fit(data), batch 3"``.
        """
        ...


@runtime_checkable
class Measures(Protocol):
    """Can differentiate another quantity than the loss, at the same parameters."""

    def with_loss(self, loss: Any) -> Problem:
        """Return the same snapshot with `loss(output, y)`, as the backend takes it, for its loss.

        `loss` follows the contract of the backend's losses: it has a value for every point.
        """
        ...


@runtime_checkable
class Movable(Protocol):
    """Can be moved to another device."""

    def to(self, device: Any) -> Problem:
        """Return the same problem on `device`."""
        ...


@runtime_checkable
class HandsOver(Protocol):
    """Changes an answer on its way to the user (to the parameters' own dtype, say)."""

    def hand_over(self, answer: Array) -> Array:
        """Return the answer as the user shall see it."""
        ...


@runtime_checkable
class LinearizesHessian(Protocol):
    """Keeps the forward work of a Hessian product."""

    def linearize(self, batch: Batch, names: Sequence[str]) -> Callable[[Array], Array]:
        """Return `v ↦ hessian_product(batch, v, names)`, whose forward work is done."""
        ...


@runtime_checkable
class GeneralizedGaussNewton(Protocol):
    """Offers products with the generalised Gauss–Newton matrix (Schraudolph 2002)."""

    def generalized_gauss_newton_product(
        self, batch: Batch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return `v · (1/n Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ)`, `(k, d)`; `J` the Jacobian of the outputs.

        Where the batch has weights, the mean is the weighted one.
        """
        ...


@runtime_checkable
class PointQuadratics(Protocol):
    """Multiplies the curvature of every point with a vector of its own, in one pass."""

    def hessian_quadratics(self, batch: Batch, v: Array, names: Sequence[str]) -> Array:
        """Return `vᵢ · ∇²ℓᵢ · vᵢᵀ`, `(n,)`, for `v` of shape `(n, d)`."""
        ...

    def generalized_gauss_newton_quadratics(
        self, batch: Batch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return `vᵢ · Jᵢᵀ (∇²_f ℓᵢ) Jᵢ · vᵢᵀ`, `(n,)`, for `v` of shape `(n, d)`."""
        ...


@runtime_checkable
class HasPenalty(Protocol):
    """Has a quadratic penalty that belongs to the objective."""

    def penalty(self, names: Sequence[str], weight: float) -> Array:
        """Return its diagonal second derivative, `(d,)`; every curvature includes it.

        The objective is the mean over the data plus the penalty. Where an estimator penalises the
        sum instead, it divides by `weight`, the number of points or the sum of their weights.
        """
        ...


@dataclass(frozen=True)
class Layer:
    """An affine layer, `z = W a + b` at every one of its `s` positions.

    Attributes:
        weight: the name of `W`, `(o, i)`; None where it wants no gradient.
        bias: the name of `b`, `(o,)`; None where there is none that wants a gradient.
        inputs: `i`.
        outputs: `o`.
        transposed: whether the parameter called `weight` holds `Wᵀ`, `(i, o)`.
        first: the first row of the parameters that is this layer's. Those of a grouped convolution
            or of a stacked projection hold the rows of several layers, one after the other.
        lookup: whether `a` is a unit vector and its index is what the layer sees, as an embedding
            does; it has no bias.
    """

    weight: str | None
    bias: str | None
    inputs: int
    outputs: int
    transposed: bool = False
    first: int = 0
    lookup: bool = False


@dataclass(frozen=True)
class FreeParameters:
    """Parameters whose gradients are no products of two factors: those of a normalisation, say.

    They stand in one vector of length `o`, one after the other, row-major.

    Attributes:
        names: of the parameters.
        outputs: `o`, the sum of their sizes.
        fault: why they should be an affine layer's and cannot be (a tied weight, say); None where
            they are what they should be.
    """

    names: tuple[str, ...]
    outputs: int
    fault: str | None = None


@dataclass(frozen=True)
class Labels:
    """At which labels output gradients are taken.

    Attributes:
        kind: the data's own (`GIVEN`), or those of the model's distribution: every class, weighted
            with the root of its probability (`EXPECTED`), or random draws (`SAMPLED`). None leaves
            it to the backend: expected for one distribution a point over at most 32 classes,
            sampled otherwise.
        uniforms: `positions ↦ (draws, n, positions)`, numbers in `[0, 1)` on the host for the
            points of the batch; a sampled label is where the distribution function exceeds one.
    """

    kind: LabelKind | None
    uniforms: Callable[[int], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class LayerStatistics:
    """What one layer saw of a batch: gradients of its parameters are `Σ_s g_s ⊗ a_s`.

    Attributes:
        inputs: `a`, `(n, s, i)`, without a column of ones for the bias; the indices `(n, s)` of a
            lookup, `(n, s, 0)` for free parameters, whose gradients are `Σ_s g_s`.
        output_gradients: `g = ∂ℓᵢ/∂z`, `(c, n, s, o)`. The sum over the `c` slices of what is
            quadratic in them is its mean over the labels: one slice for given labels, a slice times
            `√p` for every class, or a slice times `1/√draws` for every draw.
        counted: `(n, s)`, one where a position is a point's own and zero where it is padding; None
            where there is no padding. Padding has no gradients, and does not count in averages.
    """

    inputs: Array
    output_gradients: Array
    counted: Array | None = None


@runtime_checkable
class HasLayers(Protocol):
    """Shows what its affine layers see: the stuff of Kronecker factors."""

    def layers(self) -> Mapping[str, Layer | FreeParameters]:
        """Return name to layer of all that have a parameter of the problem."""
        ...

    def layer_statistics(
        self, batch: Batch, layers: Sequence[str], labels: Labels
    ) -> Mapping[str, LayerStatistics]:
        """Return the statistics of some layers from one pass over the batch.

        Raises:
            CapabilityError: the distribution of the labels is not known for this loss.
        """
        ...


@runtime_checkable
class HasValues(Protocol):
    """Hands out the values of its parameters."""

    def values(self, names: Sequence[str]) -> Array:
        """Return the parameters themselves, `(d,)`, in the columns' order."""
        ...


@runtime_checkable
class BoundsMemory(Protocol):
    """Says what a computation may hold; the core cuts batches to it where it forms large arrays."""

    @property
    def max_memory(self) -> int:
        """Bytes that one product may hold."""
        ...


@runtime_checkable
class Shelters(Protocol):
    """Needs surroundings for its arithmetic that the caller's may differ from."""

    def shelter(self) -> AbstractContextManager[None]:
        """Return the context in which the core computes, with this problem and for it."""
        ...
