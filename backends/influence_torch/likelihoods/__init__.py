"""The distributions of labels that losses belong to, and gradients at labels drawn from them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from influence_core.errors import CapabilityError
from influence_core.modes import LabelKind
from influence_torch.likelihoods.base import Likelihood, Slices, one_slice
from influence_torch.likelihoods.bernoulli import Bernoulli
from influence_torch.likelihoods.categorical import (
    Categorical,
    cross_entropy,
    next_token_cross_entropy,
)
from influence_torch.likelihoods.gaussian import Gaussian
from influence_torch.losses import Loss

__all__ = [
    "Likelihood",
    "Slices",
    "cross_entropy",
    "known_likelihood",
    "next_token_cross_entropy",
    "one_slice",
]

_KNOWN = (
    "influence_torch.cross_entropy and next_token_cross_entropy, and torch's cross_entropy, "
    "binary_cross_entropy, binary_cross_entropy_with_logits and mse_loss, or CrossEntropyLoss, "
    "BCELoss, BCEWithLogitsLoss and MSELoss, without weights, label smoothing and ignore_index >= 0"
)

_FUNCTIONS: dict[Loss, Likelihood] = {
    cross_entropy: Categorical(anywhere=True),
    next_token_cross_entropy: Categorical(anywhere=False, shifted=True),
    F.cross_entropy: Categorical(anywhere=False),
    F.binary_cross_entropy_with_logits: Bernoulli(),
    F.binary_cross_entropy: Bernoulli(logits=False),
    F.mse_loss: Gaussian(),
}


def known_likelihood(loss: Loss, kind: LabelKind | None) -> Likelihood:
    """Return the distribution that `loss` belongs to.

    Raises:
        CapabilityError: it is not known; `kind` of labels was asked for.
    """
    found = _of_module(loss) if isinstance(loss, nn.Module) else _of_function(loss)
    if found is not None:
        return found
    asked = f"labels={kind.value!r}" if kind else "labels=None"
    raise CapabilityError(
        f"`{asked}` needs a loss whose distribution is known: {_KNOWN}; got "
        f"{getattr(loss, '__qualname__', loss)!r}. Pass one of these, or `labels='given'` for the "
        "labels of the data (the empirical Fisher)."
    )


def _of_function(loss: Loss) -> Likelihood | None:
    return next((found for known, found in _FUNCTIONS.items() if loss is known), None)


def _of_module(loss: nn.Module) -> Likelihood | None:
    # a subclass may compute anything
    averaged, kind = getattr(loss, "reduction", "mean") == "mean", type(loss)
    if kind is nn.CrossEntropyLoss and _is_plain(loss):
        return Categorical(False, averaged, loss.ignore_index)
    if kind is nn.BCEWithLogitsLoss and loss.weight is None and loss.pos_weight is None:
        return Bernoulli(averaged)
    if kind is nn.BCELoss and loss.weight is None:
        return Bernoulli(averaged, logits=False)
    return Gaussian(averaged) if kind is nn.MSELoss else None


def _is_plain(loss: nn.CrossEntropyLoss) -> bool:
    # a label from 0 on that is ignored is one that the model can give
    return loss.weight is None and loss.label_smoothing == 0.0 and loss.ignore_index < 0
