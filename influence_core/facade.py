"""Documented keywords -> method, blocks and regularisation: once for the facades of all backends.

A documented class of a backend names its parameters, so that signatures can be read and checked,
and hands them to the function here that bears its name. There is no mathematics in either.
"""

from __future__ import annotations

from dataclasses import dataclass

from influence_core.blocks import BlockStructure, Regularization
from influence_core.methods import Cg, Direct, Method, Preconditioner
from influence_core.modes import SecondOrderMode


@dataclass(frozen=True)
class Settings:
    """What the keywords of a documented class mean to `Influence`."""

    method: Method
    regularization: Regularization
    block_structure: BlockStructure
    second_order_mode: SecondOrderMode | str


def direct(
    regularization: Regularization,
    block_structure: BlockStructure,
    second_order_mode: SecondOrderMode | str,
) -> Settings:
    """Return the settings of `DirectInfluence`."""
    return Settings(Direct(), regularization, block_structure, second_order_mode)


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
    return Settings(method, regularization, block_structure, second_order_mode)
