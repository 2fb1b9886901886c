"""What every documented class promises alike, held against the dense reference of each."""

import functools
import math
import sys
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from solvers import NAMED, ROUTES, SOLVERS, WITH_BLOCKS, WITH_MODES
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import Case, classes, close, convex_case, leaves, mlp_case, normal, rng, seeded

from influence_core import OptimalityWarning
from influence_core.errors import (
    DeviceError,
    ExchangeError,
    InfluenceError,
    OptionError,
    RegularizationError,
)
from influence_torch import (
    ArnoldiInfluence,
    BlockMode,
    EkfacInfluence,
    NotFittedException,
    SecondOrderMode,
    UnsupportedInfluenceModeException,
)

INFLUENCES = ["up", "perturbation"]
LAMBDA = 0.5
GGN = "generalized_gauss_newton"  # positive semi-definite here, also on the network
CASES = {"convex": convex_case(), "mlp": mlp_case()}
LAYERS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
STRUCTURES = {
    "full": ("full", None),
    "layers": (BlockMode.LAYER_WISE, LAYERS),
    "parameters": (
        "parameter_wise",
        {name: [name] for names in LAYERS.values() for name in names},
    ),
    "chosen": (
        OrderedDict([("late", ["2.bias", "2.weight"]), ("early", ["0.weight"])]),
        {"late": ["2.weight", "2.bias"], "early": ["0.weight"]},
    ),
}
BLOCKED = [(solver, name) for solver in WITH_BLOCKS for name in STRUCTURES]
BLOCKED += [(NAMED["EkfacInfluence"], "layers")]


def case_name(mode):
    """A Hessian that is positive semi-definite is the one of a convex model."""
    return "convex" if mode == "hessian" else "mlp"


def query(case):
    return normal(6, case.x.shape[1], seed=5), classes(6, seed=6)


@functools.cache
def reference(solver, name="mlp"):
    return solver.dense(CASES[name])


@functools.cache
def fitted(solver, structure="full", mode=GGN):
    case = CASES[case_name(mode)]
    keywords = solver.known(block_structure=STRUCTURES[structure][0], second_order_mode=mode)
    return solver(case.model, case.loss, LAMBDA, **keywords).fit(solver.loader(case))


def fresh(solver, regularization=LAMBDA, **keywords):
    """An unfitted instance for the network."""
    keywords = {**solver.known(second_order_mode=GGN), **keywords}
    return solver(MLP.model, MLP.loss, regularization, **keywords)


MLP = CASES["mlp"]
TEST = query(MLP)
FOUR = (*TEST, MLP.x, MLP.y)


class Watched:
    """Batches that count how often they are read."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


# Every call, for test points `t`, training points `d` and rows `r` over all parameters.
CALLS = {
    "influences": lambda m, t, d, r: m.influences(*t, *d),
    "perturbation": lambda m, t, d, r: m.influences(*t, *d, "perturbation"),
    "influences_by_block": lambda m, t, d, r: m.influences_by_block(*t, *d),
    "influence_factors": lambda m, t, d, r: m.influence_factors(*t),
    "influence_factors_by_block": lambda m, t, d, r: m.influence_factors_by_block(*t),
    "influences_from_factors": lambda m, t, d, r: m.influences_from_factors(r, *d),
    "influences_from_factors_by_block": lambda m, t, d, r: m.influences_from_factors_by_block(
        m.influence_factors_by_block(*t) if m.is_fitted else {}, *d
    ),
    "influences_over": lambda m, t, d, r: m.influences_over([0.5, 1.0], *t, *d),
    "influences_over_by_block": lambda m, t, d, r: m.influences_over_by_block([0.5, 1.0], *t, *d),
    "self_influences": lambda m, t, d, r: m.self_influences([d]),
    "removal_effects": lambda m, t, d, r: m.removal_effects(*t, *d),
    "parameter_changes": lambda m, t, d, r: m.parameter_changes(*d),
    "apply_inverse": lambda m, t, d, r: m.apply_inverse(r),
    "solve_rows": lambda m, t, d, r: m.solve_rows(r),
    "gradient_norm": lambda m, t, d, r: m.gradient_norm,
    "report": lambda m, t, d, r: m.report,
}
OF_EKFAC = {
    "influences_by_layer": lambda m, t, d, r: m.influences_by_layer(*t, *d),
    "influence_factors_by_layer": lambda m, t, d, r: m.influence_factors_by_layer(*t),
    "influences_from_factors_by_layer": lambda m, t, d, r: m.influences_from_factors_by_layer(
        m.influence_factors_by_layer(*t) if m.is_fitted else {}, *d
    ),
    "explore_hessian_regularization": lambda m, t, d, r: m.explore_hessian_regularization(
        *t, [0.5, 1.0]
    ),
}
EVERY_CALL = [(solver, call) for solver in SOLVERS for call in CALLS]
EVERY_CALL += [(NAMED["EkfacInfluence"], call) for call in OF_EKFAC]


def answer(model, call, dtype=torch.float64):
    rows = torch.ones(2, 31, dtype=dtype)
    test, train = (TEST[0].to(dtype), TEST[1]), (MLP.x.to(dtype), MLP.y)
    return (CALLS | OF_EKFAC)[call](model, test, train, rows)


@pytest.mark.parametrize("influence", INFLUENCES)
@pytest.mark.parametrize(("solver", "mode"), ROUTES)
def test_numbers(solver, mode, influence):
    case, want = CASES[case_name(mode)], reference(solver, case_name(mode))
    model, test = fitted(solver, mode=mode), query(case)
    how = {"mode": mode, "regularization": LAMBDA}
    factors = want.influence_factors(*test, **how)
    close(model.influence_factors(*test), factors)
    scores = want.influences(*test, case.x, case.y, influence, **how)
    close(model.influences(*test, case.x, case.y, influence), scores)
    close(model.influences(x_test=test[0], y_test=test[1], x=case.x, y=case.y, mode=influence),
          scores)  # fmt: skip
    close(model.influences_from_factors(factors, case.x, case.y, influence), scores)
    alone = want.influences(*test, None, None, influence, **how)
    close(model.influences(*test, mode=influence), alone)
    assert model.influence_factors(*test).is_contiguous()


@pytest.mark.parametrize("batch_size", [1, 7, 22, 23])
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.batch_size < 23])
def test_the_batch_size_changes_nothing(solver, batch_size):
    # the classes that are left out are random where there is more than one batch
    model = fresh(solver).fit(MLP.loader(batch_size))
    close(model.influences(*FOUR), fitted(solver).influences(*FOUR), 1e-9)


@pytest.mark.parametrize("influence", INFLUENCES)
@pytest.mark.parametrize(("solver", "structure"), BLOCKED)
def test_by_block(solver, structure, influence):
    model, want = fitted(solver, structure), reference(solver)
    blocks = STRUCTURES[structure][1]
    how = {"mode": GGN, "regularization": LAMBDA, "blocks": blocks}
    shares = want.influences_by_block(*FOUR, influence, **how)
    assert model.block_names == list(shares)
    assert model.n_parameters == sum(len(place) for place in want.columns(blocks).values())
    got = model.influences_by_block(*FOUR, influence)
    assert isinstance(got, OrderedDict)
    assert list(got) == list(shares)
    for name, share in shares.items():
        close(got[name], share)
    whole = model.influences(*FOUR, influence)
    close(sum(got.values()), whole, 1e-12)
    factors = model.influence_factors_by_block(*TEST)
    assert list(factors) == list(shares)
    close(torch.cat(list(factors.values()), 1), model.influence_factors(*TEST), 1e-12)
    again = model.influences_from_factors_by_block(factors, MLP.x, MLP.y, influence)
    close(sum(again.values()), whole)


@pytest.mark.parametrize(("solver", "structure"), [r for r in BLOCKED if r[1] == "layers"])
def test_influences_over_by_block(solver, structure):
    model = fitted(solver, structure)
    over = model.influences_over_by_block([1.0, LAMBDA], *FOUR)
    want = model.influences_by_block(*FOUR)
    assert list(over) == list(want)
    for name, share in over.items():
        assert share.shape == (2, 6, 23)
        close(share[1], want[name])


@pytest.mark.parametrize(("solver", "call"), EVERY_CALL)
def test_before_fit(solver, call):
    model = fresh(solver)
    name = "influences" if call == "perturbation" else call
    with pytest.raises(NotFittedException, match=rf"`{solver.__name__}\.{name}`.*fit\(data\)"):
        answer(model, call)


@pytest.mark.parametrize("solver", SOLVERS)
def test_properties(solver):
    model = fresh(solver)
    for each in (model, fitted(solver)):
        assert each.device == torch.device("cpu")
        assert each.dtype == torch.float64
        assert each.n_parameters == 31
        assert each.block_names == (["0", "2"] if solver.kind is EkfacInfluence else [""])
        assert each.is_thread_safe
    assert not model.is_fitted
    assert fitted(solver).is_fitted
    assert model.fit(solver.loader(MLP)) is model


@pytest.mark.parametrize("mode", ["sideways", "UP", None, BlockMode.FULL])
@pytest.mark.parametrize("solver", SOLVERS)
def test_unknown_modes(solver, mode):
    model = fitted(solver)
    factors = model.influence_factors(*TEST)
    by_block = model.influence_factors_by_block(*TEST)
    calls = [
        lambda: model.influences(*FOUR, mode),
        lambda: model.influences_by_block(*FOUR, mode=mode),
        lambda: model.influences_from_factors(factors, MLP.x, MLP.y, mode),
        lambda: model.influences_from_factors_by_block(by_block, MLP.x, MLP.y, mode),
    ]
    if solver.kind is EkfacInfluence:
        calls += [
            lambda: model.influences_by_layer(*FOUR, mode),
            lambda: model.influences_from_factors_by_layer(by_block, MLP.x, MLP.y, mode),
        ]
    for call in calls:
        with pytest.raises(UnsupportedInfluenceModeException, match="'up', 'perturbation'"):
            call()


KINDS = {
    "int": 2,
    "numpy float32": np.float32(2),
    "numpy int": np.int64(2),
    "numpy 0-d": np.array(2.0),
    "torch 0-d": torch.tensor(2.0),
    "wants a gradient": torch.tensor(2.0, requires_grad=True),
}
BAD = [-1.0, math.nan, math.inf, "1", [1.0], True, {"nonsense": 1.0}]


@pytest.mark.parametrize("solver", SOLVERS)
def test_kinds_of_regularization(solver):
    model, point = fresh(solver, 2.0).fit(solver.loader(MLP)), MLP.part(0, 1)
    want = model.influence_factors(*point)
    for value in [*KINDS.values(), dict.fromkeys(model.block_names, torch.tensor(2))]:
        model.with_regularization(1.0)
        assert torch.equal(model.with_regularization(value).influence_factors(*point), want)
    other = fresh(solver, dict.fromkeys(model.block_names, np.float32(2))).fit(solver.loader(MLP))
    assert torch.equal(other.influence_factors(*point), want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_regularizations_that_are_refused(solver):
    model = fitted(solver)
    want = model.influences(*TEST)
    for bad in [*BAD, {model.block_names[0]: -1.0}]:
        with pytest.raises(RegularizationError) as caught:
            model.with_regularization(bad)
        assert str(model.block_names) in str(caught.value)
        assert isinstance(caught.value, ValueError)
        with pytest.raises(RegularizationError):
            fresh(solver, bad)
    assert torch.equal(model.influences(*TEST), want)


@pytest.mark.parametrize("structure", ["full", "layers"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_new_regularization_needs_no_refit(solver, structure):
    keywords = solver.known(block_structure=STRUCTURES[structure][0])
    names = fitted(solver, structure).block_names
    new = {name: 0.5 * (i + 1) for i, name in enumerate(names)}
    data = Watched(solver.loader(MLP))
    want = fresh(solver, new, **keywords).fit(data).influences(*FOUR)
    before = fresh(solver, 5.0, **keywords).with_regularization(new).fit(data)
    assert torch.equal(before.influences(*FOUR), want)
    after = fresh(solver, 5.0, **keywords).fit(data)
    first = after.influences(*FOUR)
    passes = data.passes
    assert after.with_regularization(new) is after
    assert data.passes == passes
    assert torch.equal(after.influences(*FOUR), want)
    assert (data.passes > passes) == solver.reads
    assert torch.equal(after.with_regularization(5.0).influences(*FOUR), first)
    assert not torch.allclose(first, want)
    how = {"mode": GGN, "regularization": new}
    how["blocks"] = {name: LAYERS[name] for name in names} if len(names) > 1 else None
    close(want, reference(solver).influences(*FOUR, **how))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_new_regularization_replaces_the_whole_setting(solver):
    keywords = solver.known(block_structure="layer_wise")
    model = fresh(solver, {"0": 1.0, "2": 2.0}, **keywords).fit(solver.loader(MLP))
    want = reference(solver)
    for value in ({"0": 0.5, "2": 0.5}, 1.5):
        how = {"mode": GGN, "regularization": value, "blocks": LAYERS}
        close(
            model.with_regularization(value).influence_factors(*TEST),
            want.influence_factors(*TEST, **how),
        )


NEEDY = ["NystroemSketchInfluence", "InverseHarmonicMeanInfluence", "woodbury"]


def needy(name, *arguments, **keywords):
    """A class whose inverse divides by λ."""
    if name != "woodbury":
        return NAMED[name](MLP.model, MLP.loss, *arguments, **keywords)
    return ArnoldiInfluence(MLP.model, MLP.loss, *arguments, use_woodbury=True, **keywords)


@pytest.mark.parametrize("value", [0, 0.0, None, np.float64(0), torch.tensor(0.0), {"": 0.0}, {}])
@pytest.mark.parametrize("name", NEEDY)
def test_regularization_above_zero(name, value):
    with pytest.raises(RegularizationError, match=r"regularization.*λ") as caught:
        needy(name, value)
    assert isinstance(caught.value, ValueError)
    model = needy(name, 1.0)
    for _ in range(2):
        with pytest.raises(RegularizationError, match="regularization"):
            model.with_regularization(value)
        keywords = {} if name.startswith("Inverse") else {"second_order_mode": GGN}
        model = needy(name, 1.0, **keywords).fit(MLP.loader())
    with pytest.raises(RegularizationError):
        model.influences_over([1.0, value], *FOUR)


@pytest.mark.parametrize("name", NEEDY)
def test_every_block_is_named_where_the_method_divides_by_it(name):
    with pytest.raises(RegularizationError, match=r"missing.*\['2'\].*\['0', '2'\]"):
        needy(name, {"0": 1.0}, block_structure="layer_wise")
    with pytest.raises(RegularizationError, match=r"regularization\['2'\]"):
        needy(name, {"0": 1.0, "2": None}, block_structure="layer_wise")


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.__name__ not in NEEDY])
def test_blocks_that_are_not_named_get_zero(solver):
    keywords = solver.known(block_structure="layer_wise")
    model = fresh(solver, {"0": 0.5}, **keywords)
    by_zero = fresh(solver, {"0": 0.5, "2": None}, **keywords)
    assert model._by_block(model._regularization) == {"0": 0.5, "2": 0.0}
    assert by_zero._by_block(by_zero._regularization) == {"0": 0.5, "2": 0.0}


@pytest.mark.parametrize("solver", SOLVERS)
def test_unknown_blocks(solver):
    keywords = solver.known(block_structure="layer_wise")
    with pytest.raises(RegularizationError, match=r"\['1'\].*\['0', '2'\]"):
        fresh(solver, {"0": 1.0, "1": 1.0, "2": 1.0}, **keywords)


@pytest.mark.parametrize("solver", SOLVERS)
def test_influences_over(solver):
    model, values = fitted(solver), [0.5, np.float32(2), torch.tensor(1.0)]
    got = model.influences_over(values, *FOUR)
    assert got.shape == (3, 6, 23)
    for scores, value in zip(got, values, strict=True):
        want = reference(solver).influences(*FOUR, mode=GGN, regularization=float(value))
        close(scores, want)
    reports = model.report.values() if len(model.block_names) > 1 else [model.report]
    assert {report.iterations.shape for report in reports} == {(18,)}
    close(model.influences_over([0.5], *TEST)[0], model.influences(*TEST))
    by_name = [dict.fromkeys(model.block_names, 0.5), 1.0]
    close(model.influences_over(by_name, *FOUR), got[[0, 2]])
    close(model.influences(*FOUR), got[0])  # the setting of the instance is as it was
    for bad in (0.5, {"": 0.5}, "0.5", []):
        with pytest.raises(OptionError, match="influences_over"):
            model.influences_over(bad, *FOUR)


@pytest.mark.parametrize("solver", SOLVERS)
def test_self_influences(solver):
    model = fitted(solver)
    want = reference(solver).influences(MLP.x, MLP.y, mode=GGN, regularization=LAMBDA).diagonal()
    for batch_size in (5, 100):
        close(model.self_influences(MLP.loader(batch_size)), want)
    loader = DataLoader(TensorDataset(MLP.x, MLP.y), 5)
    close(model.self_influences(loader), want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_report(solver):
    model = fresh(solver).fit(solver.loader(MLP))
    assert model.report is None
    model.influences(*FOUR)
    reports = model.report.values() if len(model.block_names) > 1 else [model.report]
    for report in reports:
        assert report.iterations.shape == report.residual_norms.shape == (6,)
        assert report.converged.all()
        assert not report.negative_curvature.any()
        iterates = solver.__name__ in ("CgInfluence", "LissaInfluence")
        assert bool(report.iterations.any()) == iterates
        if solver.__name__ != "ArnoldiInfluence":  # drops a part of every right-hand side
            assert report.residual_norms.max() < 1e-8
    assert "6 of 6 right-hand sides converged" in str(model.report)
    model.influence_factors(MLP.x, MLP.y)
    report = next(iter(model.report.values())) if len(model.block_names) > 1 else model.report
    assert report.iterations.shape == (23,)


@pytest.mark.parametrize(("solver", "structure"), [r for r in BLOCKED if r[1] == "layers"])
def test_report_by_block(solver, structure):
    model = fitted(solver, structure)
    model.influences(*FOUR)
    assert list(model.report) == ["0", "2"]
    lines = str(model.report).splitlines()
    assert [line[:4] for line in lines] == ["'0':", "'2':"]


@functools.cache
def in_dtype(solver, dtype):
    case = mlp_case(dtype=dtype)
    keywords = solver.known(second_order_mode=GGN, rtol=1e-5)
    return solver(case.model, case.loss, LAMBDA, **keywords).fit(solver.loader(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("solver", "call"), EVERY_CALL)
def test_answers_are_detached_and_in_the_dtype_of_the_parameters(solver, call, dtype):
    found = answer(in_dtype(solver, dtype), call, dtype)
    if call in ("gradient_norm", "report"):
        return
    tensors = leaves(found)
    assert tensors
    for tensor in tensors:
        assert tensor.dtype == dtype
        assert tensor.device == torch.device("cpu")
        assert not tensor.requires_grad


@pytest.mark.parametrize("influence", INFLUENCES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_float32(solver, influence):
    model = in_dtype(solver, torch.float32)
    test, train = (TEST[0].float(), TEST[1]), (MLP.x.float(), MLP.y)
    want = solver.dense(mlp_case(dtype=torch.float32)).influences(
        *test, *train, influence, mode=GGN, regularization=LAMBDA
    )
    close(model.influences(*test, *train, influence), want, 1e-4)


class Branches(nn.Module):
    """Takes a dict or a tuple of two tensors."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 3)

    def forward(self, x):
        a, b = (x["a"], x["b"]["c"]) if isinstance(x, dict) else x
        return self.head(torch.tanh(self.left(a) + self.right(b)))


TREES = {
    "dict": {"a": normal(9, 3), "b": {"c": normal(9, 2, seed=4)}},
    "tuple": (normal(9, 3), normal(9, 2, seed=4)),
}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_trees(solver, kind):
    case = Case(seeded(Branches), F.cross_entropy, TREES[kind], classes(9))
    keywords = solver.known(second_order_mode=GGN)
    model = solver(case.model, case.loss, LAMBDA, **keywords).fit(case.loader(100))
    dense, test = Dense(case.model, case.loss, case.x, case.y), case.part(0, 2)
    factors = model.influence_factors(*test)
    if solver.kind is not EkfacInfluence:  # its reference knows stacks of layers only
        how = {"mode": GGN, "regularization": LAMBDA}
        close(factors, solver.dense(case).influence_factors(*test, **how))
    close(model.influences(*test, case.x, case.y), factors @ dense.gradients(case.x, case.y).T)
    got = model.influences(*test, case.x, case.y, "perturbation")
    again = model.influences_from_factors(factors, case.x, case.y, "perturbation")
    assert type(got) is type(again) is type(case.x)
    want = [torch.movedim(leaf @ factors.T, -1, 0) for leaf in dense.mixed(case.x, case.y)]
    for a, b, c in zip(leaves(got), leaves(again), want, strict=True):
        close(a, c)
        close(b, c)


@pytest.mark.parametrize("solver", SOLVERS)
def test_shuffled_loaders(solver):
    loader = DataLoader(TensorDataset(MLP.x, MLP.y), solver.batch_size, shuffle=True)
    model = fresh(solver).fit(loader)
    close(model.influences(*FOUR), fitted(solver).influences(*FOUR), 1e-9)


def test_lissa_with_several_batches():
    # random, but told by the seed, and near the truth
    lissa = NAMED["LissaInfluence"]
    loader = DataLoader(TensorDataset(MLP.x, MLP.y), 7, shuffle=True, generator=rng(3))
    first, again, other = (
        fresh(lissa, seed=seed, scale=20.0).fit(loader).influences(*FOUR) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    want = reference(lissa).influences(*FOUR, mode=GGN, regularization=LAMBDA)
    assert (first - want).abs().max() < 0.2 * want.abs().max()


@pytest.mark.parametrize("solver", SOLVERS)
def test_hyper_parameters_that_are_random_are_told_by_the_seed(solver):
    for seed in (-1, 1.5, "0"):
        if solver.__name__ not in ("DirectInfluence", "InverseHarmonicMeanInfluence"):
            with pytest.raises(OptionError, match="seed"):
                fresh(solver, seed=seed)
    close(
        fresh(solver, seed=3).fit(solver.loader(MLP)).influences(*FOUR),
        fitted(solver).influences(*FOUR),
        1e-9,
    )


def point_curvature(solver, j):
    """`Cⱼ`, the point's own share of the curvature."""
    mode = "gauss_newton" if solver.__name__ == "InverseHarmonicMeanInfluence" else GGN
    return Dense(MLP.model, MLP.loss, *MLP.part(j, j + 1)).curvature(mode)


@pytest.mark.parametrize("solver", SOLVERS)
def test_removal_effects(solver):
    model, want = fitted(solver), reference(solver)
    scores = want.influences(*FOUR, mode=GGN, regularization=LAMBDA)
    close(model.removal_effects(*FOUR), scores / 23)
    changes = want.influence_factors(MLP.x, MLP.y, mode=GGN, regularization=LAMBDA) / 23
    close(model.parameter_changes(MLP.x, MLP.y), changes)
    gradients = want.gradients(MLP.x, MLP.y)
    places = list(want.columns(LAYERS if solver.kind is EkfacInfluence else None).values())
    leverage = torch.empty(23, dtype=torch.float64)
    for j, (step, gradient) in enumerate(zip(changes, gradients, strict=True)):
        own = point_curvature(solver, j)
        bend = sum(step[place] @ own[place][:, place] @ step[place] for place in places)
        leverage[j] = bend / (gradient @ step)
    assert 0 < leverage.min() < leverage.max() < 1
    close(model.removal_effects(*FOUR, leverage=True), scores / 23 / (1 - leverage))
    close(model.parameter_changes(MLP.x, MLP.y, leverage=True), changes / (1 - leverage)[:, None])


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_norm(solver):
    dense = Dense(MLP.model, MLP.loss, MLP.x, MLP.y)
    mean = dense.gradients(MLP.x, MLP.y).mean(0)
    theta = torch.cat([p.detach().reshape(-1) for p in MLP.model.parameters()])
    model = fresh(solver).fit(solver.loader(MLP))
    for value in (LAMBDA, 2.0):
        model.with_regularization(value)
        assert model.gradient_norm == pytest.approx((mean + value * theta).norm().item(), rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_model_that_was_not_trained(solver):
    # all points pull the same way
    case = Case(MLP.model, MLP.loss, 1.0 + 0.1 * MLP.x, torch.zeros_like(MLP.y))
    with pytest.warns(OptimalityWarning, match="far from a minimum.*train it"):
        model = fresh(solver).fit(solver.loader(case))
    assert model.is_fitted


@functools.cache
def trained():
    """A softmax regression at the minimum of `mean ℓ + 0.05 ‖θ‖²`."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 3)))
    parameters = list(model.parameters())
    for _ in range(8):  # Newton's method
        theta = torch.cat([p.detach().reshape(-1) for p in parameters])
        dense = Dense(model, F.cross_entropy, MLP.x, MLP.y)
        gradient = dense.gradients(MLP.x, MLP.y).mean(0) + 0.1 * theta
        matrix = dense.curvature() + 0.1 * torch.eye(12, dtype=torch.float64)
        theta = theta - torch.linalg.solve(matrix, gradient)
        nn.utils.vector_to_parameters(theta, parameters)
    return model


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_minimum(solver, recwarn):
    case = Case(trained(), F.cross_entropy, MLP.x, MLP.y)
    model = solver(case.model, case.loss, 0.1).fit(solver.loader(case))
    assert model.gradient_norm < 1e-12
    assert not [w for w in recwarn if issubclass(w.category, OptimalityWarning)]


@pytest.mark.parametrize("library", ["numpy", "array-api-strict"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_other_libraries_give_the_same_numbers(solver, library):
    model = fresh(solver, array_backend=library).fit(solver.loader(MLP))
    for influence in INFLUENCES:
        got = model.influences(*FOUR, influence)
        assert type(got) is torch.Tensor
        assert got.dtype == torch.float64
        close(got, fitted(solver).influences(*FOUR, influence), 1e-9)
    close(model.influence_factors(*TEST), fitted(solver).influence_factors(*TEST), 1e-9)
    close(model.removal_effects(*FOUR), fitted(solver).removal_effects(*FOUR), 1e-9)
    model.influence_factors(*TEST)[0, 0] = 1.0  # an answer is the user's own, and writeable


@pytest.mark.parametrize("library", ["nonsense", "cupy", 3, "math"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_libraries_that_are_missing(solver, library, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ExchangeError, match=f"array_backend.*{library}") as caught:
        fresh(solver, array_backend=library)
    assert isinstance(caught.value, TypeError)


def test_eigenpairs_on_a_gpu_need_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for keywords in ({}, {"array_backend": "cupy"}):
        with pytest.raises(ExchangeError, match="cupy") as caught:
            ArnoldiInfluence(MLP.model, MLP.loss, eigen_computation_on_gpu=True, **keywords)
        assert isinstance(caught.value, InfluenceError)


def test_eigenpairs_on_a_gpu_and_another_library():
    with pytest.raises(OptionError, match=r"eigen_computation_on_gpu.*'numpy'"):
        ArnoldiInfluence(MLP.model, MLP.loss, eigen_computation_on_gpu=True, array_backend="numpy")


def test_eigenpairs_on_a_gpu_that_the_model_is_not_on(monkeypatch):
    # what CuPy does with an array of the host's memory
    def from_dlpack(array):
        raise BufferError("memory of the host")

    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(from_dlpack=from_dlpack, __name__="cupy")
    )
    model = ArnoldiInfluence(MLP.model, MLP.loss, LAMBDA, eigen_computation_on_gpu=True)
    with pytest.raises(DeviceError, match=r"cpu.*'cupy'.*Move the model"):
        model.fit(MLP.loader())
    assert not model.is_fitted


def test_woodbury():
    c = reference(NAMED["DirectInfluence"]).curvature(GGN)
    values, vectors = torch.linalg.eigh(c)
    v = vectors[:, -6:]
    low_rank = v @ torch.diag(values[-6:]) @ v.T
    rows = reference(NAMED["DirectInfluence"]).gradients(*TEST)
    for value in (1e-3, 1e-1):
        model = ArnoldiInfluence(
            MLP.model, MLP.loss, value, 6, tol=1e-12, second_order_mode=GGN, use_woodbury=True
        ).fit(MLP.loader())
        matrix = low_rank + value * torch.eye(31, dtype=torch.float64)
        close(model.influence_factors(*TEST), torch.linalg.solve(matrix, rows.T).T)


@pytest.mark.parametrize("solver", WITH_MODES)
@pytest.mark.parametrize("member", SecondOrderMode)
def test_members_of_enums_are_their_strings(solver, member):
    case = CASES["convex"]
    test = query(case)
    got, want = (
        solver(case.model, case.loss, LAMBDA, block_structure=structure, second_order_mode=mode)
        .fit(solver.loader(case))
        .influences(*test)
        for structure, mode in ((BlockMode.LAYER_WISE, member), ("layer_wise", str(member.value)))
    )
    assert torch.equal(got, want)
