"""The distribution of the labels that a loss belongs to, and gradients at labels drawn from it.

Under cross-entropy the label at a position `t` of a point has the probabilities `p_t`, the softmax
of its outputs, independently of the others. With `w_t` the share of the position in the loss of
the point, the gradient in the outputs at label `c` is `w_t (p_t - e_c)`, whose mean over the labels
is zero: what is quadratic in the gradient of the point has as its mean over the labels the sum over
`t` and `c` of what it is for `√p_tc · w_t (p_t - e_c)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_core.errors import CapabilityError, LossError
from influence_core.modes import LabelKind
from influence_core.problem import Labels
from influence_torch.losses import Loss

# as in torch: the label of a position that has no loss
_IGNORED = -100
# up to here the exact expectation is what is meant where nobody says
_FEW_CLASSES = 32

_KNOWN = (
    "influence_torch.likelihoods.cross_entropy, torch.nn.functional.cross_entropy and "
    "torch.nn.CrossEntropyLoss without class weights, label smoothing and ignore_index >= 0"
)


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
    shares = _averaged(_counts(outputs, y, _IGNORED))
    return (losses.reshape(shares.shape) * shares).sum(dim=1).mean()


@dataclass(frozen=True)
class Slices:
    """Gradients in the outputs of a model, or in something that is made of them, one a slice.

    Attributes:
        rows: what tells the slices apart, tensors `(c, …)`.
        cotangent: a row ↦ the gradients in the target.
        target: the outputs ↦ what the gradients belong to.
    """

    rows: dict[str, Tensor]
    cotangent: Callable[[Mapping[str, Tensor]], Tensor]
    target: Callable[[Any], Tensor] = lambda outputs: outputs

    @property
    def count(self) -> int:
        """Number of slices `c`."""
        return next(iter(self.rows.values())).shape[0]


def one_slice(total: Callable[[Any], Tensor], outputs: Any) -> Slices:
    """Return the gradient of a number, `outputs ↦ ()`."""
    one = torch.ones_like(total(outputs)).unsqueeze(0)
    return Slices({"one": one}, lambda row: row["one"], total)


@dataclass(frozen=True)
class Likelihood:
    """The distribution that a cross-entropy belongs to.

    Attributes:
        anywhere: whether the shapes tell the axis of the classes; otherwise it is axis 1.
        averaged: whether the loss of a point is the mean over its positions, or their sum.
        ignored: the label of a position that does not count.
    """

    anywhere: bool
    averaged: bool = True
    ignored: int = _IGNORED

    def slices(self, outputs: Tensor, y: Tensor, labels: Labels) -> Slices:
        """Return the gradients at expected or sampled labels.

        Where the kind is None: at expected ones for one distribution a point over few classes.
        """
        softmax = self._softmax(outputs, y)
        _, positions, classes = softmax.probabilities.shape
        few = positions == 1 and classes <= _FEW_CLASSES
        kind = labels.kind or (LabelKind.EXPECTED if few else LabelKind.SAMPLED)
        if kind is LabelKind.EXPECTED:
            return softmax.expected()
        return softmax.sampled(torch.tensor(labels.uniforms(positions)))

    def _softmax(self, outputs: Tensor, y: Tensor) -> _Softmax:
        axis = _class_axis(outputs, y) if self.anywhere else 1
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


def known_likelihood(loss: Loss, kind: LabelKind | None) -> Likelihood:
    """Return the distribution that `loss` belongs to.

    Raises:
        CapabilityError: it is not known; `kind` of labels was asked for.
    """
    if loss is cross_entropy:
        return Likelihood(anywhere=True)
    if loss is F.cross_entropy:
        return Likelihood(anywhere=False)
    if type(loss) is nn.CrossEntropyLoss and _is_plain(loss):
        return Likelihood(False, loss.reduction == "mean", loss.ignore_index)
    asked = f"labels={kind.value!r}" if kind else "labels=None"
    raise CapabilityError(
        f"`{asked}` needs a loss whose distribution is known: {_KNOWN}; got "
        f"{getattr(loss, '__qualname__', loss)!r}. Pass one of these, or `labels='given'` for the "
        "labels of the data (the empirical Fisher)."
    )


def _is_plain(loss: nn.CrossEntropyLoss) -> bool:
    # a label from 0 on that is ignored is one that the model can give
    return loss.weight is None and loss.label_smoothing == 0.0 and loss.ignore_index < 0


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


def _counts(outputs: Tensor, y: Tensor, ignored: int) -> Tensor:
    """Return 1 for every position that counts and 0 for the others, `(n, t)`; classes on axis 1."""
    ones = torch.ones_like(outputs[:, 0]).reshape(outputs.shape[0], -1)
    return ones if y.is_floating_point() else ones * (y != ignored).reshape(ones.shape)


def _averaged(counts: Tensor) -> Tensor:
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
