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
from torch.utils import _pytree as pytree

from influence_core.arrays import map_tree
from influence_core.errors import DataTypeError, ModelError
from influence_core.methods.base import check_positive_integer
from influence_torch.data import TorchBatch, check_finite, leaves, make_batch, read_untouched
from influence_torch.kernels import twice_differentiable
from influence_torch.losses import Loss, PointLosses
from influence_torch.snapshot import Forward, Snapshot
from influence_torch.transforms import Looped, Point, Pull, Transforms, Vectorized
from influence_torch.vectors import Layout

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")

_VECTORIZED, _LOOPED = Vectorized(), Looped()
_DEFAULT_MEMORY = 2**30
# tensors of the size of a forward pass that one row of a double-backward product holds
_TENSORS_PER_ROW = 4


class TorchProblem:
    """A `torch.nn.Module` and its loss at the parameters that the module has now.

    Args:
        model: the module; it is copied and stays untouched.
        loss: `loss(output, y)` for a batch: mean, sum or vector over its points.
        device: where to compute; None is the model's own.
        max_memory: bytes that a product may hold; None allows 1 GiB.
        forward: `fn(model, x)` where the call is not `model(x)`.

    Raises:
        ModelError: the model cannot be copied or differentiated.
        DeviceError: its parameters lie on several devices.
        LossError: `loss` cannot be called.
        OptionError: `max_memory` is no positive integer.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        device: Any = None,
        max_memory: int | None = None,
        forward: Forward | None = None,
    ) -> None:
        """Copy the model."""
        self._snapshot = Snapshot(model, forward, device)
        self._losses = PointLosses(self._snapshot, loss)
        if max_memory is not None:
            check_positive_integer("max_memory", max_memory, "or None for 1 GiB")
        self._memory = max_memory or _DEFAULT_MEMORY
        self._looped: set[str] = set()
        self._checked = False

    @property
    def reference(self) -> Tensor:
        """A parameter of the snapshot, in the dtype of the computation."""
        return next(iter(self._snapshot.parameters.values()))

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of every parameter that wants gradients, in the model's order."""
        return {name: tuple(p.shape) for name, p in self._snapshot.parameters.items()}

    def batch(self, data: Any) -> TorchBatch:
        """Check an `(x, y)` pair and bring it to the device of the snapshot."""
        own, ours = self._snapshot.dtype, self._snapshot.compute_dtype
        return make_batch(data, self._snapshot.device, ours if own != ours else None)

    def batches(self, data: Any) -> Iterator[TorchBatch]:
        """Return the batches of a loader; no random generator is changed by reading them."""
        return (self.batch(pair) for pair in read_untouched(data))

    def validate(self, batch: TorchBatch, where: str) -> None:
        """Check the state of the model, the values of the batch and the contract of the loss."""
        if not self._checked:
            self._snapshot.check()
            self._checked = True
        check_finite(batch, where)
        with self._kernels():
            self._losses.check(batch, where)

    def to(self, device: Any) -> TorchProblem:
        """Return the same problem on `device`."""
        moved = copy.copy(self)
        moved._snapshot = self._snapshot.to(device)
        moved._losses = self._losses.on(moved._snapshot)
        return moved

    def hand_over(self, answer: Tensor) -> Tensor:
        """Return an answer in the dtype of the user's parameters, sharing no memory with ours."""
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
        point, layout = self._point(batch, names)

        def compute(transforms: Transforms) -> Tensor:
            pull = transforms.pullback(lambda p: self._losses.vector(p, batch), point)
            return self._each(transforms, lambda u: layout.join(pull(u)), w, batch, layout)

        return self._run("gradient_combinations", compute)

    def gradient_products(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Tensor:
        """Return `v · gradientsᵀ`, `(k, n)`."""
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
        return self.linearize(batch, names)(v)

    def linearize(self, batch: TorchBatch, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Return `v ↦ hessian_product(batch, v, names)`; its first call keeps the graph."""
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
        point, layout = self._point(batch, names)
        if self._losses.reduction is None and batch.size > 1:  # the batch loss cannot stand in
            points = [batch[i : i + 1] for i in range(batch.size)]
            parts = [self.generalized_gauss_newton_product(one, v, names) for one in points]
            return torch.stack(parts).mean(dim=0)

        def compute(transforms: Transforms) -> Tensor:
            chain = _gauss_newton_chain(transforms, self._losses, self._snapshot, point, batch)
            return self._each(
                transforms, lambda r: layout.join(chain(layout.split(r))), v, batch, layout
            )

        return self._run("generalized_gauss_newton_product", compute)

    def mixed_gradient_products(self, batch: TorchBatch, v: Tensor, names: Sequence[str]) -> Any:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, *x.shape[1:])`, for the floating-point leaves of `x`.

        In a dict the other leaves are left out, in a tuple None stands in their places.

        Raises:
            DataTypeError: `x` holds integers only.
        """
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
                moved = TorchBatch(_replaced(batch.x, x), batch.y, batch.size)
                return transforms.gradient(lambda p: self._losses.vector(p, moved).sum())(point)

            pull = transforms.pullback(gradient, inputs)
            return self._each(transforms, lambda r: pull(layout.split(r)), v, batch, layout)

        return _only_leaves(batch.x, self._run("mixed_gradient_products", compute))

    def _point(self, batch: TorchBatch, names: Sequence[str]) -> tuple[Point, Layout]:
        with self._kernels():
            self._losses.learn(batch)
        parameters = self._snapshot.parameters
        return {name: parameters[name] for name in names}, Layout.of(parameters, names)

    def _each(
        self,
        transforms: Transforms,
        fn: Callable[[Tensor], _T],
        rows: Tensor,
        batch: TorchBatch,
        layout: Layout,
    ) -> _T:
        size = self._losses.bytes_per_point * batch.size
        return transforms.each(fn, rows, self._rows(size, layout))

    def _rows(self, forward_bytes: int, layout: Layout) -> int:
        """Return how many rows fit into memory, if a forward pass keeps `forward_bytes`."""
        numbers = sum(shape.numel() for shape in layout.shapes.values())
        row = _TENSORS_PER_ROW * (forward_bytes + numbers * self.reference.element_size())
        return max(self._memory // max(row, 1), 1)

    def _run(self, name: str, compute: Callable[[Transforms], _T]) -> _T:
        """Compute with vmap, or in a loop where vmap cannot go."""
        with self._kernels():
            if name in self._looped:
                return _in_a_loop(name, compute)
            try:
                return _detached(compute(_VECTORIZED))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # vmap has no one kind of error for what it cannot do
                answer = _in_a_loop(name, compute)
                self._looped.add(name)
                _LOGGER.info("%s runs in a loop over points: vmap cannot (%s)", name, error)
                return answer

    def _kernels(self) -> Any:
        return twice_differentiable(recurrent=self._snapshot.recurrent)


def _in_a_loop(name: str, compute: Callable[[Transforms], _T]) -> _T:
    try:
        return _detached(compute(_LOOPED))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"`{name}` of the model and loss fails: {type(error).__name__}: {error}. Every "
            "operation needs a first and a second derivative; replace the one that has none."
        ) from error


def _gauss_newton_chain(
    transforms: Transforms,
    losses: PointLosses,
    snapshot: Snapshot,
    point: Point,
    batch: TorchBatch,
) -> Callable[[Point], Point]:
    """Return `v ↦ Jᵀ ∇²_f(mean ℓ) J v`; `J v` is the transpose of `u ↦ Jᵀu`, pulled back."""

    def outputs(parameters: Point) -> Point:
        return _float_leaves(snapshot(parameters, batch.x))

    at = {name: t.detach() for name, t in outputs(point).items()}
    if not at:
        raise ModelError(
            "second_order_mode='generalized_gauss_newton' needs a model whose output is a tensor, "
            "or a dict or tuple of tensors. Unpack what it returns through `forward=`."
        )
    structure = pytree.tree_map(
        lambda t: t.detach() if isinstance(t, Tensor) else t, snapshot(point, batch.x)
    )

    def mean(leaves_: Point) -> Tensor:
        return losses.mean_of_outputs(_with_leaves(structure, leaves_), batch)

    transpose = transforms.pullback(outputs, point)
    zeros = {name: torch.zeros_like(t) for name, t in at.items()}
    forward = transforms.pullback(lambda u: transforms.pullback(outputs, point)(u), zeros)
    curvature = transforms.pullback(transforms.gradient(mean), at)
    return lambda v: transpose(curvature(forward(v)))


def _float_leaves(tree: Any) -> Point:
    found = pytree.tree_leaves(tree)
    return {
        str(i): t for i, t in enumerate(found) if isinstance(t, Tensor) and t.is_floating_point()
    }


def _with_leaves(tree: Any, replaced: Point) -> Any:
    found, structure = pytree.tree_flatten(tree)
    return pytree.tree_unflatten([replaced.get(str(i), t) for i, t in enumerate(found)], structure)


def _replaced(tree: Any, by_path: Point) -> Any:
    paths = iter([path for path, _ in leaves(tree)])
    return map_tree(lambda t: by_path.get(next(paths), t), tree)


def _only_leaves(tree: Any, by_path: Point, path: str = "") -> Any:
    if isinstance(tree, Mapping):
        parts = {k: _only_leaves(child, by_path, f"{path}[{k!r}]") for k, child in tree.items()}
        return {k: part for k, part in parts.items() if part is not None}
    if isinstance(tree, tuple | list):
        return tuple(_only_leaves(t, by_path, f"{path}[{i}]") for i, t in enumerate(tree))
    return by_path.get(path)


def _detached(answer: _T) -> _T:
    return pytree.tree_map(torch.detach, answer)
