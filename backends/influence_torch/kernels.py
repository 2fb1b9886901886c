"""Kernels with second derivatives: fused attention, recurrent and normalisation kernels lack them.

torch chooses most kernels by process-wide switches. They are turned while at least one product is
being computed, in any thread, and set back by the last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm


class _Shared:
    """A context that is entered by the first of its holders and left by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._stack = ExitStack()

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self.enter(self._stack)
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._stack.close()

    def enter(self, stack: ExitStack) -> None:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # the fast path of `nn.TransformerEncoder` makes nested tensors, which vmap cannot take
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        # on by default on a GPU: convolutions with three correct digits
        _switch(stack, torch.backends.cudnn.conv, "fp32_precision", "ieee")


class _SharedRecurrent(_Shared):
    def enter(self, stack: ExitStack) -> None:
        # not `flags()`: it sets every other flag as well, to the defaults of torch
        _switch(stack, torch.backends.cudnn, "enabled", False)
        _switch(stack, torch.backends.mkldnn, "enabled", False)


def _switch(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


_ALWAYS = _Shared()
_RECURRENT = _SharedRecurrent()


@contextmanager
def twice_differentiable(*, recurrent: bool) -> Iterator[None]:
    """Use kernels that have second derivatives; `recurrent` where there are GRUs or LSTMs."""
    with ExitStack() as stack:
        stack.enter_context(_ALWAYS.held())
        if recurrent:
            stack.enter_context(_RECURRENT.held())
        yield


class _DifferentiableWeightNorm(_WeightNorm):
    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return weight_v * (weight_g / torch.norm_except_dim(weight_v, 2, self.dim))


def replace_kernels(module: nn.Module) -> None:
    """Replace the parts of `module` whose second derivative torch computes wrongly."""
    for part in module.modules():
        if type(part) is _WeightNorm:  # its fused kernel takes the norm for a constant
            part.__class__ = _DifferentiableWeightNorm
