"""Arnoldi: `C ≈ V Λ Vᵀ` with the eigenpairs of `C` that are largest in absolute value.

Schioppa, Zablotskaia, Vilar and Sokolov, Scaling up influence functions, AAAI 2022. `C` is
symmetric, so that Arnoldi's iteration is the one of Lanczos: `methods/krylov/lanczos.py`.
Time: tens of passes over the data with a few products each; memory `2 · krylov_dimension · d`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influence_core.arrays import epsilon, namespace
from influence_core.curvature import Curvature, LowRankInverse, SpectralInverse
from influence_core.errors import ConvergenceWarning, OptionError, warn
from influence_core.methods.base import Method, check_positive_integer
from influence_core.methods.direct import Direct
from influence_core.methods.krylov import ROUNDING, Eigenpairs, Spectrum, lanczos
from influence_core.problem import Array

Host = npt.NDArray[np.float64]

# rows for the iteration beside the wanted vectors; with fewer it finds little that it has not
_LEAST_ROOM = 4
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Arnoldi(Method):
    """`x = V (Λ + λ)⁻¹ Vᵀ b`, or `(V Λ Vᵀ + λI)⁻¹ b`, for any λ from one set of eigenpairs.

    A pair has converged when `‖C v - θ v‖ ≤ tol |θ|`, or when its residual is down to rounding: ten
    units of the largest `|θ|`. Eigenvalues that are themselves rounding by this measure are left
    out, as those of a `C` of lower rank than `rank`: their vectors would be arbitrary.

    A block of at most `rank` parameters is inverted exactly, as by `Direct`; one of at most
    `krylov_dimension` is materialised in one pass over the data.

    Attributes:
        rank: number of eigenpairs.
        krylov_dimension: most rows of the basis, more than `rank`; fewer than `rank + 4` are taken
            for that many, more than `d` for `d`. None means `max(2 · rank + 1, 20)`. Fewer make the
            search slower, and likelier to miss copies of a multiple eigenvalue.
        tol: relative tolerance; with 0 the iteration goes on until rounding stops it, and says so.
        max_iter: most restarts, of two passes over the data; None means `10 d`. An iteration whose
            residuals fall no more, near rounding, ends before.
        use_woodbury: divide what is orthogonal to `V` by λ instead of dropping it: the exact
            inverse of `V Λ Vᵀ + λI`, for which λ must be positive.
        seed: of the random blocks that the iteration starts from and is confirmed with.

    Raises:
        OptionError: a value outside these meanings.
    """

    rank: int = 10
    krylov_dimension: int | None = None
    tol: float = 1e-6
    max_iter: int | None = None
    use_woodbury: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_integer("rank", self.rank)
        if self.krylov_dimension is not None:
            check_positive_integer("krylov_dimension", self.krylov_dimension, "or None")
            if self.krylov_dimension <= self.rank:
                raise OptionError(
                    f"`krylov_dimension` must be larger than `rank`, {self.rank}; got "
                    f"{self.krylov_dimension}. Leave it out for {self._default_dimension}."
                )
        tol: object = self.tol
        number = isinstance(tol, float | int | np.number) and not isinstance(tol, bool)
        if not (number and 0 <= self.tol < math.inf):
            raise OptionError(f"`tol` must be a finite number, zero or more; got {tol!r}.")
        if self.max_iter is not None:
            check_positive_integer("max_iter", self.max_iter, "or None for 10·d restarts")
        if not isinstance(self.use_woodbury, bool | np.bool_):
            raise OptionError(f"`use_woodbury` must be True or False; got {self.use_woodbury!r}.")
        check_positive_integer("seed", self.seed, "or zero", least=0)

    @property
    def needs_damping(self) -> bool:
        """Whether what is orthogonal to the eigenvectors is divided by λ."""
        return bool(self.use_woodbury)

    def prepare(self, curvature: Curvature) -> LowRankInverse | SpectralInverse:
        """Compute the eigenpairs.

        Warns:
            ConvergenceWarning: some have not converged; they are used as they are.

        Raises:
            NonFiniteError: an entry of `C`, or of a product with it, is NaN or infinite.
        """
        size = curvature.block.size
        dimension = min(self._basis_rows, size)
        if dimension < size:
            return self._low_rank(curvature, *self._iterate(curvature, dimension))
        full = Direct().prepare(curvature)
        if self.rank >= size:
            return full
        return self._low_rank(curvature, *_largest(full.values, full.vectors, self.rank))

    @property
    def _default_dimension(self) -> int:
        return max(2 * self.rank + 1, 20)

    @property
    def _basis_rows(self) -> int:
        return max(self.krylov_dimension or self._default_dimension, self.rank + _LEAST_ROOM)

    def _iterate(self, curvature: Curvature, dimension: int) -> tuple[Host, Array]:
        size = curvature.block.size
        restarts = self.max_iter or 10 * size
        wanted = Spectrum(self.rank, dimension, float(self.tol), restarts, self.seed)
        found = lanczos(curvature.product, size, wanted, curvature.reference)
        if not found.converged.all():
            warn(_explain(found, self.tol, curvature.block.name), ConvergenceWarning)
        return found.values, found.vectors

    def _low_rank(self, curvature: Curvature, values: Host, vectors: Array) -> LowRankInverse:
        """Return the inverse from the pairs, by descending `|θ|`, that are more than rounding."""
        sizes = np.abs(values)
        count = int((sizes > ROUNDING * epsilon(vectors) * sizes.max()).sum())
        # a copy: a slice would keep the others in memory, and not come back from disk as it is
        kept = namespace(vectors).asarray(vectors[:count, :], copy=True)
        return LowRankInverse(values[:count], kept, self.needs_damping, curvature.block.name)


def _largest(values: Host, vectors: Array, count: int) -> tuple[Host, Array]:
    """Return the pairs of ascending `values` that are largest in absolute value, descending."""
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    xp = namespace(vectors)
    return values[order], xp.stack([vectors[int(i), :] for i in order])


def _explain(found: Eigenpairs, tol: float, block: str) -> str:
    missed = ~found.converged
    relative = found.residual_norms[missed] / np.maximum(np.abs(found.values[missed]), _TINY)
    where = f" of block {block!r}" if block else ""
    return (
        f"Arnoldi{where}: {int(missed.sum())} of {missed.size} eigenpairs have not converged to "
        f"tol={tol:g} after {found.restarts} restarts ({found.passes} passes over the data); "
        f"their residuals `‖C v - θ v‖ / |θ|` go from {relative.min():.1e} to "
        f"{relative.max():.1e}. Raise `max_iter`, `krylov_dimension` or `tol`, ask for another "
        "`rank` where eigenvalues crowd, or use float64 where the residuals no longer fall."
    )
