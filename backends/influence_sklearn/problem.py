"""A fitted scikit-learn estimator as a `Problem`: closed forms on any array library.

The mathematics is that of `influence_core.testing`, for one affine layer. Here stands what is
scikit-learn's: which loss and penalty an estimator has, and what it takes as data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from influence_core.arrays import from_host, namespace
from influence_core.errors import CapabilityError, OptionError
from influence_core.memory import check_memory
from influence_core.problem import Array
from influence_core.testing import ClosedFormBatch, ClosedFormProblem
from influence_core.testing.batch import make_batch
from influence_sklearn.data import columns, features, labels, numbers, unpack
from influence_sklearn.estimators import read


class SklearnProblem(ClosedFormProblem):
    """The loss of a `LinearRegression`, `Ridge` or `LogisticRegression`, seen through derivatives.

    The objective is the estimator's own, divided by the number of points (or the sum of their
    weights): mean loss plus penalty. Its Hessian is right at `regularization=0`; a λ is damping
    beside the penalty. The parameters are ``"coef"`` `(o, i)` and ``"intercept"`` `(o,)`.

    Args:
        estimator: fitted, or a pipeline that ends in one; the transformers before it are constant.
        loss: None, for the estimator's own.
        device: where to work; None for where the parameters lie.
        max_memory: bytes that the arrays of a product may take, as far as fewer vectors at a time
            can bring that about; None allows 1 GiB.
        like: an array of the library, dtype and device to compute in; None for those of the
            estimator's coefficients, in float64.
        class_weight: label to weight, in place of the estimator's own.
        **unknown: refused, with a message that lists the options.

    Raises:
        ModelError: the estimator is not fitted or not supported.
        CapabilityError: its penalty is not quadratic.
        OptionError: a keyword has a value that is not allowed, or is unknown.
    """

    def __init__(
        self,
        estimator: Any,
        loss: None = None,
        *,
        device: Any = None,
        max_memory: int | None = None,
        like: Array | None = None,
        class_weight: Mapping[Any, float] | None = None,
        **unknown: Any,
    ) -> None:
        """Read the estimator and check it."""
        if unknown:
            raise OptionError(
                "the scikit-learn backend knows the options 'max_memory', 'like' and "
                f"'class_weight'; got {', '.join(map(repr, unknown))}. Correct the name, or leave "
                "it out."
            )
        if loss is not None:
            raise OptionError(
                f"`loss` must be None: an estimator brings the loss that it was fitted with; got "
                f"{loss!r}."
            )
        self._model = read(estimator, like, class_weight)
        memory = check_memory(max_memory)
        super().__init__(self._model, device=device, max_memory=memory)

    def batch(self, data: Any) -> ClosedFormBatch:
        """Check some points and bring them to the library, dtype and device of the computation.

        Args:
            data: `(X, y)`, `(X, y, sample_weight)` or `(X, Weighted(y, sample_weight))`, as the
                estimator takes them: any arrays, data frames, sparse matrices, labels of any kind.

        Raises:
            DataError: no points, lengths that differ, shapes, columns or labels of another fit.
            DataTypeError: what has to be numbers is not.
        """
        raw, y, weights = unpack(data)
        model, like = self._model, self.reference
        x = features(model.transform(raw), model.feature_names, like)
        outputs, classes = like.shape[0], model.classes
        targets = columns(y, outputs, like) if classes is None else labels(y, classes)
        if weights is not None:
            weights = numbers(weights, "sample_weight", like)
        weights = self._class_weighted(weights, targets)
        checked = (x, targets) if weights is None else (x, targets, weights)
        return make_batch(checked, self._loss, outputs, like)

    def penalty(self, names: Sequence[str], weight: float) -> Array:
        """Return the diagonal second derivative of the penalty over `weight`, `(d,)`."""
        shapes, own = self.parameters, self._model.penalties
        parts = [np.broadcast_to(own.get(name, np.zeros(())), shapes[name]) for name in names]
        flat = np.concatenate([np.reshape(part, math.prod(part.shape)) for part in parts])
        return from_host(flat / weight, self.reference)

    def mixed_gradient_products(
        self, batch: ClosedFormBatch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, i)`.

        Raises:
            CapabilityError: the estimator is a pipeline, whose steps have no known derivative.
        """
        if self._model.steps:
            raise CapabilityError(
                "mode='perturbation' needs the derivative of the inputs; a pipeline transforms "
                f"them by {[name for name, _ in self._model.steps]}. Transform X first, and pass "
                "the last step of the pipeline as the estimator."
            )
        return super().mixed_gradient_products(batch, v, names)

    def hessian_quadratics(self, batch: ClosedFormBatch, v: Array, names: Sequence[str]) -> Array:
        """Return `vᵢ · ∇²ℓᵢ · vᵢᵀ = ⟨Jᵢvᵢ, (∇²_f ℓᵢ) Jᵢvᵢ⟩`, `(n,)`, for `v` of shape `(n, d)`."""
        xp, f = namespace(v), self._trace(batch).outputs
        direction = self._direction(v, names)
        tangent = (direction["coef"] @ batch.x[:, :, None])[:, :, 0]
        if "intercept" in direction:
            tangent = tangent + direction["intercept"]
        return xp.sum(tangent * self._loss.curvature(f, tangent), axis=-1)

    def generalized_gauss_newton_quadratics(
        self, batch: ClosedFormBatch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return the same: outputs that are linear in the parameters have no curvature."""
        return self.hessian_quadratics(batch, v, names)

    def loss_changes(self, batch: ClosedFormBatch, changes: Array) -> Array:
        """Return `ℓᵢ(θ + Δ) - ℓᵢ(θ)`, `(k, n)`, for every row `Δ` of `changes`, `(k, p)`."""
        passed, names = self._trace(batch), list(self.parameters)
        before = self._loss.values(passed.outputs, batch.targets)

        def product(rows: Array) -> Array:
            _, tangent = passed.push(self._direction(rows, names))
            return self._loss.values(passed.outputs + tangent, batch.targets) - before

        return self._by_rows(product, changes, batch)

    def _class_weighted(self, weights: Array | None, places: Any) -> Array | None:
        by_class = self._model.class_weights
        if by_class is None:
            return weights
        own = from_host(by_class[places], self.reference)
        if weights is None:
            return own
        # other lengths are refused with the batch
        return own * weights if weights.shape == own.shape else weights
