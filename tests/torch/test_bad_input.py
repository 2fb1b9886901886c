"""Bad input and determinism: clear errors, nothing half-fitted, the same answer twice."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from solvers import NAMED, SOLVERS, WITH_BLOCKS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import MODES, Case, batches, classes, close, convex_case, mlp_case, normal, seeded

from influence_core import Direct, Influence
from influence_core.errors import (
    BlockError,
    DataError,
    DataTypeError,
    InfluenceError,
    LossError,
    ModelError,
    NonFiniteError,
    OptionError,
    RegularizationError,
)
from influence_torch import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    JacobiPreconditioner,
    LissaInfluence,
    NotFittedException,
    NystroemPreconditioner,
    NystroemSketchInfluence,
)

CASE = convex_case()
X, Y = CASE.x, CASE.y
TEST = CASE.part(0, 4)


def with_nan(tensor, row, value=math.nan):
    changed = tensor.clone()
    changed[row, 0] = value
    return changed


def fitted(solver=SOLVERS[0], regularization=0.5, **keywords):
    return solver(CASE.model, CASE.loss, regularization, **keywords).fit(solver.loader(CASE))


FITS = {
    "empty": ([], DataError, ValueError, "at least one point"),
    "batch of nothing": ([(X[:0], Y[:0])], DataError, ValueError, "at least one"),
    "generator": ((b for b in CASE.loader()), DataTypeError, TypeError, "iterated again"),
    "zip": (zip([X], [Y], strict=True), DataTypeError, TypeError, "iterated again"),
    "number": (3, DataTypeError, TypeError, "iterable"),
    "None": (None, DataTypeError, TypeError, "iterable"),
    "different lengths": ([(X, Y[:-1])], DataError, ValueError, r"23 and 22.*\[\(x, y\)\]"),
    "three parts": ([(X, Y, Y)], DataTypeError, TypeError, r"pair.*\[\(x, y\)\]"),
    "no pair": ([X], DataTypeError, TypeError, "pair"),
    "array": ([(X.numpy(), Y)], DataTypeError, TypeError, "ndarray.*torch.as_tensor"),
    "list": ([(X, Y.tolist())], DataTypeError, TypeError, "int"),
    "empty dict": ([({}, Y)], DataError, ValueError, "at least one tensor"),
    "scalar": ([(X, torch.tensor(1))], DataError, ValueError, "first axis"),
    "NaN in x": (
        batches(with_nan(X, 9), Y, 7),
        DataError,
        ValueError,
        r"batch 2.*x holds NaN.*\[2\]",
    ),
    "infinity in x": ([(with_nan(X, 1, math.inf), Y)], DataError, ValueError, r"infinity.*\[1\]"),
    "wrong shape": ([(X[:, :3], Y)], ModelError, ValueError, "fails"),
    "wrong dtype": (
        [(X.float(), Y)],
        ModelError,
        ValueError,
        r"Cast x with `.to\(torch.float64\)`",
    ),
    "wrong labels": ([(X, Y + 2)], ModelError, ValueError, "fails"),
}


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_fit(kind, solver):
    data, error, builtin, message = FITS[kind]
    model = solver(CASE.model, CASE.loss, 0.5)
    before = {name: p.detach().clone() for name, p in CASE.model.named_parameters()}
    with pytest.raises(error, match=message) as caught:
        model.fit(data)
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, InfluenceError)
    assert not model.is_fitted
    assert all(torch.equal(p, before[name]) for name, p in CASE.model.named_parameters())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_refit_that_fails_leaves_the_instance_unfitted(solver):
    model = fitted(solver)
    with pytest.raises(DataError):
        model.fit([(with_nan(X, 0), Y)])
    assert not model.is_fitted
    with pytest.raises(NotFittedException):
        model.influences(*TEST)
    assert model.fit(solver.loader(CASE)).influences(*TEST).shape == (4, 4)


def broken(f, y):
    """A loss with values at every point, and no derivative."""
    return (f * 0).abs().sqrt().sum(1) + F.cross_entropy(f, y, reduction="none")


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not s.reads])
def test_a_late_failure_leaves_the_instance_unfitted(solver):
    # every batch is fine; only the preparation of the method finds the loss without a derivative
    keywords = solver.known(labels="given")
    model = solver(CASE.model, broken, 0.5, **keywords)
    with pytest.raises(NonFiniteError, match="NaN or infinit"):
        model.fit(CASE.loader())
    assert not model.is_fitted


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.reads])
def test_a_loss_without_a_derivative_is_told_by_the_first_solve(solver):
    model = solver(CASE.model, broken, 0.5, **solver.known(scale=10.0)).fit(CASE.loader())
    for call in (
        lambda: model.influences(*TEST),
        lambda: model.influence_factors(*TEST),
        lambda: model.self_influences(CASE.loader()),
    ):
        with pytest.raises(NonFiniteError):
            call()


def test_nan_in_targets():
    case = Case(seeded(lambda: nn.Linear(3, 1)), F.mse_loss, normal(9, 3), normal(9, 1))
    with pytest.raises(DataError, match=r"y holds NaN.*\[4\]"):
        DirectInfluence(case.model, case.loss, 1.0).fit([(case.x, with_nan(case.y, 4))])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_not_finite(value):
    case = mlp_case()
    with torch.no_grad():
        case.model[2].weight[0, 0] = value
    with pytest.raises(ModelError, match=r"'2.weight' holds NaN or infinity"):
        DirectInfluence(case.model, case.loss, 1.0).fit(case.loader())


def test_frozen_parameters_that_are_not_finite():
    case = mlp_case()
    case.model[0].requires_grad_(False)
    with torch.no_grad():
        case.model[0].bias[0] = math.nan
    with pytest.raises(ModelError, match=r"'0\.bias'"):
        DirectInfluence(case.model, case.loss, 1.0).fit(case.loader())


CALLS = {
    "influence_factors": lambda m: m.influence_factors(*TEST),
    "influence_factors_by_block": lambda m: m.influence_factors_by_block(*TEST),
    "influences": lambda m: m.influences(*TEST),
    "influences_by_block": lambda m: m.influences_by_block(*TEST),
    "influences_from_factors": lambda m: m.influences_from_factors(X, X, Y),
    "influences_from_factors_by_block": lambda m: m.influences_from_factors_by_block({}, X, Y),
    "self_influences": lambda m: m.self_influences(CASE.loader()),
    "influences_over": lambda m: m.influences_over([1.0], *TEST),
    "apply_inverse": lambda m: m.apply_inverse(X),
    "solve_rows": lambda m: m.solve_rows(X),
    "report": lambda m: m.report,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_before_fit(call, solver):
    model = solver(CASE.model, CASE.loss, 0.5)
    with pytest.raises(NotFittedException, match=solver.__name__) as caught:
        CALLS[call](model)
    assert "fit(data)" in str(caught.value)


QUERIES = {
    "x without y": (lambda m: m.influences(*TEST, X), DataError, "`x` without `y`"),
    "y without x": (lambda m: m.influences(*TEST, y=Y), DataError, "`y` without `x`"),
    "by block": (lambda m: m.influences_by_block(*TEST, X), DataError, "`x` without `y`"),
    "NaN": (lambda m: m.influences(with_nan(X, 3), Y), DataError, r"x holds NaN.*\[3\]"),
    "NaN in training": (
        lambda m: m.influences(*TEST, with_nan(X, 3), Y), DataError, r"\(…, x, y\).*\[3\]",
    ),
    "lengths": (lambda m: m.influences(X, Y[:3]), DataError, "23 and 3"),
    "array": (lambda m: m.influence_factors(X.numpy(), Y), DataTypeError, "ndarray"),
    "factors": (lambda m: m.influences_from_factors(X, X, Y), DataError, r"\(m, 15\)"),
    "one row": (lambda m: m.influences_from_factors(torch.ones(15), X, Y), DataError, r"\(m, 15\)"),
    "blocks": (
        lambda m: m.influences_from_factors_by_block({"a": X}, X, Y), DataError, "every block",
    ),
    "no regularisation": (lambda m: m.influences_over([], *TEST), OptionError, "at least one"),
    "nothing to read": (lambda m: m.self_influences([]), DataError, "at least one"),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_queries(kind, solver):
    call, error, message = QUERIES[kind]
    model = fitted(solver)
    with pytest.raises(error, match=message):
        call(model)
    assert model.is_fitted
    assert model.influences(*TEST).shape == (4, 4)


def test_a_query_in_another_dtype():
    with pytest.raises(ModelError, match=r"torch\.float32"):
        fitted().influences(TEST[0].float(), TEST[1])


SETTINGS = {
    "regularization": [-1.0, math.nan, math.inf, "1", [1.0], {"": -1.0}, {"nonsense": 1.0}],
    "max_memory": [0, -1, 1.5, "1GB"],
}


@pytest.mark.parametrize(
    ("keyword", "value"), [(k, v) for k, values in SETTINGS.items() for v in values]
)
def test_settings(keyword, value):
    error = RegularizationError if keyword == "regularization" else OptionError
    with pytest.raises(error, match=keyword) as caught:
        DirectInfluence(CASE.model, CASE.loss, **{keyword: value}).fit(CASE.loader())
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "keywords",
    [
        {"rtol": -1.0}, {"rtol": math.nan}, {"atol": "small"}, {"maxiter": 0}, {"maxiter": 2.5},
        {"preconditioner": "jacobi"}, {"preconditioner": NystroemPreconditioner},
    ],
)  # fmt: skip
def test_settings_of_cg(keywords):
    with pytest.raises(OptionError, match=next(iter(keywords))):
        CgInfluence(CASE.model, CASE.loss, 1.0, **keywords)


SETTINGS_OF = [
    (LissaInfluence, {"maxiter": 0}),
    (LissaInfluence, {"dampen": -0.1}),
    (LissaInfluence, {"dampen": 1.5}),
    (LissaInfluence, {"scale": 0.0}),
    (LissaInfluence, {"scale": math.inf}),
    (LissaInfluence, {"rtol": -1.0}),
    (ArnoldiInfluence, {"rank": 0}),
    (ArnoldiInfluence, {"rank": 2.5}),
    (ArnoldiInfluence, {"krylov_dimension": 10}),
    (ArnoldiInfluence, {"tol": math.nan}),
    (ArnoldiInfluence, {"max_iter": 0}),
    (ArnoldiInfluence, {"use_woodbury": 1}),
    (NystroemSketchInfluence, {"rank": 0}),
    (NystroemSketchInfluence, {"rank": "10"}),
]


@pytest.mark.parametrize(("kind", "keywords"), SETTINGS_OF)
def test_settings_of_other_classes(kind, keywords):
    (name,) = keywords
    with pytest.raises(OptionError, match=f"`{name}` must be") as caught:
        kind(CASE.model, CASE.loss, 1.0, **keywords)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("keywords", [{"labels": "true"}, {"draws": 0}, {"draws": 1.5}])
def test_settings_of_ekfac(keywords):
    (name,) = keywords
    with pytest.raises(OptionError, match=f"`{name}` must be"):
        EkfacInfluence(CASE.model, **keywords)


def test_settings_of_preconditioners():
    with pytest.raises(OptionError, match="num_samples_estimator"):
        JacobiPreconditioner(0)
    with pytest.raises(OptionError, match="rank"):
        NystroemPreconditioner(rank=0)


STRUCTURES = [
    {},
    {"a": []},
    {"a": "weight"},
    {"a": ["nonsense"]},
    {"a": ["weight", "weight"]},
    {"a": ["weight"], "b": ["bias", "weight"]},
]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("solver", WITH_BLOCKS)
def test_block_structures(solver, structure):
    with pytest.raises(BlockError, match="block_structure") as caught:
        solver(CASE.model, CASE.loss, 1.0, block_structure=structure)
    assert isinstance(caught.value, ValueError)


def test_a_block_of_frozen_parameters():
    model = seeded(lambda: nn.Linear(4, 3))
    model.bias.requires_grad_(False)
    with pytest.raises(BlockError, match="'bias'"):
        DirectInfluence(model, CASE.loss, 1.0, {"a": ["bias"]})


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_regularization_that_is_refused_changes_nothing(solver):
    model = fitted(solver)
    want = model.influences(*TEST)
    with pytest.raises(RegularizationError, match=r"\['nonsense'\].*\['']"):
        model.with_regularization({"nonsense": 1.0})
    assert torch.equal(model.influences(*TEST), want)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.linear = nn.Embedding(5, 3), nn.Linear(2, 3)

    def forward(self, x):
        if isinstance(x, dict):
            return self.embed(x["tokens"]) + self.linear(x["more"]["values"])
        if isinstance(x, tuple):
            return self.embed(x[0]) + self.linear(x[1])
        return self.embed(x)


def tokens_case(x):
    return Case(seeded(Tokens), F.cross_entropy, x, classes(9))


INTEGERS, VALUES = classes(9, 5, seed=3), normal(9, 2)


def test_integers_cannot_be_perturbed():
    case = tokens_case(INTEGERS)
    model = DirectInfluence(case.model, case.loss, 1.0).fit(case.loader())
    close(
        model.influences(case.x, case.y),
        case.dense().influences(case.x, case.y, regularization=1.0),
    )
    with pytest.raises(TypeError, match=r"torch.int64.*forward=") as caught:
        model.influences(case.x, case.y, mode="perturbation")
    assert isinstance(caught.value, DataTypeError)
    factors = model.influence_factors(case.x, case.y)
    with pytest.raises(DataTypeError):
        model.influences_from_factors(factors, case.x, case.y, "perturbation")


@pytest.mark.parametrize("structure", ["full", "layer_wise"])
def test_integer_leaves_are_left_out_of_a_dict(structure):
    case = tokens_case({"tokens": INTEGERS, "more": {"values": VALUES}})
    blocks = {
        "": None,
        "layer_wise": {"embed": ["embed.weight"], "linear": ["linear.weight", "linear.bias"]},
    }
    model = DirectInfluence(case.model, case.loss, 1.0, structure).fit(case.loader(4))
    got = model.influences(*case.part(0, 2), case.x, case.y, "perturbation")
    (want,) = case.dense().influences(
        *case.part(0, 2),
        case.x,
        case.y,
        "perturbation",
        regularization=1.0,
        blocks=blocks.get(structure),
    )
    assert got.keys() == {"more"}
    assert got["more"].keys() == {"values"}
    close(got["more"]["values"], want)
    by_block = model.influences_by_block(*case.part(0, 2), case.x, case.y, "perturbation")
    close(sum(share["more"]["values"] for share in by_block.values()), want)


def test_integer_leaves_of_a_tuple_are_none():
    case = tokens_case((INTEGERS, VALUES))
    model = DirectInfluence(case.model, case.loss, 1.0).fit(case.loader(4))
    nothing, got = model.influences(*case.part(0, 2), case.x, case.y, "perturbation")
    assert nothing is None
    (want,) = case.dense().influences(
        *case.part(0, 2), case.x, case.y, "perturbation", regularization=1.0
    )
    close(got, want)


class Pair(NamedTuple):
    tokens: torch.Tensor
    values: torch.Tensor


class Listed(Tokens):
    def forward(self, x):
        return super().forward(tuple(x))


@pytest.mark.parametrize("kind", [list, Pair._make])
def test_perturbations_come_in_the_container_of_the_inputs(kind):
    x = kind([INTEGERS, VALUES])
    model = DirectInfluence(seeded(Listed), F.cross_entropy, 1.0).fit([(x, classes(9))])
    got = model.influences(x, classes(9), mode="perturbation")
    assert type(got) is type(x)
    assert got[0] is None
    assert got[1].shape == (9, *VALUES.shape)


def test_leaves_of_different_length():
    case = tokens_case((INTEGERS, VALUES))
    with pytest.raises(DataError, match="same number"):
        DirectInfluence(case.model, case.loss, 1.0).fit([((INTEGERS, VALUES[:3]), case.y)])


def test_nan_in_a_leaf_is_named():
    case = tokens_case({"tokens": INTEGERS, "more": {"values": with_nan(VALUES, 2)}})
    with pytest.raises(DataError, match=r"x\['more'\]\['values'\]"):
        DirectInfluence(case.model, case.loss, 1.0).fit(case.loader())


REPEATED = {
    **{solver.__name__: (solver, {}) for solver in SOLVERS},
    "jacobi": (CgInfluence, {"preconditioner": JacobiPreconditioner(2), "seed": 3}),
    "nystroem": (
        CgInfluence,
        {"preconditioner": NystroemPreconditioner(4), "solve_simultaneously": True},
    ),
}


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_answer_twice(name, mode):
    solver, keywords = REPEATED[name]
    if name in NAMED:
        keywords = solver.known(second_order_mode=mode, maxiter=60)
    else:
        keywords = {"second_order_mode": mode, **keywords}
    loader = DataLoader(TensorDataset(X, Y), 7)
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = solver(CASE.model, CASE.loss, 0.1, **keywords)
        answers += [model.fit(loader).influences(*TEST, X, Y) for _ in range(2)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_seeds_are_not_ignored():
    def steps(seed):
        keywords = {"preconditioner": JacobiPreconditioner(1), "seed": seed, "rtol": 1e-10}
        case = mlp_case()
        model = CgInfluence(case.model, case.loss, 1e-2, second_order_mode=MODES[2], **keywords)
        return model.fit(case.loader()).influence_factors(*case.part(0, 4))

    assert not torch.equal(steps(0), steps(1))


def test_a_loader_that_changes_its_length():
    class Shrinking:
        def __init__(self):
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(CASE.loader()[self.passes // 2 :])

    with pytest.raises(DataError, match="same points in every pass"):
        DirectInfluence(CASE.model, CASE.loss, 1.0).fit(Shrinking())


def test_a_loss_that_is_nan_for_one_point():
    def loss(f, y):
        return F.cross_entropy(f, y, reduction="none") / (y != 1)

    with pytest.raises(LossError, match="NaN or infinite"):
        DirectInfluence(CASE.model, loss, 1.0).fit(CASE.loader())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("model", "loss", "keywords", "error"),
    [
        (lambda x: x, CASE.loss, {}, ModelError),
        (CASE.model, None, {}, LossError),
        (CASE.model, CASE.loss, {"forward": 3}, OptionError),
        (CASE.model, CASE.loss, {"max_memory": 0}, OptionError),
    ],
)
def test_constructors(solver, model, loss, keywords, error):
    if loss is None and solver.kind is EkfacInfluence:
        return  # it has a loss of its own
    with pytest.raises(error):
        solver(model, loss, 0.5, **keywords)


def test_an_unknown_option():
    with pytest.raises(OptionError, match=r"'forward', 'max_memory'.*'regularisation'"):
        Influence(CASE.model, CASE.loss, Direct(), regularisation=0.1).fit(CASE.loader())
