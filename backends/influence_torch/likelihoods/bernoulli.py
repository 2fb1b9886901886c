"""Binary cross-entropy: every output is a label of its own, 1 with the probability of a sigmoid.

With `w` the share of the output in the loss of its point, the gradient in a logit at the label `b`
is `w (p - b)`, whose root mean square over the labels is `w √(p (1 - p))`. Where the outputs are
the probabilities themselves, both are divided by `p (1 - p)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from influence_torch.likelihoods.base import Independent

# as in the derivative of torch's `binary_cross_entropy`
_LEAST = 1e-12


@dataclass(frozen=True)
class Bernoulli(Independent):
    """The distribution that a binary cross-entropy belongs to.

    Attributes:
        logits: whether the outputs are logits, or probabilities.
    """

    logits: bool = True

    def deviation(self, outputs: Tensor, share: float) -> Tensor:
        """Return `w √(p (1 - p))` for logits, `w / √(p (1 - p))` for probabilities."""
        p = outputs.sigmoid() if self.logits else outputs
        root = (p * (1 - p)).clamp(min=0.0 if self.logits else _LEAST).sqrt()
        return share * root if self.logits else share / root

    def gradients(self, outputs: Tensor, share: float, uniforms: Tensor) -> Tensor:
        """Return the gradients at the label 1 where a uniform is `1 - p` or more, else 0."""
        p = outputs.sigmoid() if self.logits else outputs
        gradients = share * (p - (uniforms >= 1 - p).to(p))
        return gradients if self.logits else gradients / (p * (1 - p)).clamp(min=_LEAST)
