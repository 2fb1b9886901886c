"""The loss of one point, `ℓᵢ = loss(model(xᵢ), yᵢ)` of a batch of one, for many points at once.

What a user hands over is the loss of a batch: its mean, its sum, or the vector of the points. Which
one it is, and whether the model may be run on the whole batch, is learnt on the first batch of two
or more by comparing with batches of one; every batch that `fit` or a call passes is held to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
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
COMPARED = 4
# points whose forward pass is looked at for its memory
_MEASURED = 32
# how much the outputs are shrunk where the losses at the outputs themselves are too small to tell
_SHRUNK = 1 / 8


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


@dataclass(frozen=True)
class _Tolerance:
    """How far two computations of the same losses may lie apart."""

    rtol: float
    atol: float

    @classmethod
    def of(cls, outputs: Any, dtype: torch.dtype) -> _Tolerance:
        """Return the tolerance of losses that were computed from `outputs` in `dtype`."""
        # the rounding of an output enters the loss as it is, however small the loss
        found = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.numel()]
        sizes = [_size(t) for t in found if t.is_floating_point()]
        rtol, roundings = (1e-9, 256) if dtype == torch.float64 else (1e-4, 16)
        return cls(rtol, roundings * torch.finfo(dtype).eps * max(sizes, default=10.0))

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Return whether the two may be the same."""
        return torch.allclose(a.reshape(b.shape), b, rtol=self.rtol, atol=self.atol)


@dataclass(frozen=True)
class _Comparison:
    """The loss of a batch beside the losses of its points."""

    value: Tensor
    points: Tensor
    tolerance: _Tolerance

    @property
    def telling(self) -> bool:
        """Whether the losses stand out from the rounding of the outputs."""
        return self.tolerance.rtol * self.points.mean().abs().item() > self.tolerance.atol

    def reductions(self) -> set[Reduction]:
        """Return all that the batch loss may be: mean and sum alike where it is zero."""
        if self.value.ndim == 1 and self.value.shape == self.points.shape:
            return {"none"} if self.tolerance.close(self.value, self.points) else set()
        mean = self.points.mean()
        as_mean: dict[Reduction, Tensor] = {
            "mean": self.value,
            "sum": self.value / self.points.shape[0],
        }
        return {name for name, value in as_mean.items() if self.tolerance.close(value, mean)}


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
        check_loss(loss)
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
        value = self._of(outputs, batch.y)
        return value.sum() / batch.size if self.reduction == "sum" else value.mean()

    def point(self, parameters: Mapping[str, Tensor], x: Any, y: Any) -> Tensor:
        """Return the loss of one point without a batch axis: the definition."""
        value = self._of(self.snapshot(parameters, _unsqueeze(x)), _unsqueeze(y))
        return value.reshape(())

    @property
    def learnt(self) -> bool:
        """Whether a batch of two or more has shown how the losses are computed."""
        return self._route is not None

    def measure(self, batch: TorchBatch) -> None:
        """Set `bytes_per_point`, if nobody has yet; a model that fails is left to `check`."""
        if self.bytes_per_point or batch.size == 1:
            return
        with untouched_random_state(), suppress(Exception):
            self.bytes_per_point = self._measure(batch[: min(_MEASURED, batch.size)])

    def check(self, batch: TorchBatch, where: str) -> None:
        """Raise if the losses of `batch` are not what they were learnt to be.

        Raises:
            ModelError: the model fails, or is random.
            LossError: the batch loss is neither mean, sum nor vector of the point losses.
        """
        with torch.no_grad(), untouched_random_state():
            outputs, value = self._evaluate(batch, where)
            if batch.size == 1:
                return
            if self._route is None:
                self._route = self._find_route(outputs, value, batch, where)
            points = self._points(outputs, value, batch, where)
            seen = [_Comparison(value, points, self._tolerance(outputs, value, batch))]
            if not seen[0].telling:
                seen.extend(self._at_smaller_outputs(outputs, batch))
        for comparison in seen:
            self._hold(comparison, where)

    def _hold(self, comparison: _Comparison, where: str) -> None:
        possible = comparison.reductions()
        if self.reduction is not None:
            possible &= {self.reduction}
        if not possible:
            raise _neither(comparison.value, comparison.points, where)
        if len(possible) == 1 and (comparison.telling or "none" in possible):
            (self.reduction,) = possible

    def _at_smaller_outputs(self, outputs: Any, batch: TorchBatch) -> list[_Comparison]:
        """Compare where the losses are larger: what a loss does to a batch shows at any outputs.

        A well-fitted model has losses below the rounding of its outputs; nearer to zero the outputs
        fit the targets no longer, and stay what the loss can take (probabilities, variances).
        """
        assert self._route is not None  # check found it
        if self._route.model == "point":
            return []
        smaller = pytree.tree_map(
            lambda t: t * _SHRUNK if isinstance(t, Tensor) and t.is_floating_point() else t, outputs
        )
        try:
            value = self._of(smaller, batch.y)
            points = self._points_of(self._route, smaller, batch)
        except Exception as error:  # outputs that the loss does not take tell nothing
            _LOGGER.info("the loss cannot be evaluated at smaller outputs: %s", error)
            return []
        finite = torch.isfinite(value).all() and torch.isfinite(points).all()
        return [_Comparison(value, points, self._tolerance(smaller, value, batch))] * bool(finite)

    def _points(self, outputs: Any, value: Tensor, batch: TorchBatch, where: str) -> Tensor:
        try:
            return self.vector(self.snapshot.parameters, batch)
        except Exception:  # outputs that an earlier batch had along the points by chance only
            self._route = self._find_route(outputs, value, batch, where)
            return self.vector(self.snapshot.parameters, batch)

    def _evaluate(self, batch: TorchBatch, where: str) -> tuple[Any, Tensor]:
        outputs, value = self._batch_loss(batch, where)
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
            value, self._batch_loss(batch, where)[1], self._precision(batch)
        ):
            raise ModelError(
                f"`{where}`: the loss changes from one evaluation to the next, so it has no "
                "derivative. Call `model.eval()`, and use no random operation in the model."
            )
        return outputs, value

    def _batch_loss(self, batch: TorchBatch, where: str) -> tuple[Any, Tensor]:
        try:
            outputs = self.snapshot(self.snapshot.parameters, batch.x)
            return outputs, self._of(outputs, batch.y)
        except Exception as error:
            raise ModelError(
                f"`{where}`: loss(model(x), y) fails: {type(error).__name__}: {error}. "
                f"The parameters are {self.snapshot.compute_dtype}, {_shapes(batch)}."
                f"{self._remedy(batch)}"
            ) from error

    def _remedy(self, batch: TorchBatch) -> str:
        ours = self.snapshot.compute_dtype
        found = {t.dtype for t in pytree.tree_leaves(batch.x) if t.is_floating_point()}
        return f" Cast x with `.to({ours})`." if found - {ours} else ""

    def _find_route(self, outputs: Any, value: Tensor, batch: TorchBatch, where: str) -> _Route:
        some = batch[: min(COMPARED, batch.size)]
        expected = self._by_definition(some, where)
        tolerance = self._tolerance(outputs, value, batch)
        vector = [_Route("batch", "vector")] if value.shape == (batch.size,) else []
        for route in (*vector, *_ROUTES):
            try:
                points = self._along(route, self.snapshot.parameters, batch)
            except Exception as error:  # whatever vmap or a batch-bound loss cannot do
                _LOGGER.info("the losses cannot be computed by %s: %s", route, error)
                continue
            if points.shape == (batch.size,) and tolerance.close(points[: some.size], expected):
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
        # outputs of one point may have another length along what is the points' axis in a batch
        if route.model == "point" or batch.size == 1:
            how = "loop" if batch.size == 1 else route.loss
            return _each(lambda x, y: self.point(parameters, x, y), (batch.x, batch.y), how)
        return self._points_of(route, self.snapshot(parameters, batch.x), batch)

    def _points_of(self, route: _Route, outputs: Any, batch: TorchBatch) -> Tensor:
        if route.loss == "vector":
            return self._of(outputs, batch.y)
        return _each(
            lambda output, y: self._of(_unsqueeze(output), _unsqueeze(y)).reshape(()),
            (outputs, batch.y),
            route.loss,
        )

    def _of(self, outputs: Any, y: Any) -> Tensor:
        """Return the loss of a batch; one number a point may come with axes of length 1."""
        value = self._loss(outputs, y)
        if isinstance(value, Tensor) and value.ndim > 1 and value.numel() == value.shape[0]:
            return value.reshape(-1)
        return value

    def _tolerance(self, outputs: Any, value: Tensor, batch: TorchBatch) -> _Tolerance:
        exact = value.dtype == self._precision(batch) == torch.float64
        return _Tolerance.of(outputs, torch.float64 if exact else torch.float32)

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
            self._of(self.snapshot(leaves, batch.x), batch.y)
        return kept // batch.size


def check_loss(loss: Any) -> None:
    """Raise unless `loss` can be called.

    Raises:
        LossError: it cannot.
    """
    if not callable(loss):
        raise LossError(f"`loss` must be callable as loss(output, y); got {loss!r}.")


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


def _size(tensor: Tensor) -> float:
    finite = tensor.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return finite.abs().max().item()


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
