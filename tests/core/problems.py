"""Small models with data, shared by the tests of the core.

setting = make_setting("tanh_squared", library)
problem = setting.problem()
fitted(setting, Direct(), regularization=0.1).influences(*setting.test(4), *setting.train)
setting.oracle().influences(*setting.host_test(4), *setting.host_train, regularization=0.1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from namespaces import NUMPY, Library
from oracle import Oracle

from influence_core import Cg, Direct, Influence, Method
from influence_core.testing import (
    BACKEND,
    ClosedFormProblem,
    LeastSquares,
    Logistic,
    TanhNetwork,
)

N = 23
FEW, MANY = 4, 31
INPUTS, HIDDEN, OUTPUTS = 4, 5, 3

# Convex: every curvature is positive semi-definite. The Hessian of least squares is positive
# definite; that of logistic regression after any λ > 0 (the softmax ignores a common shift).
CONVEX_KINDS = ("least_squares", "logistic")
KINDS = (*CONVEX_KINDS, "tanh_squared", "tanh_cross_entropy")
CURVATURES = ("hessian", "gauss_newton", "generalized_gauss_newton")
REGULARIZATIONS = (1e-3, 1e-2, 1e-1)

# What conjugate gradient is for: `C + λI` is positive definite.
DEFINITE = [
    (kind, curvature)
    for kind in KINDS
    for curvature in CURVATURES
    if kind in CONVEX_KINDS or curvature != "hessian"
]

# One of each kind, for the tests that run on every library.
REPRESENTATIVE = [
    ("least_squares", "hessian"),
    ("logistic", "hessian"),
    ("tanh_squared", "gauss_newton"),
    ("tanh_cross_entropy", "generalized_gauss_newton"),
]

# `Direct` solves an indefinite system, and says that it is one: test_direct.py sees it do so.
may_be_indefinite = pytest.mark.filterwarnings(
    "ignore:.* is indefinite:influence_core.ConditioningWarning"
)

Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def make_model(kind: str, library: Library = NUMPY, seed: int = 0) -> Any:
    """Return a random model, one of `KINDS`."""
    like = library.array(0.0)
    if kind == "least_squares":
        return LeastSquares.random(INPUTS, OUTPUTS, seed=seed, like=like)
    if kind == "logistic":
        return Logistic.random(INPUTS, OUTPUTS, seed=seed, like=like)
    loss = kind.removeprefix("tanh_")
    return TanhNetwork.random(INPUTS, HIDDEN, OUTPUTS, loss=loss, seed=seed, like=like)


def make_data(loss: str, n: int, seed: int) -> Pair:
    """Return `x` `(n, INPUTS)` and the targets of `n` random points, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, INPUTS))
    if loss == "squared":
        return x, rng.standard_normal((n, OUTPUTS))
    return x, rng.integers(0, OUTPUTS, n)


@dataclass(frozen=True)
class Setting:
    """A model in a library, and training data of `N` points on the host.

    Attributes:
        library: holds the model; `train`, `test` and `loader` hand out its arrays.
        model: one of the models of `influence_core.testing`.
        host_train: `(x, y)` as NumPy arrays.
    """

    library: Library
    model: Any
    host_train: Pair

    @property
    def parameters(self) -> dict[str, npt.NDArray[np.float64]]:
        """The parameters as float64 NumPy arrays."""
        return {
            name: self.library.host(a).astype(np.float64)
            for name, a in self.model.parameters.items()
        }

    @property
    def train(self) -> tuple[Any, Any]:
        """`(x, y)` of the training points."""
        return self._arrays(self.host_train)

    def host_test(self, m: int = FEW) -> Pair:
        """`(x, y)` of `m` test points, as NumPy arrays."""
        return make_data(self.model.loss, m, seed=100 + m)

    def test(self, m: int = FEW) -> tuple[Any, Any]:
        """`(x, y)` of `m` test points."""
        return self._arrays(self.host_test(m))

    def loader(self, batch_size: int = 5) -> list[tuple[Any, Any]]:
        """The training points in batches; the last one is short unless the size divides `N`."""
        x, y = self.host_train
        starts = range(0, N, batch_size)
        return [self._arrays((x[s : s + batch_size], y[s : s + batch_size])) for s in starts]

    def problem(self, **options: Any) -> ClosedFormProblem:
        """The model's problem."""
        return ClosedFormProblem(self.model, **options)

    def oracle(self, **options: Any) -> Oracle:
        """The dense reference; `options` are `weights` and `penalty`."""
        return Oracle(self.parameters, self.model.loss, *self.host_train, **options)

    def _arrays(self, pair: Pair) -> tuple[Any, Any]:
        return self.library.array(pair[0]), self.library.array(pair[1])


def make_setting(
    kind: str = "tanh_squared", library: Library = NUMPY, *, positive_definite: bool = False
) -> Setting:
    """Return a model of `KINDS` with data.

    Args:
        kind: one of `KINDS`.
        library: where the arrays live.
        positive_definite: refuse a kind whose Hessian has negative eigenvalues.
    """
    assert not positive_definite or kind in CONVEX_KINDS
    model = make_model(kind, library)
    return Setting(library, model, make_data(model.loss, N, seed=1))


def influence(setting: Setting, method: Method = Direct(), **options: Any) -> Influence:  # noqa: B008
    """Return an influence function model of the setting, not fitted yet."""
    return Influence(setting.model, None, method, **{"backend": BACKEND, **options})


def fitted(
    setting: Setting,
    method: Method = Direct(),  # noqa: B008 - immutable
    *,
    batch_size: int = 5,
    **options: Any,
) -> Influence:
    """Return an influence function model that is fitted to the training points."""
    return influence(setting, method, **options).fit(setting.loader(batch_size))


def tight(library: Library = NUMPY, **options: Any) -> Cg:
    """Return a `Cg` whose tolerance is near what the library's precision can reach."""
    return Cg(**{"rtol": 1e-12 if library.dtype == "float64" else 1e-5, "atol": 0.0, **options})
