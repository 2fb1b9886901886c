"""`nn.MultiheadAttention`: projections of queries, keys and values, and one of the outputs.

torch computes them inside one function, where no hook of a module can see them. While the part is
watched, its forward pass is the one written out here: Vaswani et al., Attention is all you need,
NeurIPS 2017, with the options of the module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_core.problem import Layer
from influence_torch.layers.parts import Named, OnCall, Part, Seen

_PROJECTIONS = ("q", "k", "v")


@dataclass(frozen=True)
class Attention(Part):
    """Four affine layers: ``q``, ``k``, ``v`` and ``out_proj`` of the module.

    Attributes:
        own: the layers, by the names of their sites.
    """

    own: Mapping[str, Layer]

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name to layer."""
        return {self._named(site): layer for site, layer in self.own.items()}

    @contextmanager
    def watched(self, module: nn.Module, on_call: OnCall) -> Iterator[None]:
        """Replace the forward pass of the module by the one in which every projection is seen."""

        def named(site: str, a: Tensor, z: Tensor) -> Tensor:
            return on_call(self._named(site), a, z)

        module.forward = partial(_attend, module, named)
        try:
            yield
        finally:
            del module.forward

    def seen(self, site: str, a: Tensor, g: Tensor) -> Seen:
        """Return both as they are."""
        return {site: (a, g)}

    def _named(self, site: str) -> str:
        return f"{self.name}.{site}" if self.name else site


def attention(name: str, module: nn.MultiheadAttention, named: Named) -> Attention:
    """Return the part that an `nn.MultiheadAttention` is."""
    width, out = module.embed_dim, module.out_proj
    if module._qkv_same_embed_dim:
        weight, bias = named(module, "in_proj_weight"), named(module, "in_proj_bias")
        layers = {
            site: Layer(weight, bias, width, width, first=index * width)
            for index, site in enumerate(_PROJECTIONS)
        }
    else:  # the bias is one vector of three weights: it stays free
        widths = (width, module.kdim, module.vdim)
        layers = {
            site: Layer(named(module, f"{site}_proj_weight"), None, inputs, width)
            for site, inputs in zip(_PROJECTIONS, widths, strict=True)
        }
    layers["out_proj"] = Layer(named(out, "weight"), named(out, "bias"), width, width)
    return Attention(name, layers)


def _attend(
    module: nn.MultiheadAttention,
    on_call: OnCall,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,  # noqa: ARG001 - says what `attn_mask` is, no more
) -> tuple[Tensor, Tensor | None]:
    """Return what the module returns for the same arguments, in eval mode."""
    batched = query.ndim == 3
    inputs = [_points_first(t, batched, module.batch_first) for t in (query, key, value)]
    q, k, v = _projected(module, on_call, inputs)
    mask = _joined_mask(attn_mask, key_padding_mask, module.num_heads, q, k)
    k, v, mask = _extended(module, k, v, mask)
    q, k, v = (_heads(t, module.num_heads) for t in (q, k, v))  # (n, h, t, e)
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    weights = (logits if mask is None else logits + mask).softmax(dim=-1)
    context = (weights @ v).transpose(1, 2).flatten(-2)
    out = module.out_proj
    answer = on_call("out_proj", context, F.linear(context, out.weight, out.bias))
    if batched and not module.batch_first:
        answer = answer.transpose(0, 1)
    shown = (weights.mean(dim=1) if average_attn_weights else weights) if need_weights else None
    if batched:
        return answer, shown
    return answer.squeeze(0), None if shown is None else shown.squeeze(0)


def _points_first(tensor: Tensor, batched: bool, batch_first: bool) -> Tensor:
    if not batched:
        return tensor.unsqueeze(0)
    return tensor if batch_first else tensor.transpose(0, 1)


def _projected(module: nn.MultiheadAttention, on_call: OnCall, inputs: list[Tensor]) -> list[Any]:
    width = module.embed_dim
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.split(width)
    else:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    bias = module.in_proj_bias
    biases = (None, None, None) if bias is None else bias.split(width)
    return [
        on_call(site, a, F.linear(a, weight, bias))
        for site, a, weight, bias in zip(_PROJECTIONS, inputs, weights, biases, strict=True)
    ]


def _joined_mask(
    mask: Tensor | None, padding: Tensor | None, heads: int, q: Tensor, k: Tensor
) -> Tensor | None:
    """Return what is added to the logits, `(n, h, t, s)` up to broadcasting."""
    n = q.shape[0]
    parts = []
    if mask is not None:
        mask = _additive(mask, q)
        parts.append(mask if mask.ndim == 2 else mask.reshape(n, heads, *mask.shape[1:]))
    if padding is not None:
        parts.append(_additive(padding, q).reshape(n, 1, 1, k.shape[1]))
    return sum(parts[1:], start=parts[0]) if parts else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def _extended(
    module: nn.MultiheadAttention, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append the keys and values that the module adds to those of the sequence; no mask on them."""
    n, before, width = k.shape
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k.expand(n, 1, width)], dim=1)
        v = torch.cat([v, module.bias_v.expand(n, 1, width)], dim=1)
    if module.add_zero_attn:
        k, v = (torch.cat([t, t.new_zeros(n, 1, width)], dim=1) for t in (k, v))
    return k, v, mask if mask is None else F.pad(mask, (0, k.shape[1] - before))


def _heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)
