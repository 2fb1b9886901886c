"""Which module of a model is a part of which kind, and which parameters are left over.

A parameter that several modules hold is no part's: what one of them sees is only a piece of its
gradient. Neither is one of a module of torch that has no rule here. Both stay free, with a fault;
the parameters of a user's own module are free as they should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from influence_core.problem import FreeParameters, Layer
from influence_torch.layers.affine import linear, transposed
from influence_torch.layers.attention import attention
from influence_torch.layers.convolution import convolution
from influence_torch.layers.embedding import embedding
from influence_torch.layers.normalization import over_channels, over_last_axes
from influence_torch.layers.parts import Named, Part
from influence_torch.snapshot import Snapshot

_Rule = Callable[[str, Any, Named], "Part | None"]

# A subclass counts as its base where it computes the same.
_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: over_last_axes,
    nn.RMSNorm: over_last_axes,
    nn.GroupNorm: over_channels,
    nn.modules.batchnorm._BatchNorm: over_channels,
    nn.modules.instancenorm._InstanceNorm: over_channels,
    nn.MultiheadAttention: attention,
}
# of another library, which need not be installed
_RULES_BY_NAME: dict[str, _Rule] = {"transformers.pytorch_utils.Conv1D": transposed}


@dataclass(frozen=True)
class Parts:
    """The parts of a model, and its parameters of no part.

    Attributes:
        watched: the parts, in the order of the modules.
        free: name to free parameters.
    """

    watched: tuple[Part, ...]
    free: Mapping[str, FreeParameters]

    @cached_property
    def layers(self) -> dict[str, Layer | FreeParameters]:
        """Name to layer of all that have a parameter of the problem."""
        own = {name: layer for part in self.watched for name, layer in part.layers.items()}
        return {name: layer for name, layer in (own | self.free).items() if parameters_of(layer)}

    def of(self, names: Iterable[str]) -> tuple[Part, ...]:
        """Return the parts that have one of the layers."""
        wanted = set(names)
        return tuple(part for part in self.watched if not wanted.isdisjoint(part.layers))


def find_parts(snapshot: Snapshot) -> Parts:
    """Return the parts of a model, and what is free among the parameters that want gradients."""
    module, holders = snapshot.module, _holders(snapshot.module)
    names = {p: name for name, p in module.named_parameters() if name in snapshot.parameters}

    def named(part: nn.Module, own: str) -> str | None:
        parameter = part._parameters.get(own)  # not what a parametrization computes
        alone = parameter is not None and len(holders[parameter]) == 1
        return names.get(parameter) if alone else None

    watched: list[Part] = []
    inner: set[nn.Module] = set()  # what a part computes itself
    for name, part in module.named_modules():
        rule = None if part in inner else _rule(part)
        seen = rule(name, part, named) if rule else None
        if seen is not None:
            inner.update(part.modules())
            watched.append(seen)
    taken = {
        name for part in watched for own in part.layers.values() for name in parameters_of(own)
    }
    left = {p: name for p, name in names.items() if name not in taken}
    return Parts(tuple(watched), dict(_free(left, holders)))


def parameters_of(layer: Layer | FreeParameters) -> tuple[str, ...]:
    """Return the names of the parameters of a layer."""
    if isinstance(layer, FreeParameters):
        return layer.names
    return tuple(name for name in (layer.weight, layer.bias) if name is not None)


def _holders(module: nn.Module) -> dict[Tensor, list[tuple[str, nn.Module]]]:
    holders: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for name, part in module.named_modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, []).append((name, part))
    return holders


def _rule(module: nn.Module) -> _Rule | None:
    kind = type(module)
    if "forward" in vars(module):
        return None
    for base, rule in _RULES.items():
        if isinstance(module, base) and kind.forward is base.forward:
            return rule
    return next(
        (
            _RULES_BY_NAME[name]
            for base in kind.__mro__
            if (name := f"{base.__module__}.{base.__qualname__}") in _RULES_BY_NAME
            and kind.forward is base.forward
        ),
        None,
    )


def _free(
    parameters: Mapping[Tensor, str], holders: Mapping[Tensor, list[tuple[str, nn.Module]]]
) -> Iterator[tuple[str, FreeParameters]]:
    """Yield name -> free parameters: those of a module together, where nothing is wrong."""
    together: dict[str, list[Tensor]] = {}
    for parameter, name in parameters.items():
        fault = _fault(holders[parameter])
        if fault is None:
            ((holder, _),) = holders[parameter]
            together.setdefault(holder or name, []).append(parameter)
        else:
            yield name, FreeParameters((name,), parameter.numel(), fault)
    for holder, own in together.items():
        names = tuple(parameters[parameter] for parameter in own)
        yield holder, FreeParameters(names, sum(parameter.numel() for parameter in own))


def _fault(holders: list[tuple[str, nn.Module]]) -> str | None:
    if len(holders) > 1:
        return f"the modules {' and '.join(repr(name) for name, _ in holders)} share it"
    ((name, module),) = holders
    if type(module).__module__.startswith("torch.nn.modules.") and not isinstance(
        module, nn.ParameterList | nn.ParameterDict | nn.MultiheadAttention
    ):
        return f"{type(module).__name__} ({name or 'root'}) is no layer that can be factored"
    return None
