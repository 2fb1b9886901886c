"""Gradients of all parameters from what the layers of a torch problem saw."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from influence_core.modes import LabelKind
from influence_core.problem import FreeParameters, Labels

GIVEN, EXPECTED, SAMPLED = LabelKind.GIVEN, LabelKind.EXPECTED, LabelKind.SAMPLED


def no_uniforms(positions):
    raise AssertionError("nothing is random here")


def labels(kind, uniforms=no_uniforms):
    return Labels(kind, uniforms)


def fixed(draws, n, seed=0):
    """The same numbers for the same points, however they are cut."""

    def draw(positions):
        return np.random.default_rng(seed).random((draws, 64, positions))[:, :n]

    return draw


def rebuilt(problem, found):
    """Gradients of all parameters, `(c, n, p)`, from what their layers saw."""
    shapes, layers = problem.parameters, problem.layers()
    first = next(iter(found.values())).output_gradients
    parts = {
        name: first.new_full((*first.shape[:2], math.prod(shape)), torch.nan)
        for name, shape in shapes.items()
    }
    for name, layer in layers.items():
        seen = found[name]
        if isinstance(layer, FreeParameters):
            sizes = [math.prod(shapes[own]) for own in layer.names]
            total = seen.output_gradients.sum(2)
            parts |= dict(zip(layer.names, total.split(sizes, dim=-1), strict=True))
        else:
            _affine(parts, shapes, layer, seen)
    assert not any(part.isnan().any() for part in parts.values())  # every column is somebody's
    return torch.cat([parts[name] for name in shapes], dim=2)


def _affine(parts, shapes, layer, seen):
    a, g = seen.inputs, seen.output_gradients
    if layer.lookup:
        a = F.one_hot(a, layer.inputs).to(g)
    rows = slice(layer.first, layer.first + layer.outputs)
    if layer.weight is not None:
        matrices = torch.einsum("cnso,nsi->cnoi", g, a)
        if layer.transposed:
            parts[layer.weight] = matrices.mT.flatten(2)
        else:
            whole = parts[layer.weight].unflatten(2, (shapes[layer.weight][0], -1))
            whole[:, :, rows] = matrices
    if layer.bias is not None:
        parts[layer.bias][:, :, rows] = g.sum(2)


def statistics(problem, x, y, wanted, names=None):
    names = list(problem.layers()) if names is None else names
    return problem.layer_statistics(problem.batch((x, y)), names, wanted)


def slices(problem, x, y, wanted):
    return rebuilt(problem, statistics(problem, x, y, wanted))
