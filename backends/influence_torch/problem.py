"""The problem of a torch module: every product as a chain of two reverse-mode derivatives.

With `L(θ) = (ℓ₁, …, ℓₙ)`: `gradient_combinations` pulls `w` back through `L`; `gradient_products`
pulls `v` back through `u ↦ ∇θ⟨u, L⟩`, `hessian_product` through `θ ↦ ∇θ mean L`, and
`mixed_gradient_products` through `x ↦ ∇θ Σ L` (Pearlmutter, Fast exact multiplication by the
Hessian, Neural Computation 6, 1994, with reverse mode in both places).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from influence_core.arrays import map_tree
from influence_core.errors import DataTypeError, OptionError
from influence_core.memory import check_memory
from influence_torch.data import (
    RandomStates,
    TorchBatch,
    check_finite,
    leaves,
    make_batch,
    only_leaves,
    read_untouched,
    with_leaves,
)
from influence_torch.gauss_newton import gauss_newton_chain
from influence_torch.indexed import indexed_batches
from influence_torch.layer_passes import LayerPasses
from influence_torch.losses import Loss, PointLosses
from influence_torch.snapshot import Forward, Snapshot
from influence_torch.transforms import Looped, Point, Pull, Transforms, Vectorized
from influence_torch.vectors import Layout

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")

_VECTORIZED, _LOOPED = Vectorized(), Looped()
# keywords that reach the backend through `Influence(..., **options)`
_OPTIONS = ("forward", "max_memory")
# tensors of the size of a forward pass that one row of a double-backward product holds
_TENSORS_PER_ROW = 4


class TorchProblem(LayerPasses):
    """A `torch.nn.Module` and its loss at the parameters that the module has now.

    Args:
        model: the module; it is copied and stays untouched.
        loss: `loss(output, y)` for a batch: mean, sum or vector over its points.
        device: where to compute; None is the model's own.
        max_memory: bytes that a product may hold; None allows 1 GiB.
        forward: `fn(model, x)` where the call is not `model(x)`.
        **unknown: refused, with a message that lists the options.

    Forward hooks of the module belong to its copy: they run in every product, see the tensors of
    the copy (with the wrappers of `torch.func` around them), and what they return counts.

    Raises:
        ModelError: the model cannot be copied or differentiated.
        DeviceError: its parameters lie on several devices.
        LossError: `loss` cannot be called.
        OptionError: `max_memory` is no positive integer, or an option is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        device: Any = None,
        max_memory: int | None = None,
        forward: Forward | None = None,
        **unknown: Any,
    ) -> None:
        """Copy the model."""
        if unknown:
            raise OptionError(
                f"the torch backend knows the options {', '.join(map(repr, _OPTIONS))}; got "
                f"{', '.join(map(repr, unknown))}. Correct the name, or leave it out."
            )
        memory = check_memory(max_memory)
        snapshot = Snapshot(model, forward, device)
        super().__init__(snapshot, PointLosses(snapshot, loss), memory)
        self._loss = loss
        self._checked = False
        self._first: tuple[Any, RandomStates] | None = None

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of every parameter that wants gradients, in the model's order."""
        return {name: tuple(p.shape) for name, p in self._snapshot.parameters.items()}

    def batch(self, data: Any) -> TorchBatch:
        """Check an `(x, y)` pair and bring it to the device of the snapshot."""
        own, ours = self._snapshot.dtype, self._snapshot.compute_dtype
        return make_batch(data, self._snapshot.device, ours if own != ours else None)

    def batches(self, data: Any) -> Iterator[TorchBatch]:
        """Return the batches of a loader; no random generator is changed by reading them.

        The data that is read first, by `fit`, is read from the same random states ever after: a
        loader that shuffles and drops its last batch, or augments, yields the same points again.
        """
        if self._first is None:
            self._first = data, RandomStates(data)
        start = self._first[1] if data is self._first[0] else None
        return (self.batch(pair) for pair in read_untouched(data, start))

    def indexed(self, data: Any) -> Sequence[Any] | None:
        """Return the pairs of a list, or of a loader with a map-style data set, in any order."""
        return indexed_batches(data)

    def validate(self, batch: TorchBatch, where: str) -> None:
        """Check the state of the model, the values of the batch and the contract of the loss."""
        if not self._checked:
            self._snapshot.check()
            self._checked = True
        check_finite(batch, where)
        self._check_loss(batch, where)

    def with_loss(self, loss: Loss) -> TorchProblem:
        """Return the same snapshot with another loss."""
        other = copy.copy(self)
        other._loss = loss
        other._losses = PointLosses(self._snapshot, loss)
        return other

    def to(self, device: Any) -> TorchProblem:
        """Return the same problem on `device`."""
        moved = copy.copy(self)
        moved._snapshot = self._snapshot.to(device)
        moved._losses = self._losses.on(moved._snapshot)
        return moved

    def hand_over(self, answer: Tensor) -> Tensor:
        """Return an answer in the dtype of the user's parameters."""
        return answer.detach().to(self._snapshot.dtype)

    def gradients(self, batch: TorchBatch, names: Sequence[str]) -> Tensor:
        """Return the per-sample gradients, `(n, d)`."""
        point, layout = self._point(batch, names)

        def compute(transforms: Transforms) -> Tensor:
            def one(pair: tuple[Any, Any]) -> Tensor:
                loss = transforms.gradient(lambda p: self._losses.point(p, *pair))
                return layout.join(loss(point))

            pairs = (batch.x, batch.y)
            return transforms.each(one, pairs, self._rows(self._losses.bytes_per_point, layout))

        return self._run("gradients", compute)

    def gradient_combinations(self, batch: TorchBatch, w: Tensor, names: Sequence[str]) -> Tensor:
        """Return `w · gradients`, `(k, d)`: one backward pass a row."""
        parts = [
            self._gradient_combinations(part, w[:, points], names)
            for points, part in self._parts(batch)
        ]
        return sum(parts[1:], start=parts[0])

    def _gradient_combinations(self, batch: TorchBatch, w: Tensor, names: Sequence[str]) -> Tensor:
        point, layout = self._point(batch, names)

        def compute(transforms: Transforms) -> Tensor:
            pull = transforms.pullback(lambda p: self._losses.vector(p, batch), point)
            return self._each(transforms, lambda u: layout.join(pull(u)), w, batch, layout)

        return self._run("gradient_combinations", compute)

    def gradient_products(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Tensor:
        """Return `v · gradientsᵀ`, `(k, n)`."""
        return self._joined(lambda part: self._gradient_products(part, v, names), batch)

    def _gradient_products(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Tensor:
        point, layout = self._point(batch, names)
        ones = {"u": torch.ones(batch.size, dtype=v.dtype, device=v.device)}

        def compute(transforms: Transforms) -> Tensor:
            def weighted(u: Point) -> Point:
                return transforms.gradient(
                    lambda p: (self._losses.vector(p, batch) * u["u"]).sum()
                )(point)

            pull = transforms.pullback(weighted, ones)
            return self._each(transforms, lambda r: pull(layout.split(r))["u"], v, batch, layout)

        return self._run("gradient_products", compute)

    def hessian_product(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Tensor:
        """Return `v · ∇²(mean ℓ)`, `(k, d)`, all rows in one vmapped pass."""
        return self._averaged(lambda part: self.linearize(part, names)(v), batch)

    def linearize(self, batch: TorchBatch, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Return `v ↦ hessian_product(batch, v, names)`; its first call keeps the whole graph."""
        point, layout = self._point(batch, names)
        kept: dict[str, Pull] = {}

        def pullback(transforms: Transforms) -> Pull:
            how = type(transforms).__name__
            if how not in kept:
                gradient = transforms.gradient(lambda p: self._losses.mean(p, batch))
                kept[how] = transforms.pullback(gradient, point)
            return kept[how]

        def product(v: Tensor) -> Tensor:
            def compute(transforms: Transforms) -> Tensor:
                pull = pullback(transforms)
                return self._each(
                    transforms, lambda r: layout.join(pull(layout.split(r))), v, batch, layout
                )

            return self._run("hessian_product", compute)

        return product

    def generalized_gauss_newton_product(
        self, batch: TorchBatch, v: Tensor, names: Sequence[str]
    ) -> Tensor:
        """Return `v · (1/n Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ)`, `(k, d)`."""
        self._learn(batch)
        # without a reduction the batch loss cannot stand in for the losses of the points
        most = 1 if self._losses.reduction is None else None
        return self._averaged(lambda part: self._gauss_newton(part, v, names), batch, most)

    def _gauss_newton(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Tensor:
        point, layout = self._point(batch, names)

        def compute(transforms: Transforms) -> Tensor:
            chain = gauss_newton_chain(transforms, self._losses, self._snapshot, point, batch)
            return self._each(
                transforms, lambda r: layout.join(chain(layout.split(r))), v, batch, layout
            )

        return self._run("generalized_gauss_newton_product", compute)

    def hessian_quadratics(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Tensor:
        """Return `vᵢ · ∇²ℓᵢ · vᵢᵀ`, `(n,)`."""
        point, layout = self._point(batch, names)

        def of_point(transforms: Transforms, x: Any, y: Any) -> Pull:
            gradient = transforms.gradient(lambda p: self._losses.point(p, x, y))
            return transforms.pullback(gradient, point)

        return self._quadratics("hessian_quadratics", of_point, batch, v, layout)

    def generalized_gauss_newton_quadratics(
        self, batch: TorchBatch, v: Tensor, names: Sequence[str]
    ) -> Tensor:
        """Return `vᵢ · Jᵢᵀ (∇²_f ℓᵢ) Jᵢ · vᵢᵀ`, `(n,)`."""
        point, layout = self._point(batch, names)

        def of_point(transforms: Transforms, x: Any, y: Any) -> Pull:
            one = TorchBatch(_unsqueezed(x), _unsqueezed(y), 1)
            return gauss_newton_chain(transforms, self._losses, self._snapshot, point, one)

        name = "generalized_gauss_newton_quadratics"
        return self._quadratics(name, of_point, batch, v, layout)

    def _quadratics(
        self,
        name: str,
        of_point: Callable[[Transforms, Any, Any], Pull],
        batch: TorchBatch,
        v: Tensor,
        layout: Layout,
    ) -> Tensor:
        """Return the product of every row of `v` with what its own point makes of it."""

        def compute(transforms: Transforms) -> Tensor:
            def one(triple: tuple[Any, Any, Tensor]) -> Tensor:
                x, y, row = triple
                return (layout.join(of_point(transforms, x, y)(layout.split(row))) * row).sum()

            chunk = self._rows(self._losses.bytes_per_point, layout)
            return transforms.each(one, (batch.x, batch.y, v), chunk)

        return self._run(name, compute)

    def mixed_gradient_products(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Any:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, *x.shape[1:])`, for the floating-point leaves of `x`.

        In a dict the other leaves are left out, in a tuple None stands in their places.

        Raises:
            DataTypeError: `x` holds integers only.
        """
        return self._joined(lambda part: self._mixed_gradient_products(part, v, names), batch)

    def _mixed_gradient_products(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Any:
        point, layout = self._point(batch, names)
        inputs = {path: x for path, x in leaves(batch.x) if x.is_floating_point()}
        if not inputs:
            raise DataTypeError(
                "mode 'perturbation' needs floating-point inputs `x` to differentiate in; got "
                f"{sorted({str(x.dtype) for _, x in leaves(batch.x)})}. Convert them, or pass "
                "embeddings through `forward=`."
            )

        def compute(transforms: Transforms) -> Point:
            def gradient(x: Point) -> Point:
                moved = TorchBatch(with_leaves(batch.x, x), batch.y, batch.size)
                return transforms.gradient(lambda p: self._losses.vector(p, moved).sum())(point)

            pull = transforms.pullback(gradient, inputs)
            return self._each(transforms, lambda r: pull(layout.split(r)), v, batch, layout)

        return only_leaves(batch.x, self._run("mixed_gradient_products", compute))

    def values(self, names: Sequence[str]) -> Tensor:
        """Return the parameters of the snapshot, `(d,)`."""
        parameters = self._snapshot.parameters
        return Layout.of(parameters, names).join(parameters).clone()

    def constants(self) -> Mapping[str, Tensor]:
        """Return name to value of the frozen parameters and the buffers."""
        return self._snapshot.constants

    def _point(self, batch: TorchBatch, names: Sequence[str]) -> tuple[Point, Layout]:
        self._learn(batch)
        parameters = self._snapshot.parameters
        return {name: parameters[name] for name in names}, Layout.of(parameters, names)


def _unsqueezed(tree: Any) -> Any:
    return map_tree(lambda t: t.unsqueeze(0), tree)
