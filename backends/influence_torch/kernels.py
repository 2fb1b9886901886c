"""Kernels with second derivatives: fused attention and recurrent kernels lack them.

torch chooses kernels by process-wide switches. They are turned while at least one product is being
computed, in any thread, and set back by the last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


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


class _SharedRecurrent(_Shared):
    def enter(self, stack: ExitStack) -> None:
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))


_ATTENTION = _Shared()
_RECURRENT = _SharedRecurrent()


@contextmanager
def twice_differentiable(*, recurrent: bool) -> Iterator[None]:
    """Use kernels that have second derivatives; `recurrent` where there are GRUs or LSTMs."""
    with ExitStack() as stack:
        stack.enter_context(_ATTENTION.held())
        if recurrent:
            stack.enter_context(_RECURRENT.held())
        yield
