"""Normalisations: `z = γ ∘ x + β` of normalised `x`, entry by entry.

The gradients in `γ` and `β` are `Σ_s g_s ∘ x_s` and `Σ_s g_s`: no product of two factors, but short
vectors. Batch normalisation is one of them in eval mode, where it does not mix the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_core.problem import FreeParameters
from influence_torch.layers.parts import Named, OnCall, Part, Seen

_Normalize: TypeAlias = Callable[[Any, Tensor], Tensor]
"""`(module, a)` ↦ what the module makes of `a` before it scales and shifts."""


@dataclass(frozen=True)
class Normalization(Part):
    """A normalisation with a scale or a shift.

    Attributes:
        own: name of the module's parameter ↦ name in the model, of those that want gradients.
        features: how many entries a scale has.
        axes: how many axes at the end they fill; None where they are those of the channels.
        normalize: what the module does before it scales.
    """

    own: Mapping[str, str]
    features: int
    axes: int | None
    normalize: _Normalize

    @property
    def layers(self) -> Mapping[str, FreeParameters]:
        """One of the name of the module."""
        names = tuple(self.own.values())
        return {self.name: FreeParameters(names, self.features * len(names))}

    def watched(self, module: nn.Module, on_call: OnCall) -> AbstractContextManager[None]:
        """Return the context in which `on_call` gets the normalised `x` for `a`."""
        return super().watched(
            module, lambda site, a, z: on_call(site, self.normalize(module, a), z)
        )

    def seen(self, site: str, a: Tensor, g: Tensor) -> Seen:
        """Return no inputs, and the gradients in scale and shift at every position."""
        channels = 2 - a.ndim  # the first axis behind those of the points, counted from the end
        x, g = (
            tensor.movedim(channels, -1) if self.axes is None else tensor.flatten(-self.axes)
            for tensor in (a, g)
        )
        parts = [g * x if kind == "weight" else g for kind in self.own]
        return {self.name: (x[..., :0], torch.cat(parts, dim=-1))}


def over_last_axes(name: str, module: nn.LayerNorm | nn.RMSNorm, named: Named) -> Normalization:
    """Return the part that an `nn.LayerNorm` or `nn.RMSNorm` is."""
    shape = tuple(module.normalized_shape)
    normalize = _layer_norm if isinstance(module, nn.LayerNorm) else _rms_norm
    return Normalization(name, _own(module, named), math.prod(shape), len(shape), normalize)


def over_channels(name: str, module: nn.Module, named: Named) -> Normalization:
    """Return the part that a group, batch or instance normalisation is."""
    features = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    normalize = _group_norm if isinstance(module, nn.GroupNorm) else _without_scale
    return Normalization(name, _own(module, named), features, None, normalize)


def _own(module: nn.Module, named: Named) -> dict[str, str]:
    found = {kind: named(module, kind) for kind in ("weight", "bias")}
    return {kind: name for kind, name in found.items() if name is not None}


def _layer_norm(module: nn.LayerNorm, a: Tensor) -> Tensor:
    return F.layer_norm(a, module.normalized_shape, eps=module.eps)


def _rms_norm(module: nn.RMSNorm, a: Tensor) -> Tensor:
    return F.rms_norm(a, module.normalized_shape, eps=module.eps)


def _group_norm(module: nn.GroupNorm, a: Tensor) -> Tensor:
    return F.group_norm(a, module.num_groups, eps=module.eps)


def _without_scale(module: Any, a: Tensor) -> Tensor:
    statistics = module.running_mean, module.running_var
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        use_inputs = module.training or not module.track_running_stats
        return F.instance_norm(a, *statistics, use_input_stats=use_inputs, eps=module.eps)
    return F.batch_norm(a, *statistics, eps=module.eps)
