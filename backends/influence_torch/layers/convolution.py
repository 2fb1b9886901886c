"""`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`: affine layers on patches.

Every output position sees the patch under the kernel, `i = channels · kernel` numbers in the order
of the weight's columns. A convolution of `G` groups is `G` layers: each sees its own channels, and
owns its own rows of the weight and the bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from influence_core.problem import Layer
from influence_torch.layers.parts import Named, Part, Seen


@dataclass(frozen=True)
class Convolution(Part):
    """A convolution over one, two or three axes.

    Attributes:
        own: the layer of every group.
        kernel, stride, dilation: of every axis.
        pads: zeros, or what the mode says, before and after every axis.
        mode: of the padding, as `torch.nn.functional.pad` calls it.
    """

    own: tuple[Layer, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    mode: str

    @property
    def layers(self) -> Mapping[str, Layer]:
        """One of the name of the module, or one for every group."""
        return dict(zip(self._names, self.own, strict=True))

    def seen(self, site: str, a: Tensor, g: Tensor) -> Seen:
        """Return patches and gradients of every group."""
        patches = self.patches(a).chunk(len(self.own), dim=-1)
        gradients = g.movedim(-1 - len(self.kernel), -1).chunk(len(self.own), dim=-1)
        return dict(zip(self._names, zip(patches, gradients, strict=True), strict=True))

    def patches(self, images: Tensor) -> Tensor:
        """Return `(…, *positions, channels · kernel)` from `(…, channels, *sizes)`."""
        axes = len(self.kernel)
        leading, own = images.shape[: -axes - 1], images.shape[-axes - 1 :]
        widths = [width for pads in reversed(self.pads) for width in pads]
        patches = images.reshape(-1, *own)  # `pad` takes no further axes
        if any(widths):
            patches = F.pad(patches, widths, mode=self.mode)
        for size, step, gap in zip(self.kernel, self.stride, self.dilation, strict=True):
            # the axes that are left to unfold move up by one, and the kernel's appear behind
            patches = patches.unfold(-axes, gap * (size - 1) + 1, step)[..., ::gap]
        patches = patches.movedim(-2 * axes - 1, -axes - 1).flatten(start_dim=-axes - 1)
        return patches.reshape(*leading, *patches.shape[1:])

    @property
    def _names(self) -> list[str]:
        if len(self.own) == 1:
            return [self.name]
        return [f"{self.name}[{group}]" for group in range(len(self.own))]


def convolution(name: str, module: nn.Module, named: Named) -> Convolution:
    """Return the part that an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` is."""
    weight, bias, groups = named(module, "weight"), named(module, "bias"), module.groups
    outputs = module.out_channels // groups
    inputs = module.in_channels // groups * math.prod(module.kernel_size)
    return Convolution(
        name,
        tuple(
            Layer(weight, bias, inputs, outputs, first=group * outputs) for group in range(groups)
        ),
        module.kernel_size,
        module.stride,
        module.dilation,
        _pads(module),
        "constant" if module.padding_mode == "zeros" else module.padding_mode,
    )


def _pads(module: nn.Module) -> tuple[tuple[int, int], ...]:
    if module.padding == "valid":
        return tuple((0, 0) for _ in module.kernel_size)
    if module.padding == "same":  # what cannot be halved stands behind
        totals = [
            gap * (size - 1) for size, gap in zip(module.kernel_size, module.dilation, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((width, width) for width in module.padding)
