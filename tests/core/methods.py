"""Every method of the core with the dense matrix that it applies: one enumeration.

@pytest.mark.parametrize("case", CASES)
def test_something(case):
    model = case.fitted(make_setting("tanh_squared"), regularization=1e-2)
    case.reference(setting).influences(*test, *train, regularization=1e-2)

The matrices are built in float64 from the derivatives of `oracle.py`, one point after the other
where a method has a matrix of each; no linear algebra of the core is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import oracle
import pytest
from namespaces import NUMPY, Library
from oracle import Host, Oracle, Regularization
from problems import N, Pair, Setting, fitted, influence, tight
from scipy.linalg import block_diag

from influence_core import (
    Arnoldi,
    Cg,
    Direct,
    Ekfac,
    EkfacPreconditioner,
    Influence,
    InverseHarmonicMean,
    JacobiPreconditioner,
    Lissa,
    Method,
    NystroemPreconditioner,
    NystroemSketch,
)
from influence_core.arrays import normal_rows

Blocks = Mapping[str, Sequence[str]]

FULL = 60  # more than any of the models has parameters
# The Hessian of least squares has every eigenvalue once for each of the three outputs.
RANK = 6
# Relative to the largest: eigenvalues below are those of a matrix of lower rank, rounded.
ROUNDING = 1e-12

# The two layers of the networks.
LAYERS = {name: [f"{name}.weight", f"{name}.bias"] for name in ("hidden", "output")}


@dataclass(frozen=True)
class DenseBlock:
    """What a method can know of one block, dense.

    Attributes:
        oracle: the model and its training data.
        mode: a plain string of `SecondOrderMode`.
        names: the parameters of the block, in the order of the model.
    """

    oracle: Oracle
    mode: str
    names: Sequence[str]

    @property
    def curvature(self) -> Host:
        """`C`, `(d, d)`, with the penalty."""
        return self.oracle.curvature(self.mode)[np.ix_(self.places, self.places)]

    @property
    def penalty(self) -> Host:
        """The diagonal of the penalty, `(d,)`."""
        return np.diag(self.curvature - replace(self, oracle=self._plain).curvature)

    @property
    def gradients(self) -> Host:
        """`∇ℓᵢ` of the training points, `(N, d)`."""
        at = self.oracle
        return oracle.gradients(at.parameters, at.loss, at.x, at.y)[:, self.places]

    @property
    def places(self) -> Any:
        """The columns of the block among the `p`."""
        return oracle.columns(self.oracle.parameters, self.names)

    @property
    def _plain(self) -> Oracle:
        return replace(self.oracle, penalty=None)


Inverse = Callable[[DenseBlock, float], Host]
"""The matrix `(d, d)` that stands in for `(C + λI)⁻¹`."""


def _exact(block: DenseBlock, regularization: float) -> Host:
    return np.linalg.inv(block.curvature + regularization * np.eye(len(block.places)))


def _truncated(block: DenseBlock, regularization: float) -> Host:
    """`V (Λ + λ)⁻¹ Vᵀ` with the eigenpairs of `C` that are largest in absolute value."""
    values, columns = np.linalg.eigh(block.curvature)
    if values.size <= RANK:
        return _exact(block, regularization)
    order = np.argsort(-np.abs(values))[:RANK]
    order = order[np.abs(values[order]) > ROUNDING * np.abs(values).max()]
    v = columns[:, order]
    return v @ np.diag(1 / (values[order] + regularization)) @ v.T


def _completed(block: DenseBlock, regularization: float) -> Host:
    """`(V Λ Vᵀ + λI)⁻¹` with the same eigenpairs."""
    inside = _truncated(block, regularization)
    if len(block.places) <= RANK:
        return inside
    span = np.linalg.pinv(inside, rcond=1e-9, hermitian=True) @ inside
    return inside + (np.eye(len(span)) - span) / regularization


def _sketched(block: DenseBlock, regularization: float) -> Host:
    """`(C_nys + λI)⁻¹` with `C_nys = (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ`."""
    matrix, size = block.curvature, len(block.places)
    tests, _ = np.linalg.qr(normal_rows(0, min(RANK, size), size, np.zeros(())).T)
    images = matrix @ tests
    core = np.linalg.pinv(tests.T @ images, rcond=ROUNDING, hermitian=True)
    return np.linalg.inv(images @ core @ images.T + regularization * np.eye(size))


def _mean_of_inverses(block: DenseBlock, regularization: float) -> Host:
    """`1/N Σᵢ (∇ℓᵢ∇ℓᵢᵀ + λI)⁻¹`."""
    damping = np.diag(block.penalty + regularization)
    each = [np.linalg.inv(np.outer(g, g) + damping) for g in block.gradients]
    return np.average(each, axis=0, weights=block.oracle.weights)


def _factored(labels: str, update_diagonal: bool) -> Inverse:
    def inverse(block: DenseBlock, regularization: float) -> Host:
        at = block.oracle
        fisher = oracle.factored_fisher(
            at.parameters,
            at.loss,
            at.x,
            at.y,
            block.names,
            labels=labels,
            update_diagonal=update_diagonal,
            weights=at.weights,
            penalty=at.penalty,
        )
        return np.linalg.inv(fisher + regularization * np.eye(len(fisher)))

    return inverse


@dataclass(frozen=True)
class Reference:
    """The answers of a method for one setting, by dense algebra.

    Columns are those of the blocks, block after block, names in the order of the model.

    Attributes:
        oracle: the model and its training data.
        inverse: what the method applies to one block.
        mode: a plain string of `SecondOrderMode`.
        blocks: block name -> its parameters; None for one block ``""`` of all.
    """

    oracle: Oracle
    inverse: Inverse
    mode: str
    blocks: Blocks | None = None

    def matrix(self, regularization: Regularization) -> Host:
        """What is applied to all columns, `(p, p)`: zero across blocks."""
        known = self.oracle.parameters
        parts = []
        for name, members in (self.blocks or {"": list(known)}).items():
            damping = regularization
            if isinstance(regularization, Mapping):
                damping = regularization.get(name, 0.0)
            names = [parameter for parameter in known if parameter in members]
            parts.append(self.inverse(DenseBlock(self.oracle, self.mode, names), damping))
        return block_diag(*parts)

    def influence_factors(self, x: Host, y: Any, regularization: Regularization) -> Host:
        """Rows of factors, `(n, p)`."""
        return self._gradients(x, y) @ self.matrix(regularization)

    def influences(
        self,
        test: Pair,
        train: Pair,
        regularization: Regularization,
        influence: str = "up",
    ) -> Host:
        """`(m, n)`, or `(m, n, *x.shape[1:])` for ``influence="perturbation"``."""
        factors = self.influence_factors(*test, regularization)
        if influence == "up":
            return factors @ self._gradients(*train).T
        bent = oracle.mixed(self.oracle.parameters, self.oracle.loss, *train)
        return np.moveaxis(bent[..., self._columns] @ factors.T, -1, 0)

    def leverage(self, train: Pair, regularization: Regularization) -> Host:
        """`d Cⱼ dᵀ / (N ⟨∇ℓⱼ, d⟩)` with the factors `d` of point `j`, `(n,)`."""
        steps, rows = self.influence_factors(*train, regularization), self._gradients(*train)
        x, y = train
        points = [replace(self.oracle, x=x[j : j + 1], y=y[j : j + 1]) for j in range(len(x))]
        each = [self.oracle.block_diagonal(p.curvature(self.mode), self.blocks) for p in points]
        bends = [d @ c @ d for c, d in zip(each, steps, strict=True)]
        return np.array(bends) / (N * np.sum(steps * rows, axis=1))

    @property
    def _columns(self) -> Any:
        return np.concatenate([*self.oracle.blocks(self.blocks).values()])

    def _gradients(self, x: Host, y: Any) -> Host:
        return oracle.gradients(self.oracle.parameters, self.oracle.loss, x, y)[:, self._columns]


@dataclass(frozen=True)
class Case:
    """A method, and what it promises.

    Attributes:
        name: shown as the id of the test.
        make: the method with tolerances near what a library's precision can reach.
        inverse: the dense matrix that it applies.
        passes: over the data that a solve takes; None where they depend on the right-hand sides.
        shares_path: one solve's passes serve every λ of a path.
        one_batch: answers depend on the batches: they are exact for a single one.
    """

    name: str
    make: Callable[[Library], Method]
    inverse: Inverse = _exact
    passes: int | None = 0
    shares_path: bool = False
    one_batch: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def exact(self) -> bool:
        """Whether `(C + λI)⁻¹` itself is applied."""
        return self.inverse is _exact

    @property
    def accuracy(self) -> float:
        """Relative error that an answer in float64 may have."""
        return 1e-6 if self.one_batch else 1e-8

    @property
    def batch_size(self) -> int:
        """How `fitted` cuts the training points; not into equal parts where it may."""
        return N if self.one_batch else 5

    def influence(self, setting: Setting, **options: Any) -> Influence:
        """Return the method's model of the setting, not fitted yet."""
        return influence(setting, self.make(setting.library), **options)

    def fitted(self, setting: Setting, **options: Any) -> Influence:
        """Return the method's model of the setting."""
        options = {"batch_size": self.batch_size, **options}
        return fitted(setting, self.make(setting.library), **options)

    def reference(
        self,
        setting: Setting,
        mode: str = "hessian",
        blocks: Blocks | None = None,
        **options: Any,
    ) -> Reference:
        """Return the method's answers by dense algebra; `options` are those of `Oracle`."""
        return Reference(setting.oracle(**options), self.inverse, mode, blocks)


def _cg(**options: Any) -> Callable[[Library], Cg]:
    def make(library: Library) -> Cg:
        if library.dtype == "float64":
            return tight(library, **options)
        # the contract's tolerance, which float32 does not always reach
        quiet = {"rtol": 1e-6, "maxiter": 300, "warn_on_max_iteration": False}
        return tight(library, **quiet, **options)

    return make


def _lissa(library: Library) -> Lissa:
    rtol = 1e-10 if library.dtype == "float64" else 1e-6
    return Lissa(maxiter=100_000, rtol=rtol, scale=None)


def _arnoldi(**options: Any) -> Callable[[Library], Arnoldi]:
    def make(library: Library) -> Arnoldi:
        tol = 1e-12 if library.dtype == "float64" else 1e-5
        return Arnoldi(RANK, krylov_dimension=14, tol=tol, **options)

    return make


ALL = (
    Case("direct", lambda library: Direct()),
    Case("cg", _cg(), passes=None),
    Case("block cg", _cg(solve_simultaneously=True), passes=None),
    Case("precomputed cg", _cg(precompute_grad=True), passes=1),
    Case("jacobi", _cg(preconditioner=JacobiPreconditioner()), passes=None),
    Case("nystroem cg", _cg(preconditioner=NystroemPreconditioner(RANK)), passes=None),
    Case("ekfac cg", _cg(preconditioner=EkfacPreconditioner()), passes=None),
    Case("lissa", _lissa, passes=None, one_batch=True),
    Case("arnoldi", _arnoldi(), _truncated),
    Case("arnoldi woodbury", _arnoldi(use_woodbury=True), _completed),
    Case("arnoldi full rank", lambda library: Arnoldi(FULL)),
    Case("nystroem", lambda library: NystroemSketch(RANK), _sketched),
    Case("nystroem full rank", lambda library: NystroemSketch(FULL)),
    Case(
        "harmonic mean",
        lambda library: InverseHarmonicMean(),
        _mean_of_inverses,
        passes=1,
        shares_path=True,
    ),
    Case("kfac", lambda library: Ekfac(), _factored("expected", False)),
    Case("ekfac", lambda library: Ekfac(True), _factored("expected", True)),
    Case("empirical kfac", lambda library: Ekfac(labels="given"), _factored("given", False)),
    Case("empirical ekfac", lambda library: Ekfac(True, labels="given"), _factored("given", True)),
)
BY_NAME = {case.name: case for case in ALL}


def parameters(chosen: Sequence[Case]) -> list[Any]:
    """Return `chosen` as parameters of a test."""
    return [pytest.param(case, id=case.name) for case in chosen]


def named(*names: str) -> list[Any]:
    """Return the cases of these names as parameters of a test."""
    return parameters([BY_NAME[name] for name in names])


CASES = parameters(ALL)
CLOSED_FORM = parameters([case for case in ALL if case.passes == 0])
ITERATIVE = parameters([case for case in ALL if case.passes is None])
BATCH_INVARIANT = parameters([case for case in ALL if not case.one_batch])
DAMPED = parameters([case for case in ALL if case.make(NUMPY).needs_damping])
UNDAMPED = parameters([case for case in ALL if not case.make(NUMPY).needs_damping])
