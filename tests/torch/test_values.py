"""Every exact route against the dense reference: modes, blocks, λ, batches, sizes of both sides."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import MODES, Case, classes, close, convex_case, mlp_case, normal, seeded

from influence_core.errors import ConditioningWarning
from influence_torch import (
    BlockMode,
    CgInfluence,
    DirectInfluence,
    InfluenceMode,
    JacobiPreconditioner,
    NystroemPreconditioner,
)

LAMBDAS = (1e-3, 1e-2, 1e-1)
TIGHT = {"rtol": 1e-12, "atol": 0.0}
# indefinite Hessians of networks: solved exactly all the same, and said so
indefinite_is_fine = pytest.mark.filterwarnings("ignore::influence_core.errors.ConditioningWarning")

MLP, CONVEX = mlp_case(), convex_case()
DENSE = {id(case): case.dense() for case in (MLP, CONVEX)}
TEST = (normal(6, 3, seed=5), classes(6, seed=6))
CONVEX_TEST = (normal(6, 4, seed=5), classes(6, seed=6))

LAYERS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
STRUCTURES = [
    pytest.param(BlockMode.FULL, {"": ["0.weight", "0.bias", "2.weight", "2.bias"]}, id="full"),
    pytest.param("layer_wise", LAYERS, id="layers"),
    pytest.param(
        BlockMode.PARAMETER_WISE,
        {name: [name] for names in LAYERS.values() for name in names},
        id="parameters",
    ),
    pytest.param(
        OrderedDict(late=["2.bias", "0.weight"], early=["2.weight", "0.bias"]),
        {"late": ["0.weight", "2.bias"], "early": ["0.bias", "2.weight"]},
        id="shuffled",
    ),
    pytest.param(
        OrderedDict([("b", ["2.bias", "2.weight"]), ("a", ["0.bias"])]),
        {"b": ["2.weight", "2.bias"], "a": ["0.bias"]},
        id="left-out",
    ),
]


def case_for(mode):
    """A case whose curvature is positive semi-definite, with test points, and its reference."""
    case, test = (CONVEX, CONVEX_TEST) if mode == "hessian" else (MLP, TEST)
    return case, test, DENSE[id(case)]


def direct(case, *, batch_size=9, **keywords):
    model = DirectInfluence(case.model, case.loss, **case.keywords(), **keywords)
    return model.fit(case.loader(batch_size))


def cg(case, *, batch_size=12, **keywords):
    settings = {**TIGHT, **keywords}
    model = CgInfluence(case.model, case.loss, **case.keywords(), **settings)
    return model.fit(case.loader(batch_size))


@indefinite_is_fine
@pytest.mark.parametrize("regularization", LAMBDAS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("structure", "blocks"), STRUCTURES)
def test_direct_equals_dense(mode, structure, blocks, regularization):
    dense = DENSE[id(MLP)]
    model = direct(
        MLP, regularization=regularization, block_structure=structure, second_order_mode=mode
    )
    options = {"mode": mode, "regularization": regularization, "blocks": blocks}
    assert model.block_names == list(blocks)
    assert model.n_parameters == sum(len(place) for place in dense.columns(blocks).values())
    close(model.influence_factors(*TEST), dense.influence_factors(*TEST, **options))
    for influence in InfluenceMode:
        got = model.influences_by_block(*TEST, MLP.x, MLP.y, mode=influence)
        want = dense.influences_by_block(*TEST, MLP.x, MLP.y, str(influence), **options)
        assert list(got) == list(want)
        for name, share in want.items():
            close(got[name], share)
        close(model.influences(*TEST, MLP.x, MLP.y, influence), sum(want.values()))


@pytest.mark.parametrize("regularization", LAMBDAS)
@pytest.mark.parametrize("mode", MODES)
def test_cg_equals_dense(mode, regularization):
    case, test, dense = case_for(mode)
    model = cg(case, regularization=regularization, second_order_mode=mode)
    options = {"mode": mode, "regularization": regularization}
    close(model.influence_factors(*test), dense.influence_factors(*test, **options))
    assert model.report.converged.all()
    for influence in ("up", "perturbation"):
        want = dense.influences(*test, case.x, case.y, influence, **options)
        close(model.influences(*test, case.x, case.y, influence), want)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(("structure", "blocks"), STRUCTURES)
def test_cg_equals_dense_by_block(mode, structure, blocks):
    model = cg(MLP, regularization=1e-2, block_structure=structure, second_order_mode=mode)
    options = {"mode": mode, "regularization": 1e-2, "blocks": blocks}
    factors = model.influence_factors_by_block(*TEST)
    assert isinstance(factors, OrderedDict)
    close(torch.cat(list(factors.values()), 1), DENSE[id(MLP)].influence_factors(*TEST, **options))
    for influence in ("up", "perturbation"):
        want = DENSE[id(MLP)].influences_by_block(*TEST, MLP.x, MLP.y, influence, **options)
        got = model.influences_by_block(*TEST, MLP.x, MLP.y, influence)
        again = model.influences_from_factors_by_block(factors, MLP.x, MLP.y, influence)
        assert list(got) == list(again) == list(want)
        for name, share in want.items():
            close(got[name], share)
            close(again[name], share)


VARIANTS = {
    "plain": {},
    "block": {"solve_simultaneously": True},
    "kept": {"precompute_grad": True},
    "jacobi": {"preconditioner": JacobiPreconditioner()},
    "jacobi-10": {"preconditioner": JacobiPreconditioner(num_samples_estimator=10)},
    "nystroem": {"preconditioner": NystroemPreconditioner(rank=5)},
    "all": {
        "solve_simultaneously": True,
        "precompute_grad": True,
        "preconditioner": NystroemPreconditioner(5),
    },
    "strict": {"array_backend": "array_api_strict"},
    "numpy": {"array_backend": "numpy", "preconditioner": NystroemPreconditioner(5)},
    "little-memory": {"max_memory": 1},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_cg(variant, mode):
    case, test, dense = case_for(mode)
    model = cg(case, regularization=1e-2, second_order_mode=mode, **VARIANTS[variant])
    want = dense.influences(*test, case.x, case.y, mode=mode, regularization=1e-2)
    close(model.influences(*test, case.x, case.y), want)
    assert model.report.converged.all()


@pytest.mark.parametrize("variant", ["strict", "numpy", "little-memory"])
@pytest.mark.parametrize("influence", ["up", "perturbation"])
def test_variants_of_direct(variant, influence):
    keywords = {k: v for k, v in VARIANTS[variant].items() if k != "preconditioner"}
    model = direct(CONVEX, regularization=1e-2, block_structure="parameter_wise", **keywords)
    blocks = {name: [name] for name in ("weight", "bias")}
    want = DENSE[id(CONVEX)].influences(
        *CONVEX_TEST, CONVEX.x, CONVEX.y, influence, regularization=1e-2, blocks=blocks
    )
    close(model.influences(*CONVEX_TEST, CONVEX.x, CONVEX.y, influence), want)


@pytest.mark.parametrize("solver", [direct, cg])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
def test_the_batch_size_changes_nothing(solver, mode, batch_size):
    case, test, dense = case_for(mode)
    regularization = 1e-3 if solver is direct else 1e-1  # few steps, each a pass over all batches
    options = {"second_order_mode": mode, "regularization": regularization}
    model = solver(case, batch_size=batch_size, **options)
    want = dense.influences(*test, case.x, case.y, mode=mode, regularization=regularization)
    close(model.influences(*test, case.x, case.y), want)


@pytest.mark.parametrize("solver", [direct, cg])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 23), (23, 1), (5, 23), (23, 5), (30, 30)])
@pytest.mark.parametrize("influence", ["up", "perturbation"])
def test_sizes_of_both_sides(solver, m, n, influence):
    mode = "generalized_gauss_newton"
    test = normal(m, 3, seed=8), classes(m, seed=9)
    train = normal(n, 3, seed=10), classes(n, seed=11)
    model = solver(MLP, regularization=1e-2, second_order_mode=mode)
    options = {"mode": mode, "regularization": 1e-2}
    want = DENSE[id(MLP)].influences(*test, *train, influence, **options)
    close(model.influences(*test, *train, influence), want)
    factors = model.influence_factors(*test)
    close(model.influences_from_factors(factors, *train, influence), want)


@pytest.mark.parametrize("influence", ["up", "perturbation"])
def test_without_training_points_the_test_points_stand_on_both_sides(influence):
    model = direct(CONVEX, regularization=1e-2)
    got = model.influences(*CONVEX_TEST, mode=influence)
    close(
        got, DENSE[id(CONVEX)].influences(*CONVEX_TEST, None, None, influence, regularization=1e-2)
    )
    assert torch.equal(got, model.influences(*CONVEX_TEST, *CONVEX_TEST, influence))


def test_one_training_point():
    case = Case(MLP.model, MLP.loss, *MLP.part(0, 1))
    mode = "gauss_newton"
    want = case.dense().influences(*TEST, case.x, case.y, mode=mode, regularization=0.1)
    for model in (
        direct(case, regularization=0.1, second_order_mode=mode),
        cg(case, regularization=0.1, second_order_mode=mode),
    ):
        close(model.influences(*TEST, case.x, case.y), want)
        close(model.influences(*TEST[:1], TEST[1], case.x, case.y), want)


@pytest.mark.parametrize(
    ("regularization", "tolerance"), [(1e-1, 1e-4), (1e-2, 1e-4), (1e-3, 1e-3)]
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", [direct, cg])
def test_float32(solver, mode, regularization, tolerance):
    case = (convex_case if mode == "hessian" else mlp_case)(dtype=torch.float32)
    test = (CONVEX_TEST if mode == "hessian" else TEST)[0].float(), TEST[1]
    # the residuals of float32 end a little above 1e-6 where λ is small; the numbers are what counts
    keywords = {"rtol": 1e-6, "warn_on_max_iteration": False} if solver is cg else {}
    model = solver(case, regularization=regularization, second_order_mode=mode, **keywords)
    got = model.influences(*test, case.x, case.y)
    assert got.dtype == model.dtype == torch.float32
    want = case.dense().influences(*test, case.x, case.y, mode=mode, regularization=regularization)
    close(got, want, tolerance)


def test_regularization_by_block_and_without_refitting():
    dense = DENSE[id(MLP)]
    model = direct(
        MLP, regularization=1e-1, block_structure="layer_wise", second_order_mode=MODES[2]
    )
    by_block = {"0": 1e-2, "2": 1e-3}
    model.with_regularization(by_block)
    options = {"mode": MODES[2], "blocks": LAYERS}
    want = dense.influences(*TEST, MLP.x, MLP.y, regularization=by_block, **options)
    close(model.influences(*TEST, MLP.x, MLP.y), want)
    before = model.with_regularization(1e-3).influences(*TEST, MLP.x, MLP.y)
    model.with_regularization(torch.tensor(1e7)).influences(*TEST, MLP.x, MLP.y)
    after = model.with_regularization({"0": 1e-3, "2": 1e-3}).influences(*TEST, MLP.x, MLP.y)
    assert torch.equal(before, after)


@pytest.mark.parametrize("solver", [direct, cg])
def test_influences_over(solver):
    model = solver(CONVEX, regularization=1.0)
    got = model.influences_over(LAMBDAS, *CONVEX_TEST, CONVEX.x, CONVEX.y)
    for scores, regularization in zip(got, LAMBDAS, strict=True):
        want = DENSE[id(CONVEX)].influences(
            *CONVEX_TEST, CONVEX.x, CONVEX.y, regularization=regularization
        )
        close(scores, want)


@pytest.mark.parametrize("structure", ["full", "parameter_wise"])
def test_self_influences(structure):
    model = direct(CONVEX, regularization=1e-2, block_structure=structure)
    blocks = None if structure == "full" else {"weight": ["weight"], "bias": ["bias"]}
    options = {"regularization": 1e-2, "blocks": blocks}
    want = DENSE[id(CONVEX)].influences(CONVEX.x, CONVEX.y, **options).diagonal()
    close(model.self_influences(CONVEX.loader(5)), want)


def test_an_indefinite_hessian_is_solved_and_said():
    assert DENSE[id(MLP)].smallest_eigenvalue() < -1e-3
    model = direct(MLP, regularization=1e-3)
    with pytest.warns(ConditioningWarning, match="indefinite"):
        got = model.influence_factors(*TEST)
    close(got, DENSE[id(MLP)].influence_factors(*TEST, regularization=1e-3))


def test_cg_where_a_network_is_positive_definite():
    # λ above the most negative eigenvalue: CG serves the plain Hessian of a network too
    regularization = 2 * abs(DENSE[id(MLP)].smallest_eigenvalue())
    model = cg(MLP, regularization=regularization)
    want = DENSE[id(MLP)].influences(*TEST, MLP.x, MLP.y, regularization=regularization)
    close(model.influences(*TEST, MLP.x, MLP.y), want)


@pytest.mark.parametrize("mode", MODES)
def test_least_squares_with_many_outputs(mode):
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), seed=3)
    case = Case(model, F.mse_loss, normal(23, 3), normal(23, 2, seed=2))
    want = case.dense().influences(*case.part(0, 4), case.x, case.y, mode=mode, regularization=1.0)
    got = direct(case, regularization=1.0, second_order_mode=mode)
    close(got.influences(*case.part(0, 4), case.x, case.y), want)
