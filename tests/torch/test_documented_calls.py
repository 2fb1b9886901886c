"""The documented call of every class, as the documentation prints it, with only the import changed.

The numbers that come back are held against dense solves in float64.
"""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from solvers import DenseEkfac, DenseHarmonicMean
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import classes, close, normal, seeded

from influence_core import ConvergenceWarning
from influence_torch import (
    ArnoldiInfluence,
    BlockMode,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    InfluenceMode,
    InverseHarmonicMeanInfluence,
    JacobiPreconditioner,
    LissaInfluence,
    NystroemPreconditioner,
    NystroemSketchInfluence,
    SecondOrderMode,
)

# A regression whose Hessian is positive definite: the documentation's calls have `λ = 0`.
model = seeded(lambda: nn.Sequential(nn.Linear(4, 2)), seed=2)
loss = F.mse_loss
x, y = normal(30, 4, seed=3), normal(30, 2, seed=4)
x_test, y_test = normal(5, 4, seed=5), normal(5, 2, seed=6)
train_loader = DataLoader(TensorDataset(x, y), batch_size=8)
test_loader = DataLoader(TensorDataset(x_test, y_test), batch_size=5)
dense = Dense(model, loss, x, y)

# A classifier, in float32 as models of users are.
classifier = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))).float()
images, labels = normal(30, 3, dtype=torch.float32), classes(30)
test_images, test_labels = normal(5, 3, seed=5, dtype=torch.float32), classes(5, seed=6)
classes_loader = DataLoader(TensorDataset(images, labels), batch_size=8)
fisher = DenseEkfac(classifier, F.cross_entropy, images, labels)

LAYERS = {"0": ["0.weight", "0.bias"]}


def check(if_model, reference=dense, tolerance=1e-8, **how):
    """All the calls, in Up and in Perturbation mode, against a reference."""
    for mode in InfluenceMode:
        want = reference.influences(x_test, y_test, x, y, str(mode), **how)
        close(if_model.influences(x_test, y_test, x, y, mode=mode), want, tolerance)
    want = reference.influences(x_test, y_test, x, y, **how)
    close(if_model.influences(x_test, y_test, x, y, mode="up"), want, tolerance)
    close(if_model.influences(x_test, y_test, x, y), want, tolerance)
    alone = reference.influences(x_test, y_test, **how)
    close(if_model.influences(x_test, y_test), alone, tolerance)
    factors = if_model.influence_factors(x_test, y_test)
    close(factors, reference.influence_factors(x_test, y_test, **how), tolerance)
    close(if_model.influences_from_factors(factors, x, y, mode="up"), want, tolerance)


def test_direct():
    if_model = DirectInfluence(model, loss, regularization=0.01)
    if_model.fit(train_loader)
    check(if_model, regularization=0.01)


def test_direct_with_all_keywords():
    if_model = DirectInfluence(
        model,
        loss,
        regularization=0.0,
        block_structure=BlockMode.LAYER_WISE,
        second_order_mode=SecondOrderMode.HESSIAN,
    )
    if_model.fit(train_loader)
    check(if_model, blocks=LAYERS)


def test_direct_by_position():
    if_model = DirectInfluence(
        model, loss, 0.01, BlockMode.PARAMETER_WISE, SecondOrderMode.GAUSS_NEWTON
    ).fit(train_loader)
    blocks = {"0.weight": ["0.weight"], "0.bias": ["0.bias"]}
    check(if_model, regularization=0.01, blocks=blocks, mode="gauss_newton")


def test_gauss_newton():
    if_model = DirectInfluence(
        model, loss, regularization=0.1, second_order_mode=SecondOrderMode.GAUSS_NEWTON
    )
    if_model.fit(train_loader)
    check(if_model, regularization=0.1, mode="gauss_newton")


def test_blocks_of_ones_own():
    block_structure = OrderedDict(
        (
            ("custom_block1", ["0.weight"]),
            ("custom_block2", ["0.bias"]),
        )
    )
    if_model = DirectInfluence(
        model,
        loss,
        regularization={"custom_block1": 0.1, "custom_block2": 0.2},
        block_structure=block_structure,
    )
    if_model.fit(train_loader)
    how = {"regularization": {"custom_block1": 0.1, "custom_block2": 0.2}}
    how["blocks"] = block_structure
    check(if_model, **how)
    by_block = if_model.influences_by_block(x_test, y_test, x, y, mode="up")
    want = dense.influences_by_block(x_test, y_test, x, y, **how)
    assert list(by_block) == ["custom_block1", "custom_block2"]
    for name, share in want.items():
        close(by_block[name], share)
    factors = if_model.influence_factors_by_block(x_test, y_test)
    again = if_model.influences_from_factors_by_block(factors, x, y, mode="up")
    for name, share in want.items():
        close(again[name], share)


def test_cg():
    if_model = CgInfluence(
        model,
        loss,
        regularization=0.0,
        rtol=1e-7,
        atol=1e-7,
        maxiter=None,
        solve_simultaneously=True,
        preconditioner=NystroemPreconditioner(rank=10),
    )
    if_model.fit(train_loader)
    check(if_model, tolerance=1e-5)


def test_cg_with_all_keywords():
    if_model = CgInfluence(
        model,
        loss,
        regularization=0.01,
        rtol=1e-7,
        atol=1e-7,
        maxiter=None,
        progress=False,
        precompute_grad=True,
        preconditioner=JacobiPreconditioner(num_samples_estimator=4),
        solve_simultaneously=False,
        warn_on_max_iteration=True,
        block_structure=BlockMode.FULL,
        second_order_mode=SecondOrderMode.HESSIAN,
    )
    if_model.fit(train_loader)
    check(if_model, tolerance=1e-5, regularization=0.01)


def test_cg_by_position():
    if_model = CgInfluence(
        model, loss, 0.01, 1e-7, 1e-7, None, False, False, NystroemPreconditioner(10), True, True,
        BlockMode.FULL, SecondOrderMode.GAUSS_NEWTON,
    )  # fmt: skip
    if_model.fit(train_loader)
    check(if_model, tolerance=1e-5, regularization=0.01, mode="gauss_newton")


def test_cg_as_it_comes():
    if_model = CgInfluence(model, loss).fit(train_loader)
    check(if_model, tolerance=1e-3)


def test_lissa():
    if_model = LissaInfluence(
        model,
        loss,
        regularization=0.0,
        maxiter=1000,
        dampen=0.0,
        scale=10.0,
        rtol=1e-4,
    )
    if_model.fit([(x, y)])  # one batch, so that the steps have no noise
    check(if_model, tolerance=1e-2)
    assert if_model.report.converged.all()


def test_lissa_with_several_batches():
    # the noise of the batches keeps the changes above `rtol`, and that is said
    if_model = LissaInfluence(
        model, loss, regularization=0.0, maxiter=200, dampen=0.0, scale=10.0, rtol=1e-4
    )
    if_model.fit(train_loader)
    with pytest.warns(ConvergenceWarning, match="noise of several batches"):
        got = if_model.influences(x_test, y_test, x, y, mode="up")
    close(got, dense.influences(x_test, y_test, x, y), 0.2)


def test_lissa_by_position():
    # dampen · scale adds to λ
    if_model = LissaInfluence(
        model, loss, 1.0, 1000, 0.1, 10.0, 1e-6, False, True,
        BlockMode.LAYER_WISE, SecondOrderMode.GAUSS_NEWTON,
    )  # fmt: skip
    if_model.fit([(x, y)])
    check(if_model, tolerance=1e-3, regularization=2.0, mode="gauss_newton", blocks=LAYERS)


def test_arnoldi():
    if_model = ArnoldiInfluence(model, loss, regularization=0.0, rank=10, tol=1e-6)
    if_model.fit(train_loader)
    check(if_model)  # ten parameters: the answer is exact


def truncated(rank, regularization, woodbury):
    """`(C + λI)⁻¹` of the documentation, from the eigenpairs largest in absolute value."""
    values, v = torch.linalg.eigh(dense.curvature())
    kept = values.abs().argsort(descending=True)[:rank]
    values, v = values[kept], v[:, kept]
    inverse = v @ torch.diag(1 / (values + regularization)) @ v.T
    if woodbury:
        inverse += (torch.eye(len(v), dtype=torch.float64) - v @ v.T) / regularization
    return inverse


@pytest.mark.parametrize("use_woodbury", [False, True])
def test_arnoldi_of_low_rank(use_woodbury):
    # ten parameters, two outputs that share their inputs: every eigenvalue is double
    if_model = ArnoldiInfluence(
        model,
        loss,
        regularization=0.1,
        rank=4,
        krylov_dimension=9,
        tol=1e-9,
        max_iter=100,
        eigen_computation_on_gpu=False,
        block_structure=BlockMode.FULL,
        second_order_mode=SecondOrderMode.HESSIAN,
        use_woodbury=use_woodbury,
    )
    if_model.fit(train_loader)
    inverse = truncated(4, 0.1, use_woodbury)
    left, right = dense.gradients(x_test, y_test), dense.gradients(x, y)
    close(if_model.influences(x_test, y_test, x, y, mode="up"), left @ inverse @ right.T, 1e-6)
    close(if_model.influence_factors(x_test, y_test), left @ inverse, 1e-6)


def test_arnoldi_by_position():
    if_model = ArnoldiInfluence(
        model, loss, 0.1, 10, None, 1e-6, None, False,
        BlockMode.LAYER_WISE, SecondOrderMode.GAUSS_NEWTON, True,
    )  # fmt: skip
    if_model.fit(train_loader)
    check(if_model, regularization=0.1, mode="gauss_newton", blocks=LAYERS)


def test_nystroem_sketch():
    if_model = NystroemSketchInfluence(model, loss, regularization=0.1, rank=10)
    if_model.fit(train_loader)
    check(if_model, regularization=0.1)


def test_nystroem_sketch_by_position():
    if_model = NystroemSketchInfluence(
        model, loss, 0.1, 10, BlockMode.LAYER_WISE, SecondOrderMode.GAUSS_NEWTON
    ).fit(train_loader)
    check(if_model, regularization=0.1, mode="gauss_newton", blocks=LAYERS)


def test_inverse_harmonic_mean():
    if_model = InverseHarmonicMeanInfluence(model, loss, regularization=1e-1)
    if_model.fit(train_loader)
    check(if_model, DenseHarmonicMean(model, loss, x, y), regularization=1e-1)


def test_inverse_harmonic_mean_by_position():
    if_model = InverseHarmonicMeanInfluence(model, loss, 1e-1, BlockMode.PARAMETER_WISE)
    if_model.fit(train_loader)
    blocks = {"0.weight": ["0.weight"], "0.bias": ["0.bias"]}
    check(if_model, DenseHarmonicMean(model, loss, x, y), regularization=1e-1, blocks=blocks)


def of_the_fisher(mode="up", regularization=0.1):
    how = {"regularization": regularization, "blocks": fisher.layers}
    return fisher.influences_by_block(test_images, test_labels, images, labels, mode, **how)


def test_ekfac():
    if_model = EkfacInfluence(
        classifier,
        update_diagonal=True,
        hessian_regularization=0.1,
    )
    if_model.fit(classes_loader)
    points = (test_images, test_labels, images, labels)
    for mode in InfluenceMode:
        want = of_the_fisher(str(mode))
        close(if_model.influences(*points, mode=mode), sum(want.values()), 1e-4)
        by_layer = if_model.influences_by_layer(*points, mode=mode)
        assert list(by_layer) == list(want)
        for layer, share in want.items():
            close(by_layer[layer], share, 1e-4)
    factors = if_model.influence_factors(test_images, test_labels)
    again = if_model.influences_from_factors(factors, images, labels, mode="up")
    close(again, sum(of_the_fisher().values()), 1e-4)
    factors_by_layer = if_model.influence_factors_by_layer(test_images, test_labels)
    by_layer = if_model.influences_from_factors_by_layer(factors_by_layer, images, labels)
    for layer, share in of_the_fisher().items():
        close(by_layer[layer], share, 1e-4)


def test_ekfac_by_position():
    if_model = EkfacInfluence(classifier, True, 0.1, False).fit(classes_loader)
    want = sum(of_the_fisher().values())
    close(if_model.influences(test_images, test_labels, images, labels, "up"), want, 1e-4)


def test_ekfac_explores_regularizations():
    if_model = EkfacInfluence(classifier, update_diagonal=True).fit(classes_loader)
    found = if_model.explore_hessian_regularization(
        test_images, test_labels, regularization_values=[1e-3, 0.1, 1]
    )
    assert list(found) == [1e-3, 0.1, 1.0]
    for value, by_layer in found.items():
        how = {"regularization": value, "blocks": fisher.layers}
        want = fisher.influences_by_block(test_images, test_labels, **how)
        assert list(by_layer) == list(want)
        for layer, share in want.items():
            close(by_layer[layer], share, 1e-4)


def test_batches_of_loaders_as_arguments():
    if_model = DirectInfluence(model, loss, regularization=0.01).fit(train_loader)
    test_batch, train_batch = next(iter(test_loader)), next(iter(train_loader))
    got = if_model.influences(*test_batch, *train_batch, mode=InfluenceMode.Up)
    want = dense.influences(x_test, y_test, x[:8], y[:8], regularization=0.01)
    close(got, want)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DirectInfluence(model, loss, regularization=0.01),
        lambda: CgInfluence(model, loss, 0.01, rtol=1e-10, atol=0.0),
        lambda: ArnoldiInfluence(model, loss, 0.01),
        lambda: NystroemSketchInfluence(model, loss, 0.01, 10),
    ],
)
def test_a_new_regularization_and_a_device(make):
    if_model = make().fit(train_loader)
    assert if_model.is_fitted
    if_model = if_model.to("cpu").with_regularization(0.1)
    want = dense.influences(x_test, y_test, x, y, regularization=0.1)
    close(if_model.influences(x_test, y_test, x, y), want, 1e-7)
