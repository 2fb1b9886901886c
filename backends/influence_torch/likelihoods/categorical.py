"""Cross-entropy: a class at every position, with the probabilities of a softmax.

The label at a position `t` of a point has the probabilities `p_t`, the softmax of its outputs,
independently of the others. With `w_t` the share of the position in the loss of the point, the
gradient in the outputs at label `c` is `w_t (p_t - e_c)`, whose mean over the labels is zero: what
is quadratic in the gradient of the point has as its mean over the labels the sum over `t` and `c`
of what it is for `√p_tc · w_t (p_t - e_c)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from influence_core.errors import LossError
from influence_core.modes import LabelKind
from influence_core.problem import Labels
from influence_torch.likelihoods.base import FEW, Likelihood, Slices, kind_or

# as in torch: the label of a position that has no loss
IGNORED = -100


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the points of the mean cross-entropy over the positions of a point.

    Args:
        outputs: logits, `(n, classes)`; for sequences and images `(n, classes, …)` as in torch, or
            `(n, …, classes)` as language models have them.
        y: labels, `(n,)` or `(n, …)`, where -100 marks a position that does not count; or
            probabilities in the shape of `outputs`, whose axis 1 are then the classes.

    Raises:
        LossError: the shapes do not go together, or in both ways.
    """
    outputs = outputs.movedim(_class_axis(outputs, y), 1)
    losses = F.cross_entropy(outputs, y, reduction="none")
    shares = _averaged(_counts(outputs, y, IGNORED))
    return (losses.reshape(shares.shape) * shares).sum(dim=1).mean()


def next_token_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the points of the mean cross-entropy of every next token.

    The output at a position is held against the token behind it, as causal language models are
    trained; the last output has none.

    Args:
        outputs: logits, `(n, t, classes)`.
        y: tokens, `(n, t)`, those of the inputs; -100 marks one that does not count.

    Raises:
        LossError: the shapes do not go together.
    """
    if y.ndim != 2 or outputs.shape[:-1] != y.shape:
        raise LossError(
            "`next_token_cross_entropy(outputs, y)` needs outputs (n, t, classes) for tokens (n, t)"
            f"; got outputs {tuple(outputs.shape)} and tokens {tuple(y.shape)}. Bring the outputs "
            "into this form, through `forward=` say."
        )
    outputs, y = outputs.movedim(-1, 1), _next(y)
    losses = F.cross_entropy(outputs, y, reduction="none")
    return (losses * _averaged(_counts(outputs, y, IGNORED))).sum(dim=1).mean()


@dataclass(frozen=True)
class Categorical(Likelihood):
    """The distribution that a cross-entropy belongs to.

    Attributes:
        anywhere: whether the shapes tell the axis of the classes; otherwise it is axis 1.
        averaged: whether the loss of a point is the mean over its positions, or their sum.
        ignored: the label of a position that does not count.
        shifted: whether an output is held against the label behind it; the classes come last then.
    """

    anywhere: bool
    averaged: bool = True
    ignored: int = IGNORED
    shifted: bool = False

    def slices(self, outputs: Tensor, y: Tensor, labels: Labels) -> Slices:
        """Return the gradients at expected or sampled labels."""
        softmax = self._softmax(outputs, y)
        _, positions, classes = softmax.probabilities.shape
        few = positions == 1 and classes <= FEW
        if kind_or(labels, LabelKind.EXPECTED if few else LabelKind.SAMPLED) is LabelKind.EXPECTED:
            return softmax.expected()
        return softmax.sampled(torch.tensor(labels.uniforms(positions)))

    def _aligned(self, outputs: Tensor, y: Tensor) -> tuple[int, Tensor]:
        """Return the axis of the classes, and the labels that stand where their outputs do."""
        if self.shifted:
            return -1, _next(y)
        return _class_axis(outputs, y) if self.anywhere else 1, y

    def _softmax(self, outputs: Tensor, y: Tensor) -> _Softmax:
        axis, y = self._aligned(outputs, y)
        probabilities = outputs.softmax(axis).movedim(axis, -1)
        counts = _counts(outputs.movedim(axis, 1), y, self.ignored)
        shares = _averaged(counts) if self.averaged else counts

        def restore(gradients: Tensor) -> Tensor:
            return gradients.reshape(probabilities.shape).movedim(-1, axis)

        flat = probabilities.reshape(*shares.shape, probabilities.shape[-1])
        return _Softmax(flat, shares, restore)


@dataclass(frozen=True)
class _Softmax:
    """Independent distributions at the `t` positions of `n` points.

    Attributes:
        probabilities: `p`, `(n, t, classes)`.
        shares: `w`, `(n, t)`.
        restore: `(n, t, classes)` ↦ the shape of the outputs.
    """

    probabilities: Tensor
    shares: Tensor
    restore: Callable[[Tensor], Tensor]

    def expected(self) -> Slices:
        """Return `√p_tc · w_t (p_t - e_c)`: a slice a position and class."""
        _, positions, classes = self.probabilities.shape
        place, label = self._range(positions), self._range(classes)

        def cotangent(row: Mapping[str, Tensor]) -> Tensor:
            chosen = label == row["label"]
            roots = (self.probabilities * chosen).sum(dim=-1).sqrt()
            return self._gradients(chosen, roots * (place == row["position"]))

        rows = {"position": place.repeat_interleave(classes), "label": label.repeat(positions)}
        return Slices(rows, cotangent)

    def sampled(self, uniforms: Tensor) -> Slices:
        """Return `1/√draws · w (p - e_label)`, labels where `p` sums up to more than a uniform.

        Args:
            uniforms: numbers in [0, 1), `(draws, n, t)`.
        """
        sums = self.probabilities.cumsum(dim=-1)
        uniforms = uniforms.to(sums) * sums[..., -1]  # the last sum is 1 up to rounding
        labels = torch.searchsorted(sums, uniforms.movedim(0, -1).contiguous(), right=True)
        labels = labels.clamp(max=sums.shape[-1] - 1).movedim(-1, 0)
        scale = torch.full_like(self.shares, 1 / math.sqrt(labels.shape[0]))

        def cotangent(row: Mapping[str, Tensor]) -> Tensor:
            chosen = row["labels"].unsqueeze(-1) == self._range(sums.shape[-1])
            return self._gradients(chosen, scale)

        return Slices({"labels": labels}, cotangent)

    def _gradients(self, chosen: Tensor, scale: Tensor) -> Tensor:
        gradients = self.probabilities - chosen.to(self.probabilities.dtype)
        return self.restore(gradients * (self.shares * scale).unsqueeze(-1))

    def _range(self, count: int) -> Tensor:
        return torch.arange(count, device=self.probabilities.device)


def _class_axis(outputs: Tensor, y: Tensor) -> int:
    shape, target = tuple(outputs.shape), tuple(y.shape)
    if y.is_floating_point() and shape == target:
        return 1
    first, last = shape[:1] + shape[2:] == target, shape[:-1] == target
    if len(shape) < 2 or not (first or last):
        raise LossError(
            "`cross_entropy(outputs, y)` needs outputs (n, classes, …) or (n, …, classes) for "
            f"labels (n, …); got outputs {shape} and labels {target}. Bring them into this form, "
            "through `forward=` say."
        )
    if first and last and len(shape) > 2:
        raise LossError(
            f"`cross_entropy(outputs, y)` cannot tell which axis of the outputs {shape} are the "
            f"classes: the labels {target} go with axis 1 and with the last. Pass "
            "`loss=torch.nn.functional.cross_entropy`, which takes axis 1; where the classes are "
            "last, move them there by `forward=lambda model, x: model(x).movedim(-1, 1)`."
        )
    return 1 if first else -1


def _next(tokens: Tensor) -> Tensor:
    """Return the tokens one place behind, `(n, t)`; the last place has none."""
    return F.pad(tokens[:, 1:], (0, 1), value=IGNORED)


def _counts(outputs: Tensor, y: Tensor, ignored: int) -> Tensor:
    """Return 1 for every position that counts and 0 for the others, `(n, t)`; classes on axis 1."""
    ones = torch.ones_like(outputs[:, 0]).reshape(outputs.shape[0], -1)
    return ones if y.is_floating_point() else ones * (y != ignored).reshape(ones.shape)


def _averaged(counts: Tensor) -> Tensor:
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
