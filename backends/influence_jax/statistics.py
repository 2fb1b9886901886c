"""What the dense layers of a model see of some points, from one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from influence_core.modes import LabelKind
from influence_core.problem import LayerStatistics
from influence_jax.layers import Layers, watch, zeros_of
from influence_jax.likelihoods import expected, sampled
from influence_jax.losses import PointLosses
from influence_jax.products import Rows, count, each
from influence_jax.snapshot import leading_one
from influence_jax.tracing import Trace


@dataclass(frozen=True)
class Observer:
    """Watches some dense layers of a traced model.

    Attributes:
        losses: of the points.
        trace: of the model at one point.
        layers: found in it.
        names: the layers to watch.
        kind: of the labels.
        rows: `(x, points)` ↦ how many slices may be computed at once.
    """

    losses: PointLosses
    trace: Trace
    layers: Layers
    names: tuple[str, ...]
    kind: LabelKind
    rows: Rows

    def points(
        self, parameters: Mapping[str, Array], x: Any, y: Any, uniforms: Array | None
    ) -> Mapping[str, tuple[Array, Array]]:
        """Return layer to inputs, `(n, s, i)`, and output gradients, `(c, n, s, o)`.

        Args:
            parameters: all of them.
            x: inputs.
            y: targets.
            uniforms: where the labels are sampled, numbers in [0, 1), `(n, draws, positions)`.
        """
        rows = self.rows(x, count(x))
        one = jax.vmap(
            lambda a, b, u: self._point(parameters, a, b, u, rows),
            out_axes=dict.fromkeys(self.names, (0, 1)),
        )
        return one(x, y, uniforms)

    def _point(
        self, parameters: Mapping[str, Array], x: Any, y: Any, uniforms: Array, rows: int
    ) -> dict[str, tuple[Array, Array]]:
        own = [parameters[name] for name in self.losses.snapshot.parameters]
        arguments = [*own, *jax.tree.leaves(leading_one(x))]

        def outputs(epsilon: Mapping[int, Array]) -> tuple[Any, dict[int, Array]]:
            answer, activations = watch(self.trace, self.layers, arguments, epsilon)
            return self._target(answer, y), activations

        target, pull, activations = jax.vjp(
            outputs, zeros_of(self.trace, self.layers, self.names), has_aux=True
        )
        gradients = self._pulled(pull, target, y, uniforms, rows)
        return {
            name: (activations[index], jax.vmap(call.by_position)(gradients[index]))
            for index, (name, call) in self.layers.steps.items()
            if name in self.names
        }

    def _target(self, outputs: Any, y: Any) -> Array:
        """Return what the gradients of the slices belong to: the outputs, or the loss."""
        given = self.kind is LabelKind.GIVEN
        return self.losses.of_outputs(outputs, y) if given else outputs

    def _pulled(
        self,
        pull: Callable[[Any], tuple[Any]],
        target: Array,
        y: Any,
        uniforms: Array,
        rows: int,
    ) -> dict[int, Array]:
        """Return the gradients of all slices in the products, by step, `(c, …)`."""
        if self.kind is LabelKind.GIVEN:
            return jax.tree.map(lambda t: t[None], pull(jnp.ones_like(target))[0])
        if self.kind is LabelKind.EXPECTED:
            slices = expected(target, leading_one(y))
        else:
            slices = sampled(target, leading_one(y), uniforms)
        return each(lambda row: pull(slices.cotangent(row))[0], slices.rows, rows)


def joined(
    parts: Sequence[Mapping[str, tuple[Array, Array]]], dtype: Any
) -> dict[str, LayerStatistics]:
    """Return the statistics of all points, in `dtype`, from those of parts of them."""
    return {
        name: LayerStatistics(
            jnp.concatenate([part[name][0] for part in parts], axis=0).astype(dtype),
            jnp.concatenate([part[name][1] for part in parts], axis=1).astype(dtype),
        )
        for name in parts[0]
    }
