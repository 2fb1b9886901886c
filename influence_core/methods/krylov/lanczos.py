"""Thick-restart block Lanczos: the eigenpairs of a symmetric matrix largest in absolute value.

Wu and Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix
Anal. 22 (2000); Stewart, A Krylov-Schur algorithm for large eigenproblems, SIAM J. Matrix Anal. 23
(2001); with blocks: Zhou and Saad, Block Krylov-Schur method for large symmetric eigenvalue
problems, Numerical Algorithms 47 (2008).

With orthonormal rows `V`, `(j, d)`, their images `W = V C` and `V Wᵀ = Sᵀ diag(θ) S`, the Ritz
vectors are `S V` and their residuals `S W - diag(θ) S V`. A step extends `V` by the part of the
newest images that is orthogonal to it; a full basis is cut to its best Ritz vectors and goes on
with residuals of theirs. The images are held beside the basis, `2 · dimension` rows in all:
residuals are then measured instead of foretold, whichever block joins, in float32 too.

A Krylov space holds no more copies of a multiple eigenvalue than its block has rows, and nothing
that the start is orthogonal to. So convergence counts only if it is confirmed: a fresh random block
joins the wanted vectors and iterates beside them, until its largest pair is seen to be no larger
than theirs, or a quarter as many passes have gone by as convergence took. Where something larger
comes up, the iteration goes on.

Cost: a product of `k` rows is one pass over the data and takes about `1 + 0.15 k` units. Blocks
save passes and lower the degree of the polynomials that fit into the basis. Over decays from
geometric to `1/i²`, clusters, multiple and paired eigenvalues, blocks of a quarter of the room that
the wanted vectors leave in the basis took the least time or close to it, with half of the room
given back in a restart: two passes a cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import numpy.typing as npt

from influence_core.arrays import epsilon, namespace, normal_rows
from influence_core.methods.krylov.ritz import Basis, Host, RitzPairs
from influence_core.problem import Array

Product = Callable[[Array], Array]

ROUNDING = 10.0
"""Products and residuals are off by some such rounding units of the largest eigenvalue."""

_PATIENCE = 200
_TINY = float(np.finfo(np.float64).tiny)
# passes, of those that convergence took: values converge with the squares of the residuals, and it
# need only be seen whether one is larger
_CONFIRMATION = 0.25


@dataclass(frozen=True)
class Spectrum:
    """What `lanczos` is asked for.

    Attributes:
        rank: the number `r` of eigenpairs, less than `d`.
        dimension: most rows of the basis: more than `rank`, at most `d`.
        tol: a pair has converged when `‖v C - θ v‖ ≤ tol |θ|`, or when the residual is down to the
            rounding of the products, ten units of the largest `|θ|`.
        restarts: most restarts.
        seed: of the random blocks.
    """

    rank: int
    dimension: int
    tol: float
    restarts: int
    seed: int = 0

    @property
    def block(self) -> int:
        """Most rows of a product."""
        return math.ceil((self.dimension - self.rank) / 4)

    @property
    def kept(self) -> int:
        """The number of Ritz vectors that a restart keeps."""
        at_least = min(self.rank + 1, self.dimension - 1)  # one more than wanted, to go on with
        return max(at_least, self.dimension - 2 * self.block)


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs by descending absolute value, and how well they are known.

    Attributes:
        values: `θ`, on the host in float64, `(r,)`.
        vectors: orthonormal rows `v`, `(r, d)`.
        residual_norms: `‖v C - θ v‖`, measured, `(r,)`.
        converged: whether it is within the tolerance, `(r,)`.
        restarts: how often the basis was cut.
        passes: calls of the product.
    """

    values: Host
    vectors: Array
    residual_norms: Host
    converged: npt.NDArray[np.bool_]
    restarts: int
    passes: int


def lanczos(product: Product, size: int, wanted: Spectrum, reference: Array) -> Eigenpairs:
    """Return the eigenpairs of a symmetric `C`, `(d, d)`, that are largest in absolute value.

    Args:
        product: `v ↦ v · C`; called with `wanted.block` rows, or fewer to fill the basis.
        size: the number `d` of rows of `C`.
        wanted: how many pairs, how well, and what they may cost.
        reference: an array in the library, dtype and device of the answer.

    Raises:
        NonFiniteError: a product is NaN or infinite.
    """
    return _Iteration(product, size, wanted, reference).run()


@dataclass(frozen=True)
class _Candidates:
    """The wanted Ritz pairs of a basis: `values`, `norms` and `tolerances` are `(r,)`."""

    values: Host
    norms: Host
    tolerances: Host

    @property
    def converged(self) -> npt.NDArray[np.bool_]:
        """Whether the residual is within the tolerance, `(r,)`."""
        return self.norms <= self.tolerances

    def exceeded_by(self, values: Host) -> bool:
        """Tell whether other Ritz values are larger: an eigenvalue was missing."""
        return bool(np.any(np.abs(values) > np.abs(self.values) + self.tolerances))


class _Iteration:
    """One run: the basis, what it has cost, and the random blocks that are left."""

    def __init__(self, product: Product, size: int, wanted: Spectrum, reference: Array) -> None:
        """Start without a basis."""
        self._product = product
        self._size = size
        self._wanted = wanted
        self._eps = epsilon(reference)
        self._random = (
            normal_rows(wanted.seed + i, wanted.block, size, reference) for i in count()
        )
        self._basis = Basis()
        self._restarts = 0
        self._passes = 0

    def run(self) -> Eigenpairs:
        """Iterate until what is found is confirmed, or may cost no more."""
        self._extend(next(self._random))
        candidates = self._converge()
        while candidates.converged.all() and not self._final:
            found = self._pairs(candidates)
            if self._confirm(candidates):
                return replace(found, restarts=self._restarts, passes=self._passes)
            candidates = self._converge()
        return self._pairs(candidates)

    @property
    def _full(self) -> bool:
        return self._basis.size == self._wanted.dimension

    @property
    def _spent(self) -> bool:
        return self._restarts == self._wanted.restarts

    @property
    def _final(self) -> bool:
        """Whether nothing can be confirmed: the basis is the whole space, or no restart is left."""
        return self._spent or self._basis.size == self._size

    def _converge(self) -> _Candidates:
        """Iterate until the wanted pairs have converged, or no restart is left or helps."""
        watch = _StallWatch(math.sqrt(self._eps))
        while True:
            ritz = self._basis.ritz_pairs(self._wanted.rank + self._wanted.block)
            candidates = self._candidates(ritz)
            complete = self._basis.size >= self._wanted.rank
            if complete and candidates.converged.all():
                return candidates
            if not self._full:
                self._advance()
            elif self._spent or watch.stalled(candidates):
                return candidates
            else:
                self._restart(self._wanted.kept, self._pending(ritz, candidates))

    def _confirm(self, candidates: _Candidates) -> bool:
        """Let a random block join and tell whether nothing larger comes up."""
        rank, enough = self._wanted.rank, self._passes * (1 + _CONFIRMATION)
        self._restart(rank, next(self._random))
        while True:
            while not self._full:
                self._advance()
            ritz = self._basis.ritz_pairs(rank + self._wanted.block)
            if candidates.exceeded_by(ritz.values[:rank]):
                return False
            nearest = abs(ritz.values[rank]) + ritz.norms[rank]
            apart = bool(nearest <= abs(candidates.values[-1]) + candidates.tolerances[-1])
            if apart or self._final or self._passes >= enough:
                return True
            self._restart(self._wanted.kept, ritz.residuals[rank:, :])

    def _advance(self) -> None:
        """Extend the basis by the part of the newest images that it lacks."""
        self._extend(self._basis.images[-1])

    def _restart(self, kept: int, rows: Array) -> None:
        """Cut the basis to the best Ritz vectors and extend it by the part of `rows` it lacks."""
        self._restarts += 1
        self._basis = self._basis.cut(kept)
        self._extend(rows)

    def _extend(self, rows: Array) -> None:
        room = min(self._wanted.dimension - self._basis.size, self._wanted.block)
        block = self._basis.complement(rows[:room, :], self._random)
        self._basis = self._basis.extended(block, self._product(block))
        self._passes += 1

    def _candidates(self, ritz: RitzPairs) -> _Candidates:
        values = ritz.values[: self._wanted.rank]
        sizes = np.abs(values)
        tolerances = np.maximum(self._wanted.tol * sizes, ROUNDING * self._eps * sizes.max())
        return _Candidates(values, ritz.norms[: self._wanted.rank], tolerances)

    def _pending(self, ritz: RitzPairs, candidates: _Candidates) -> Array:
        """Return the residuals of the wanted pairs that are furthest from converged, a block."""
        excess = np.zeros(ritz.norms.shape)  # those beyond come last
        excess[: self._wanted.rank] = candidates.norms / np.maximum(candidates.tolerances, _TINY)
        order = np.argsort(-excess, kind="stable")[: self._wanted.block]
        return namespace(ritz.residuals).stack([ritz.residuals[int(i), :] for i in order])

    def _pairs(self, candidates: _Candidates) -> Eigenpairs:
        (vectors,) = self._basis.cut(self._wanted.rank).vectors
        return Eigenpairs(
            candidates.values,
            vectors,
            candidates.norms,
            candidates.converged,
            self._restarts,
            self._passes,
        )


class _StallWatch:
    """Notices that residuals near rounding fall no more: noise in the products holds them."""

    def __init__(self, near: float) -> None:
        """Start; `near` is the residual, relative to the largest `|θ|`, where noise may begin."""
        self._near = near
        self._best = math.inf
        self._waited = 0

    def stalled(self, candidates: _Candidates) -> bool:
        """Note a cycle and tell whether many have passed without halving the largest residual."""
        largest = float(candidates.norms.max())
        self._waited += 1
        if largest < self._best / 2:
            self._best, self._waited = largest, 0
        near = largest <= self._near * float(np.abs(candidates.values).max())
        return near and self._waited >= _PATIENCE
