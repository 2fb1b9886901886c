"""Passes over the layers of a module: their inputs, and gradients at the labels of a distribution.

A forward pass records what the layers are called with; a backward pass for every slice of the
labels pulls the gradients in the outputs back to the layers. Parameters of no layer get theirs
point by point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from influence_core.arrays import map_tree
from influence_core.modes import LabelKind
from influence_core.problem import FreeParameters, Labels, Layer, LayerStatistics
from influence_torch.data import TorchBatch
from influence_torch.execution import Execution
from influence_torch.layers import (
    Axes,
    Parts,
    find_parts,
    joined,
    perturbed,
    point_axes,
    record,
)
from influence_torch.likelihoods import Slices, known_likelihood, one_slice
from influence_torch.losses import Loss
from influence_torch.transforms import Point, Transforms
from influence_torch.vectors import Layout

# the key under which a mapping of inputs says which positions are no padding
_MASK = "attention_mask"


class LayerPasses(Execution):
    """What the layers of a snapshot see; a subclass names its loss `_loss`."""

    _loss: Loss
    _axes: Axes | None = None

    def layers(self) -> Mapping[str, Layer | FreeParameters]:
        """Return name to layer of all parameters of the problem.

        Affine layers (linear, convolutional, the projections of attention), embeddings, and free
        parameters: normalisations, and what belongs to no layer.
        """
        return self._layer_parts.layers

    def layer_statistics(
        self, batch: TorchBatch, layers: Sequence[str], labels: Labels
    ) -> Mapping[str, LayerStatistics]:
        """Return what the layers see of the points: a forward pass, and a backward pass a slice.

        The distribution of the labels is known for `cross_entropy` of this package and of torch.

        Raises:
            CapabilityError: another loss, and labels that are not the given ones.
            NotImplementedLayerRepresentationException: a layer is called with something that does
                not have the points along an axis of its own.
        """
        self._learn(batch)
        # without a reduction the batch loss cannot stand in for the losses of the points
        given = labels.kind is LabelKind.GIVEN
        most = 1 if given and self._losses.reduction is None else None
        return joined(
            [
                self._layer_statistics(part, layers, _of_points(labels, points))
                for points, part in self._parts(batch, most)
            ]
        )

    @cached_property
    def _layer_parts(self) -> Parts:
        return find_parts(self._snapshot)

    def _layer_statistics(
        self, batch: TorchBatch, names: Sequence[str], labels: Labels
    ) -> dict[str, LayerStatistics]:
        found = self._layer_parts
        watched, axes = found.of(names), self._point_axes(batch)
        with self._kernels():
            calls = record(self._snapshot, watched, batch.x, batch.size, axes)
            slices = self._slices(calls.outputs, batch, labels)
        layout = Layout.of(calls.zeros, list(calls.zeros))
        chunk = self._rows(self._losses.bytes_per_point * batch.size, layout)

        def outputs(epsilon: Point) -> Any:
            return perturbed(self._snapshot, watched, batch.x, batch.size, axes, epsilon)

        def compute(transforms: Transforms) -> Point:
            pull = transforms.pullback(lambda e: slices.target(outputs(e)), calls.zeros)
            return transforms.each(lambda r: pull(slices.cotangent(r)), slices.rows, chunk)

        gradients = self._run("layer_statistics", compute) if calls.zeros else {}
        own = {name: found.layers[name] for name in names if name not in found.free}
        seen = calls.statistics(own, gradients, slices.count, self.reference)
        seen |= {
            name: self._free_statistics(batch, found.free[name], calls.outputs, slices, labels)
            for name in names
            if name in found.free
        }
        return _counted(seen, batch)

    def _point_axes(self, batch: TorchBatch) -> Axes:
        """Return where every site has the points, learnt from one point and its copy."""
        if self._axes is None:
            one = batch[:1].x
            with self._kernels():
                self._axes = point_axes(
                    self._snapshot,
                    self._layer_parts.watched,
                    lambda size: map_tree(lambda t: t.expand(size, *t.shape[1:]), one),
                )
        return self._axes

    def _slices(self, outputs: Any, batch: TorchBatch, labels: Labels) -> Slices:
        if labels.kind is not LabelKind.GIVEN:
            return known_likelihood(self._loss, labels.kind).slices(outputs, batch.y, labels)
        return one_slice(lambda f: self._losses.mean_of_outputs(f, batch) * batch.size, outputs)

    def _free_statistics(
        self,
        batch: TorchBatch,
        free: FreeParameters,
        outputs: Any,
        slices: Slices,
        labels: Labels,
    ) -> LayerStatistics:
        """Return the gradients of every point alone, `(c, n, 1, o)`."""
        if labels.kind is LabelKind.GIVEN:
            gradients = self.gradients(batch, free.names).unsqueeze(0)
        else:
            gradients = self._pulled_back(batch, free.names, outputs, slices)
        gradients = gradients.unsqueeze(2).to(self.reference)
        return LayerStatistics(self.reference.new_zeros(batch.size, 1, 0), gradients)

    def _pulled_back(
        self, batch: TorchBatch, names: Sequence[str], outputs: Tensor, slices: Slices
    ) -> Tensor:
        """Return the pullback of every slice's gradients in the outputs, `(c, n, d)`."""
        point = {name: self._snapshot.parameters[name] for name in names}
        layout = Layout.of(point, names)
        chunk = self._rows(self._losses.bytes_per_point, layout)

        def compute(transforms: Transforms) -> Tensor:
            cotangents = transforms.each(slices.cotangent, slices.rows, slices.count)

            def one(pair: tuple[Any, Tensor]) -> Tensor:
                x, seeds = pair  # of one point: (…), (c, …)
                alone = map_tree(lambda t: t.unsqueeze(0), x)
                pull = transforms.pullback(lambda p: self._snapshot(p, alone), point)
                rows = [layout.join(pull(seed.unsqueeze(0))) for seed in seeds]
                return torch.stack(rows)

            pairs = (batch.x, cotangents.movedim(1, 0))
            return transforms.each(one, pairs, max(chunk // slices.count, 1)).movedim(0, 1)

        return self._run("free_statistics", compute)


def _of_points(labels: Labels, points: slice) -> Labels:
    return replace(labels, uniforms=lambda positions: labels.uniforms(positions)[:, points])


def _counted(seen: dict[str, LayerStatistics], batch: TorchBatch) -> dict[str, LayerStatistics]:
    """Add which positions are no padding, for the layers that see the positions of the mask."""
    mask = batch.x.get(_MASK) if isinstance(batch.x, Mapping) else None
    if mask is None or mask.ndim != 2:
        return seen
    return {name: _masked(statistics, mask) for name, statistics in seen.items()}


def _masked(statistics: LayerStatistics, mask: Tensor) -> LayerStatistics:
    positions, own = statistics.inputs.shape[1], mask.shape[1]
    if positions % own:
        return statistics
    counted = mask.to(statistics.output_gradients).repeat(1, positions // own)
    return replace(statistics, counted=counted)
