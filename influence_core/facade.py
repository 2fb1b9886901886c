"""Documented keywords -> method, blocks and regularisation: once for the facades of all backends.

A documented class of a backend names its parameters, so that signatures can be read and checked,
and hands them to the function here that bears its name. There is no mathematics in either.
"""

from __future__ import annotations

from dataclasses import dataclass

from influence_core.blocks import BlockStructure, Regularization, make_regularization
from influence_core.errors import OptionError
from influence_core.methods import (
    Arnoldi,
    Cg,
    Direct,
    Ekfac,
    InverseHarmonicMean,
    Lissa,
    Method,
    NystroemSketch,
    Preconditioner,
)
from influence_core.methods.base import check_positive_integer
from influence_core.modes import BlockMode, LabelKind, SecondOrderMode, Sharing, Unsupported


@dataclass(frozen=True)
class Settings:
    """What the keywords of a documented class mean to `Influence`."""

    method: Method
    regularization: Regularization
    block_structure: BlockStructure
    second_order_mode: SecondOrderMode | str
    array_backend: str | None


def direct(
    regularization: Regularization,
    block_structure: BlockStructure,
    second_order_mode: SecondOrderMode | str,
    seed: int,
    array_backend: str | None,
) -> Settings:
    """Return the settings of `DirectInfluence`."""
    check_positive_integer("seed", seed, "or zero", least=0)
    return Settings(Direct(), regularization, block_structure, second_order_mode, array_backend)


def cg(
    regularization: Regularization,
    rtol: float,
    atol: float,
    maxiter: int | None,
    progress: bool,
    precompute_grad: bool,
    preconditioner: Preconditioner | None,
    solve_simultaneously: bool,
    warn_on_max_iteration: bool,
    block_structure: BlockStructure,
    second_order_mode: SecondOrderMode | str,
    seed: int,
    array_backend: str | None,
) -> Settings:
    """Return the settings of `CgInfluence`."""
    method = Cg(
        rtol=rtol,
        atol=atol,
        maxiter=maxiter,
        progress=progress,
        precompute_grad=precompute_grad,
        preconditioner=preconditioner,
        solve_simultaneously=solve_simultaneously,
        warn_on_max_iteration=warn_on_max_iteration,
        seed=seed,
    )
    return Settings(method, regularization, block_structure, second_order_mode, array_backend)


def lissa(
    regularization: Regularization,
    maxiter: int,
    dampen: float,
    scale: float | None,
    rtol: float,
    progress: bool,
    warn_on_max_iteration: bool,
    block_structure: BlockStructure,
    second_order_mode: SecondOrderMode | str,
    seed: int,
    array_backend: str | None,
) -> Settings:
    """Return the settings of `LissaInfluence`."""
    method = Lissa(
        maxiter=maxiter,
        dampen=dampen,
        scale=scale,
        rtol=rtol,
        progress=progress,
        warn_on_max_iteration=warn_on_max_iteration,
        seed=seed,
    )
    return Settings(method, regularization, block_structure, second_order_mode, array_backend)


def arnoldi(
    regularization: Regularization,
    rank: int,
    krylov_dimension: int | None,
    tol: float,
    max_iter: int | None,
    eigen_computation_on_gpu: bool,
    block_structure: BlockStructure,
    second_order_mode: SecondOrderMode | str,
    use_woodbury: bool,
    seed: int,
    array_backend: str | None,
) -> Settings:
    """Return the settings of `ArnoldiInfluence`.

    Raises:
        OptionError: `eigen_computation_on_gpu` asks for CuPy and `array_backend` for another.
    """
    if eigen_computation_on_gpu and array_backend not in (None, "cupy"):
        raise OptionError(
            "`eigen_computation_on_gpu=True` means array_backend='cupy'; got "
            f"array_backend={array_backend!r} beside it. Leave one of the two out."
        )
    method = Arnoldi(
        rank=rank,
        krylov_dimension=krylov_dimension,
        tol=tol,
        max_iter=max_iter,
        use_woodbury=use_woodbury,
        seed=seed,
    )
    library = "cupy" if eigen_computation_on_gpu else array_backend
    return Settings(method, regularization, block_structure, second_order_mode, library)


def nystroem_sketch(
    regularization: Regularization,
    rank: int,
    block_structure: BlockStructure,
    second_order_mode: SecondOrderMode | str,
    seed: int,
    array_backend: str | None,
) -> Settings:
    """Return the settings of `NystroemSketchInfluence`."""
    method = NystroemSketch(rank=rank, seed=seed)
    return Settings(method, regularization, block_structure, second_order_mode, array_backend)


def inverse_harmonic_mean(
    regularization: Regularization,
    block_structure: BlockStructure,
    seed: int,
    array_backend: str | None,
) -> Settings:
    """Return the settings of `InverseHarmonicMeanInfluence`: a point's curvature is `∇ℓᵢ∇ℓᵢᵀ`."""
    check_positive_integer("seed", seed, "or zero", least=0)
    mode = SecondOrderMode.GAUSS_NEWTON
    return Settings(InverseHarmonicMean(), regularization, block_structure, mode, array_backend)


def ekfac(
    update_diagonal: bool,
    hessian_regularization: Regularization,
    progress: bool,
    labels: LabelKind | str | None,
    draws: int,
    seed: int,
    array_backend: str | None,
    sharing: Sharing | str = Sharing.EXPAND,
    unsupported: Unsupported | str = Unsupported.RAISE,
    largest_exact: int = 2048,
    largest_factor: int | None = None,
    layers_at_once: int | None = None,
    factor_dtype: str | None = None,
) -> Settings:
    """Return the settings of `EkfacInfluence`: a block is a layer, a point's curvature its GGN.

    Raises:
        RegularizationError: `hessian_regularization` is negative or not finite.
    """
    make_regularization(hessian_regularization, argument="hessian_regularization")
    method = Ekfac(
        update_diagonal=update_diagonal,
        labels=labels,
        draws=draws,
        progress=progress,
        seed=seed,
        sharing=sharing,
        unsupported=unsupported,
        largest_exact=largest_exact,
        largest_factor=largest_factor,
        layers_at_once=layers_at_once,
        factor_dtype=factor_dtype,
    )
    mode = SecondOrderMode.GENERALIZED_GAUSS_NEWTON
    blocks = BlockMode.LAYER_WISE
    return Settings(method, hessian_regularization, blocks, mode, array_backend)
