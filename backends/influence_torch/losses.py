"""The loss of one point, `ℓᵢ = loss(model(xᵢ), yᵢ)` of a batch of one, for many points at once.

What a user hands over is the loss of a batch: its mean, its sum, or the vector of the points. Which
one it is, and whether the model may be run on the whole batch, is learnt on the first batch of two
or more by comparing with batches of one; every batch that `fit` or a call passes is held to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from influence_core.arrays import map_tree
from influence_core.errors import LossError, ModelError
from influence_torch.data import TorchBatch, untouched_random_state
from influence_torch.snapshot import Snapshot

_LOGGER = logging.getLogger(__name__)

Loss = Callable[[Any, Any], Tensor]
Reduction = Literal["mean", "sum", "none"]

# points of the first batch whose loss is taken on their own, as the definition says
_COMPARED = 4


@dataclass(frozen=True)
class _Route:
    """One way to compute the losses of all points.

    Attributes:
        model: whether the model runs on the whole batch, or on each point.
        loss: how the loss sees the points: all at once, vmapped, or one after the other.
    """

    model: Literal["batch", "point"]
    loss: Literal["vector", "vmap", "loop"]


_ROUTES = (
    _Route("batch", "vmap"),
    _Route("batch", "loop"),
    _Route("point", "vmap"),
    _Route("point", "loop"),
)


class PointLosses:
    """The losses of points under a snapshot, differentiable in parameters and inputs.

    Attributes:
        reduction: what the loss of a batch is; None until a batch of two or more could tell.
        bytes_per_point: memory that the forward pass keeps for a backward pass.
    """

    def __init__(self, snapshot: Snapshot, loss: Loss) -> None:
        """Take the model and the loss; nothing is evaluated yet.

        Raises:
            LossError: `loss` cannot be called.
        """
        if not callable(loss):
            raise LossError(f"`loss` must be callable as loss(output, y); got {loss!r}.")
        self.snapshot = snapshot
        self.reduction: Reduction | None = None
        self.bytes_per_point = 0
        self._loss = loss
        self._route: _Route | None = None

    def on(self, snapshot: Snapshot) -> PointLosses:
        """Return the same losses for the snapshot on another device."""
        moved = PointLosses(snapshot, self._loss)
        moved.__dict__.update({**self.__dict__, "snapshot": snapshot})
        return moved

    def vector(self, parameters: Mapping[str, Tensor], batch: TorchBatch) -> Tensor:
        """Return the losses of the points, `(n,)`."""
        return self._along(self._route or _Route("point", "loop"), parameters, batch)

    def mean(self, parameters: Mapping[str, Tensor], batch: TorchBatch) -> Tensor:
        """Return the mean loss of the points; the batch loss stands in where it is that."""
        if self.reduction is None:
            return self.vector(parameters, batch).mean()
        return self.mean_of_outputs(self.snapshot(parameters, batch.x), batch)

    def mean_of_outputs(self, outputs: Any, batch: TorchBatch) -> Tensor:
        """Return the mean loss of the points as a function of the model's outputs."""
        value = self._loss(outputs, batch.y)
        return value.sum() / batch.size if self.reduction == "sum" else value.mean()

    def point(self, parameters: Mapping[str, Tensor], x: Any, y: Any) -> Tensor:
        """Return the loss of one point without a batch axis: the definition."""
        value = self._loss(self.snapshot(parameters, _unsqueeze(x)), _unsqueeze(y))
        return value.reshape(())

    def learn(self, batch: TorchBatch) -> None:
        """Find out what the loss of a batch is, if `batch` can tell and nobody has yet."""
        if self._route is None and batch.size > 1:
            self.check(batch, "the first batch")

    def check(self, batch: TorchBatch, where: str) -> None:
        """Raise if the losses of `batch` are not what they were learnt to be.

        Raises:
            ModelError: the model fails, or is random.
            LossError: the batch loss is neither mean, sum nor vector of the point losses.
        """
        with torch.no_grad(), untouched_random_state():
            value = self._evaluate(batch, where)
            if batch.size == 1:
                return
            if self._route is None:
                self._route = self._find_route(value, batch, where)
                self.bytes_per_point = self._measure(batch)
            points = self._points(value, batch, where)
        possible = _reductions(value, points, self._precision(batch))
        if self.reduction is not None:
            possible &= {self.reduction}
        if not possible:
            raise _neither(value, points, where)
        if len(possible) == 1:
            (self.reduction,) = possible

    def _points(self, value: Tensor, batch: TorchBatch, where: str) -> Tensor:
        try:
            return self.vector(self.snapshot.parameters, batch)
        except Exception:  # outputs that an earlier batch had along the points by chance only
            self._route = self._find_route(value, batch, where)
            return self.vector(self.snapshot.parameters, batch)

    def _evaluate(self, batch: TorchBatch, where: str) -> Tensor:
        value = self._batch_loss(batch, where)
        if not _is_loss(value, batch.size):
            raise LossError(
                f"`{where}`: the loss must return a scalar, or one number a point; got "
                f"{_shown(value)} for {batch.size} points. Average over whatever else there is "
                "inside the loss."
            )
        if not torch.isfinite(value).all():
            raise LossError(
                f"`{where}`: the loss is NaN or infinite although the data is finite. Look at the "
                "points where it is, or train the model with a smaller step."
            )
        if self._route is None and not _same(
            value, self._batch_loss(batch, where), self._precision(batch)
        ):
            raise ModelError(
                f"`{where}`: the loss changes from one evaluation to the next, so it has no "
                "derivative. Call `model.eval()`, and use no random operation in the model."
            )
        return value

    def _batch_loss(self, batch: TorchBatch, where: str) -> Tensor:
        try:
            return self._loss(self.snapshot(self.snapshot.parameters, batch.x), batch.y)
        except Exception as error:
            raise ModelError(
                f"`{where}`: loss(model(x), y) fails: {type(error).__name__}: {error}. "
                f"The parameters are {self.snapshot.compute_dtype}, {_shapes(batch)}."
            ) from error

    def _find_route(self, value: Tensor, batch: TorchBatch, where: str) -> _Route:
        some = batch[: min(_COMPARED, batch.size)]
        expected = self._by_definition(some, where)
        vector = [_Route("batch", "vector")] if value.shape == (batch.size,) else []
        for route in (*vector, *_ROUTES):
            try:
                points = self._along(route, self.snapshot.parameters, batch)
            except Exception as error:  # whatever vmap or a batch-bound loss cannot do
                _LOGGER.info("the losses cannot be computed by %s: %s", route, error)
                continue
            if points.shape == (batch.size,) and _close(
                points[: some.size], expected, self._precision(batch)
            ):
                if route.loss == "loop":
                    _LOGGER.info("the loss cannot be vmapped; its points are taken in a loop")
                return route
        raise _neither(value, expected, where)  # the loop failed on a point: it has no own loss

    def _by_definition(self, batch: TorchBatch, where: str) -> Tensor:
        try:
            return self._along(_Route("point", "loop"), self.snapshot.parameters, batch)
        except Exception as error:
            raise LossError(
                f"`{where}`: loss(model(x), y) fails for a batch of one point: "
                f"{type(error).__name__}: {error}. Every point needs a loss of its own: use no "
                "statistics over the batch, and a loss with reduction='none'."
            ) from error

    def _along(self, route: _Route, parameters: Mapping[str, Tensor], batch: TorchBatch) -> Tensor:
        if route.model == "point":
            return _each(lambda x, y: self.point(parameters, x, y), (batch.x, batch.y), route.loss)
        outputs = self.snapshot(parameters, batch.x)
        if route.loss == "vector":
            return self._loss(outputs, batch.y)
        return _each(
            lambda output, y: self._loss(_unsqueeze(output), _unsqueeze(y)).reshape(()),
            (outputs, batch.y),
            route.loss,
        )

    def _precision(self, batch: TorchBatch) -> torch.dtype:
        """Return the shortest dtype that the loss may have gone through."""
        inputs = [t.dtype for t in pytree.tree_leaves(batch.x) if t.is_floating_point()]
        exact = self.snapshot.exact and all(dtype == torch.float64 for dtype in inputs)
        return torch.float64 if exact else torch.float32

    def _measure(self, batch: TorchBatch) -> int:
        kept = 0
        leaves = {n: p.detach().requires_grad_() for n, p in self.snapshot.parameters.items()}
        weights = {p.untyped_storage().data_ptr() for p in leaves.values()}

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            if tensor.untyped_storage().data_ptr() not in weights:
                kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            self._loss(self.snapshot(leaves, batch.x), batch.y)
        return kept // batch.size


def _each(fn: Callable[..., Tensor], trees: tuple[Any, ...], how: str) -> Tensor:
    if how == "vmap":
        return torch.func.vmap(fn)(*trees)
    count = pytree.tree_leaves(trees)[0].shape[0]
    parts = (pytree.tree_map(lambda t, i=i: t[i], trees) for i in range(count))
    return torch.stack([fn(*part) for part in parts])


def _unsqueeze(tree: Any) -> Any:
    return pytree.tree_map(lambda t: t.unsqueeze(0) if isinstance(t, Tensor) else t, tree)


def _is_loss(value: Any, size: int) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return tuple(value.shape) in {(), (1,), (size,)}


def _reductions(value: Tensor, points: Tensor, precision: torch.dtype) -> set[Reduction]:
    """Return all that the batch loss may be: mean and sum alike where all points lose nothing."""
    if value.ndim == 1 and value.shape == points.shape:
        return {"none"} if _close(value, points, precision) else set()
    candidates: dict[Reduction, Tensor] = {"mean": points.mean(), "sum": points.sum()}
    return {name for name, expected in candidates.items() if _close(value, expected, precision)}


def _close(a: Tensor, b: Tensor, precision: torch.dtype) -> bool:
    # float32 losses carry the rounding of logits of size ten: absolute, not relative to the loss
    exact = a.dtype == precision == torch.float64
    rtol, atol = (1e-9, 1e-11) if exact else (1e-4, 1e-5)
    return bool(torch.allclose(a.reshape(b.shape), b, rtol=rtol, atol=atol))


def _same(a: Tensor, b: Tensor, precision: torch.dtype) -> bool:
    # not bit by bit: sums on a GPU may come in any order
    rounding = 16 * max(torch.finfo(dtype).eps for dtype in (a.dtype, precision))
    return torch.allclose(a, b, rtol=rounding, atol=rounding)


def _neither(value: Tensor, points: Tensor, where: str) -> LossError:
    got = f"{value.item():.6g}" if value.numel() == 1 else f"the vector {value[:4].tolist()}…"
    return LossError(
        f"`{where}`: the loss of a batch must be the mean, the sum or the vector of the losses of "
        f"its points, each taken as a batch of one; got {got} where the mean of the points is "
        f"{points.mean().item():.6g} and their sum {points.sum().item():.6g}. Class weights, "
        "ignore_index and terms that mix points do this: use a loss with reduction='none'."
    )


def _shapes(batch: TorchBatch) -> str:
    return f"x is {map_tree(_shown, batch.x)}, y is {map_tree(_shown, batch.y)}"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return type(value).__name__
