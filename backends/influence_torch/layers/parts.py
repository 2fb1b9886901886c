"""A part of a module that has layers: where it is watched, and what the layers see there.

A part computes `z` from `a` at one or several sites. With `ε = 0` added to `z`, the gradients in
`ε` are those in `z`; how `a` and they become `(n, s, i)` and `(c, n, s, o)` is up to the kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from influence_core.problem import FreeParameters, Layer

OnCall: TypeAlias = Callable[[str, Tensor, Tensor], Tensor]
"""`(site, a, z)` ↦ what takes the place of `z`."""

Seen: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""Layer ↦ inputs `(n, …, i)` and gradients `(c, n, …, o)`, with the same positions `…`."""


@dataclass(frozen=True)
class Part(ABC):
    """A module with layers.

    Attributes:
        name: of the module in the model.
    """

    name: str

    @property
    @abstractmethod
    def layers(self) -> Mapping[str, Layer | FreeParameters]:
        """Name to layer."""

    @abstractmethod
    def seen(self, site: str, a: Tensor, g: Tensor) -> Seen:
        """Return what the layers of a site see.

        Args:
            site: the name of a site.
            a: what it was called with, `(n, q, …)`: with `q` entries of each of the `n` points
                along what the module takes for the axis of its batch.
            g: the gradients in what it returned, `(c, n, q, …)`.
        """

    def watched(self, module: nn.Module, on_call: OnCall) -> AbstractContextManager[None]:
        """Return the context in which every `z` of the part passes through `on_call`.

        The only site is the call of the module itself, unless a kind says otherwise.
        """
        return _hooked(self.name, module, on_call)


@contextmanager
def _hooked(name: str, module: nn.Module, on_call: OnCall) -> Iterator[None]:
    def hook(
        _module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], z: Tensor
    ) -> Tensor:
        a, *_ = (*arguments, *keywords.values())
        return on_call(name, a, z)

    # before the hooks of the user: they may change what the layer returns
    handle = module.register_forward_hook(hook, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


Named: TypeAlias = Callable[[nn.Module, str], "str | None"]
"""`(module, own name)` ↦ the model's name of its parameter, if it wants gradients there alone."""
