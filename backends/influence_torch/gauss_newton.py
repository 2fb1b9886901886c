"""The generalised Gauss–Newton product, `v ↦ Jᵀ ∇²_f(mean ℓ) J v`, as three pullbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from influence_core.errors import ModelError
from influence_torch.data import TorchBatch
from influence_torch.losses import PointLosses
from influence_torch.snapshot import Snapshot
from influence_torch.transforms import Point, Transforms


def gauss_newton_chain(
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
