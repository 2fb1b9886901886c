"""EK-FAC of a model with layers of every kind, against dense matrices made point by point.

The reference takes what the layers see of one point, without padding, and knows nothing of the
code under test: it makes vectors of everything and uses `np.kron`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pickle

import numpy as np
import pytest
from loaders import CountingLoader
from namespaces import NUMPY, STRICT, STRICT_DEVICE, STRICT_FLOAT32, TORCH
from sequences import (
    BACKEND,
    CLASSES,
    HIDDEN,
    LONGEST,
    SHAPES,
    SIZE,
    VOCABULARY,
    WIDTH,
    N,
    SequenceProblem,
    influence,
    loader,
    make_data,
    make_model,
    whole,
)

from influence_core import (
    CapabilityError,
    Cg,
    ConditioningWarning,
    Ekfac,
    EkfacPreconditioner,
    Influence,
    NotImplementedLayerRepresentationException,
    OptionError,
)
from influence_core.curvature import Inverse
from influence_core.layer_calls import LayerCalls
from influence_core.modes import LabelKind
from influence_core.problem import Labels
from influence_core.testing import BACKEND as CLOSED_FORM
from influence_core.testing import LeastSquares

REGULARIZATIONS = (1e-3, 1e-2, 1e-1)
TRAIN, TEST = make_data(N, seed=1), make_data(4, seed=2)

updates = pytest.mark.parametrize("update_diagonal", [False, True], ids=["kfac", "ekfac"])
sharings = pytest.mark.parametrize("sharing", ["expand", "reduce"])
both_labels = pytest.mark.parametrize("labels", ["expected", "given"])
needs_torch = pytest.mark.skipif(not TORCH.installed, reason="torch is not installed")
TORCH_OR_NOT = pytest.param(TORCH, marks=needs_torch)


# the reference


def _places():
    """The columns of the whole vector that the matrix `M` of every layer consists of."""
    start, columns = 0, {}
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        columns[name] = np.arange(start, start + size).reshape(shape)
        start += size
    mix, mix_bias = columns["mix.weight"], columns["mix.bias"][:, None]
    stack, stack_bias = columns["stack.weight"].T, columns["stack.bias"][:, None]
    norm = np.concatenate([columns["norm.scale"], columns["norm.shift"]])
    first, second = slice(0, HIDDEN), slice(HIDDEN, None)
    q, k = slice(0, 2), slice(2, 4)
    return {
        "embed": columns["embed.weight"].T,
        "norm": norm[:, None],
        "mix.0": np.concatenate([mix[first], mix_bias[first]], axis=1),
        "mix.1": np.concatenate([mix[second], mix_bias[second]], axis=1),
        "stack.q": np.concatenate([stack[q], stack_bias[q]], axis=1),
        "stack.k": np.concatenate([stack[k], stack_bias[k]], axis=1),
        "head": columns["head.weight"],
        "bare": columns["bare"][:, None],
    }


PLACES = _places()
FREE = ("norm", "bare")


def one_point(data, index):
    """One sequence without its padding."""
    tokens, labels = data[0][index], data[1][index]
    length = int((tokens >= 0).sum())
    return tokens[None, :length], labels[None, :length] if labels.ndim else labels[None]


def sight(model, data, index, labels="given"):
    """Layer -> vectors `a'`, `(s, i')`, and gradients `(c, s, o)`, of one point."""
    problem = SequenceProblem(model)
    batch = problem.batch(one_point(data, index))
    kind = Labels(LabelKind(labels), None)
    answer = {}
    for name, each in problem.layer_statistics(batch, list(problem.layers()), kind).items():
        g = each.output_gradients[:, 0]
        a, ones = each.inputs[0], np.ones((g.shape[1], 1))
        if name == "embed":
            a = np.eye(VOCABULARY)[a]
        elif name in FREE:
            a = ones
        elif name != "head":
            a = np.concatenate([a, ones], axis=1)
        answer[name] = a, g
    return answer


def rows_of(model, data):
    """The gradients, `(n, p)`, from complex steps of the loss."""
    return np.stack([_gradient(model, *one_point(data, i)) for i in range(len(data[0]))])


def _gradient(model, tokens, labels):
    theta = np.concatenate([model.parameters[name].ravel() for name in SHAPES])
    steps = 1e-30j * np.eye(SIZE)
    return np.array(
        [_loss(model, theta + step, tokens[0], labels[0]).imag / 1e-30 for step in steps]
    )


def _loss(model, theta, tokens, labels):
    v, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        v[name], start = theta[start : start + size].reshape(shape), start + size
    inner = []
    for token in tokens:
        u = v["norm.scale"] * v["embed.weight"][token] + v["norm.shift"]
        halves = np.split(u, 2)
        z = np.concatenate(
            [w @ half for w, half in zip(np.split(v["mix.weight"], 2), halves, strict=True)]
        )
        inner.append(np.tanh(v["stack.weight"].T @ np.tanh(z + v["mix.bias"]) + v["stack.bias"]))
    if model.pooled:
        inner, labels = [sum(inner) / len(inner)], [labels]
    losses = []
    for t, label in zip(inner, labels, strict=True):
        f = v["head.weight"] @ t + v["bare"]
        losses.append(np.log(np.exp(f).sum()) - f[label])
    return sum(losses) / len(losses)


def fisher(
    model,
    data,
    *,
    update_diagonal=True,
    sharing="expand",
    labels="expected",
    largest_exact=2048,
    largest_factor=99,
    leave_out=(),
):
    """The approximated Fisher matrix, dense, `(p, p)`."""
    seen = [sight(model, data, index, labels) for index in range(len(data[0]))]
    matrix = np.zeros((SIZE, SIZE))
    for name, places in PLACES.items():
        if name in leave_out:
            continue
        o, i = places.shape
        dense_s = o <= (largest_exact if name in FREE else largest_factor)
        dense_a = name != "embed" and i <= largest_factor
        a, s = np.zeros((i, i)), np.zeros((o, o))
        for inputs, gradients in (each[name] for each in seen):
            if sharing == "reduce":
                inputs = inputs.mean(axis=0, keepdims=True)
            if sharing == "reduce" or name in FREE:
                gradients = gradients.sum(axis=1, keepdims=True)
            a += sum(np.outer(v, v) for v in inputs) / len(inputs) / len(seen)
            s += sum(np.outer(g, g) for each in gradients for g in each) / len(seen)
        a, s = (m if dense else np.diag(np.diag(m)) for m, dense in ((a, dense_a), (s, dense_s)))
        q_a, q_s = (
            np.linalg.eigh(m)[1] if dense else np.eye(len(m))
            for m, dense in ((a, dense_a), (s, dense_s))
        )
        basis = np.kron(q_s, q_a)
        values = np.diag(basis.T @ np.kron(s, a) @ basis)
        if update_diagonal:
            values = np.zeros(o * i)
            for inputs, gradients in (each[name] for each in seen):
                for g in gradients:
                    row = sum(np.kron(b, v) for b, v in zip(g, inputs, strict=True))
                    values += (basis.T @ row) ** 2 / len(seen)
        own = places.ravel()
        matrix[np.ix_(own, own)] = basis @ np.diag(values) @ basis.T
    return matrix


@functools.cache
def usual_fisher(**settings):
    return fisher(make_model(), TRAIN, **settings)


@functools.cache
def train_rows():
    return rows_of(make_model(), TRAIN)


@functools.cache
def asked_rows():
    return rows_of(make_model(), TEST)


def solve(matrix, rows, regularization):
    return np.linalg.solve(matrix + regularization * np.eye(len(matrix)), rows.T).T


def factors_of(matrix, regularization):
    """The factors of the usual test points."""
    return solve(matrix, asked_rows(), regularization)


def accuracy(library):
    return 1e-8 if library.dtype == "float64" else 5e-3


def fitted(method, library=NUMPY, *, data=TRAIN, batch_size=5, model=None, **options):
    model = model or make_model(library)
    return influence(model, method, **options).fit(loader(data, library, batch_size))


# the model itself


@pytest.mark.parametrize("pooled", [False, True])
def test_the_gradients_of_the_model(library, pooled):
    """In closed form, with padding, and by complex steps without."""
    data = make_data(N, 1, pooled)
    problem = SequenceProblem(make_model(library, pooled=pooled))
    got = problem.gradients(problem.batch(whole(data, library)), list(SHAPES))
    want = rows_of(make_model(pooled=pooled), data)
    library.close(got, want, 1e-10 if library.dtype == "float64" else 1e-4)


def test_the_reference_rebuilds_the_gradients():
    want = asked_rows()
    for index, row in enumerate(want):
        for name, (a, g) in sight(make_model(), TEST, index).items():
            np.testing.assert_allclose(g[0].T @ a, row[PLACES[name]], atol=1e-12)


# factors and solves


@updates
@sharings
@both_labels
def test_every_library(library, update_diagonal, sharing, labels):
    settings = {"update_diagonal": update_diagonal, "sharing": sharing, "labels": labels}
    matrix = usual_fisher(**settings)
    model = fitted(Ekfac(**settings), library)
    for regularization in REGULARIZATIONS:
        model.with_regularization(regularization)
        want = factors_of(matrix, regularization)
        library.close(model.influence_factors(*whole(TEST, library)), want, accuracy(library))
        assert model.report.popitem()[1].converged.all()


@updates
@sharings
def test_pooled(update_diagonal, sharing):
    """Layers with other positions than the rest."""
    model, train, test = make_model(pooled=True), make_data(N, 1, True), make_data(4, 2, True)
    settings = {"update_diagonal": update_diagonal, "sharing": sharing}
    inverse = fitted(Ekfac(**settings), model=model, data=train, regularization=1e-2)
    matrix = fisher(model, train, **settings)
    want = solve(matrix, rows_of(model, test), 1e-2)
    NUMPY.close(inverse.influence_factors(*test), want, 1e-8)
    scores = inverse.influences(*test, *train)
    NUMPY.close(scores, want @ rows_of(model, train).T, 1e-8)


@updates
@pytest.mark.parametrize("labels", ["expected", "given", "sampled"])
@sharings
def test_neither_batches_nor_padding_matter(update_diagonal, labels, sharing):
    """Each batch is padded to its own longest sequence only."""
    method = Ekfac(update_diagonal, labels=labels, draws=2, seed=3, sharing=sharing)
    want = fitted(method, batch_size=N, regularization=1e-3).influence_factors(*TEST)
    for batch_size in (1, 7):
        model = fitted(method, batch_size=batch_size, regularization=1e-3)
        NUMPY.close(model.influence_factors(*TEST), want, 1e-10)


def test_padding_in_front_of_other_indices_changes_nothing():
    """What stands at padding is of no account, in the factors as in the scores."""
    method = Ekfac(True)
    problem = SequenceProblem(make_model())
    batch = problem.batch(TRAIN)
    other = dataclasses.replace(
        batch, indices=np.where(batch.counted > 0, batch.indices, VOCABULARY - 1)
    )
    assert np.any(other.indices != batch.indices)
    want = fitted(method, regularization=1e-2).influences(*TEST, *TRAIN)

    class Padded(SequenceProblem):
        def batch(self, data):
            made = super().batch(data)
            indices = np.where(made.counted > 0, made.indices, VOCABULARY - 1)
            return dataclasses.replace(made, indices=indices)

    model = fitted(method, regularization=1e-2)
    model._fitted = dataclasses.replace(model._fitted, problem=Padded(make_model()))
    NUMPY.close(model.influences(*TEST, *TRAIN), want, 1e-10)


def test_sampled_labels_converge_to_the_expected_ones():
    want = fitted(Ekfac(True, labels="expected"), regularization=0.1).influence_factors(*TEST)

    def error(draws):
        model = fitted(Ekfac(True, labels="sampled", draws=draws), regularization=0.1)
        return np.linalg.norm(model.influence_factors(*TEST) - want) / np.linalg.norm(want)

    assert 4 * error(400) < error(4)


LIMITS = [
    {"largest_exact": 2 * WIDTH - 1},
    {"largest_exact": 1},
    {"largest_factor": 2},
    {"largest_factor": 4, "largest_exact": 1},
    {"largest_factor": 1},
]


@updates
@sharings
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_factors_that_are_diagonal(update_diagonal, sharing, limits):
    settings = {"update_diagonal": update_diagonal, "sharing": sharing, **limits}
    model = fitted(Ekfac(**settings), regularization=1e-2)
    want = factors_of(usual_fisher(**settings), 1e-2)
    NUMPY.close(model.influence_factors(*TEST), want, 1e-8)
    scores = model.influences(*TEST, *TRAIN)
    NUMPY.close(scores, want @ train_rows().T, 1e-8)


def test_free_parameters_are_exact():
    """Their block is that of the Fisher matrix itself, with one pass or two."""
    rows = []
    for index in range(N):
        for name in FREE:
            assert sight(make_model(), TRAIN, index, "expected")[name][0].shape[1] == 1
        slices = {n: g for n, (_, g) in sight(make_model(), TRAIN, index, "expected").items()}
        rows.append(slices["norm"].sum(axis=1))
    rows = np.concatenate(rows)
    exact = rows.T @ rows / N
    own = PLACES["norm"].ravel()
    for update_diagonal in (False, True):
        block = fitted(Ekfac(update_diagonal))._fitted.inverses["norm"]
        vectors = np.eye(2 * WIDTH)
        got = np.linalg.inv(block.solve(vectors, 1e-3).rows) - 1e-3 * vectors
        np.testing.assert_allclose(got, exact, atol=1e-10 * np.abs(exact).max())
        np.testing.assert_allclose(usual_fisher()[np.ix_(own, own)], exact, atol=1e-12)


@updates
def test_one_position_of_a_linear_softmax_model_is_exact(update_diagonal):
    """`F = (diag(π) - ππᵀ) ⊗ a aᵀ` for one point that uses its layer once."""
    data = (TRAIN[0][:1, :1], TRAIN[1][:1, :1])
    model = fitted(Ekfac(update_diagonal, labels="expected"), data=data)
    block = model._fitted.inverses["head"]
    problem = SequenceProblem(make_model())
    trace = problem._trace(problem.batch(data))
    a, p = trace["t"][0, 0], trace["chances"][0, 0]
    exact = np.kron(np.diag(p) - np.outer(p, p), np.outer(a, a))
    rows = np.random.default_rng(0).standard_normal((3, exact.shape[0]))
    for regularization in REGULARIZATIONS:
        got = block.solve(rows, regularization).rows
        NUMPY.close(got, solve(exact, rows, regularization), 1e-9)


def test_tokens_that_were_never_met():
    """Their columns have no curvature: with λ their inverse is 1/λ, without it is nothing."""
    model = fitted(Ekfac(True), regularization=0.5)
    place = PLACES["embed"][:, VOCABULARY - 1]
    rows = np.zeros((1, SIZE))
    rows[:, place] = 1.0
    np.testing.assert_allclose(model.apply_inverse(rows)[:, place], 2.0)
    with pytest.warns(ConditioningWarning, match="eigenvalues are zero"):
        assert not model.with_regularization(0.0).apply_inverse(rows).any()


# scores


def check_both_ways(library, update_diagonal, m, structure):
    model = fitted(Ekfac(update_diagonal), library, block_structure=structure)
    state = model._fitted
    test = make_data(m, seed=5)
    left = state.test_points(whole(test, library), "here")
    right = state.points(whole(TRAIN, library), "here")
    tolerance = 1e-9 if library.dtype == "float64" else 2e-4
    for block in state.blocks:
        inverse = state.inverses[block.name]
        sides = left.of(block.names), right.of(block.names)
        short, reports = inverse.scores(*sides, REGULARIZATIONS)
        long, _ = Inverse.scores(inverse, *sides, REGULARIZATIONS)
        library.close(short, library.host(long), tolerance)
        assert [report.iterations.size for report in reports] == [min(m, N)] * 3
        short, _ = inverse.self_scores([sides[1]], 1e-2)
        long, _ = Inverse.self_scores(inverse, [sides[1]], 1e-2)
        library.close(short, library.host(long), tolerance)


@pytest.mark.parametrize("m", [4, 31])
def test_both_ways_to_the_scores(library, m):
    check_both_ways(library, True, m, "layer_wise")


@updates
@pytest.mark.parametrize("m", [1, 4, 31])
@pytest.mark.parametrize("structure", ["full", "layer_wise", "parameter_wise"])
def test_both_ways_to_the_scores_of_blocks(update_diagonal, m, structure):
    check_both_ways(NUMPY, update_diagonal, m, structure)


@pytest.mark.parametrize("memory", [1, 3000, 10**4, None])
def test_any_memory(memory):
    """Down to a single point of each side at a time."""
    sides = (*TEST, *TRAIN)
    want = fitted(Ekfac(True), regularization=1e-2)
    got = fitted(Ekfac(True), regularization=1e-2, max_memory=memory)
    NUMPY.close(got.influences(*sides), want.influences(*sides), 1e-9)
    NUMPY.close(got.influences_by_position(*sides), want.influences_by_position(*sides), 1e-9)
    batches = loader(TRAIN)
    NUMPY.close(got.self_influences(batches), want.self_influences(batches), 1e-9)


def test_self_influences_are_the_diagonal(library):
    model = fitted(Ekfac(True), library, regularization=1e-2)
    square = library.host(model.influences(*whole(TRAIN, library)))
    tolerance = 1e-9 if library.dtype == "float64" else 1e-3
    library.close(model.self_influences(loader(TRAIN, library)), np.diag(square), tolerance)


def test_the_layers_sum_to_the_whole():
    model = fitted(Ekfac(True), regularization=1e-2)
    shares = model.influences_by_layer(*TEST, *TRAIN)
    assert list(shares) == ["embed", "norm", "mix", "stack", "head", ""]
    NUMPY.close(sum(shares.values()), model.influences(*TEST, *TRAIN), 1e-10)


def position_rows(model, data):
    """The gradients of every position, `(n, s, p)`, with zeros at padding."""
    rows = np.zeros((len(data[0]), LONGEST, SIZE))
    for index in range(len(data[0])):
        for name, (a, g) in sight(model, data, index).items():
            each = np.einsum("so,si->soi", g[0], a)
            rows[index, : len(a), PLACES[name].ravel()] = each.reshape(len(a), -1).T
    return rows


@updates
@pytest.mark.parametrize("structure", ["full", "layer_wise", "parameter_wise"])
def test_positions_sum_to_the_score(library, update_diagonal, structure):
    model = fitted(Ekfac(update_diagonal), library, regularization=1e-2, block_structure=structure)
    got = model.influences_by_position(*whole(TEST, library), *whole(TRAIN, library))
    assert isinstance(model.report, dict) == (structure != "full")
    host = library.host(got)
    assert host.shape == (4, N, LONGEST)
    assert not host[:, TRAIN[0] < 0].any()
    assert host[:, TRAIN[0] >= 0].all()
    scores = model.influences(*whole(TEST, library), *whole(TRAIN, library))
    tolerance = 1e-9 if library.dtype == "float64" else 1e-3
    library.close(scores, host.sum(axis=2), tolerance)
    if structure != "parameter_wise":
        factors = factors_of(usual_fisher(update_diagonal=update_diagonal), 1e-2)
        want = np.einsum("mp,nsp->mns", factors, position_rows(make_model(), TRAIN))
        library.close(got, want, accuracy(library))


def test_positions_of_the_test_points_themselves():
    model = fitted(Ekfac(True), regularization=1e-2)
    got = model.influences_by_position(*TRAIN)
    NUMPY.close(got, model.influences_by_position(*TRAIN, *TRAIN), 0.0)


def test_positions_that_differ():
    model, train = make_model(pooled=True), make_data(N, 1, True)
    model = fitted(Ekfac(), model=model, data=train, regularization=1e-2)
    with pytest.raises(CapabilityError, match=r"most see 5, and 'head', 'bare' 1\. Freeze"):
        model.influences_by_position(*train)


def test_calls_of_layers_need_a_method_with_layers():
    model = LayerCalls(make_model(), None, Cg(), backend=BACKEND, second_order_mode="gauss_newton")
    with pytest.raises(CapabilityError, match=r"`layer_summary` needs .*; Cg does not\. Use Ekfac"):
        model.layer_summary()
    model = model.with_regularization(1.0).fit(loader(TRAIN))
    with pytest.raises(CapabilityError, match="`influences_by_position` needs a method that sees"):
        model.influences_by_position(*TEST)


# what is no layer's


FAULT = "the modules 'a' and 'b' share it"


def test_a_fault_is_told():
    model = make_model(fault=FAULT)
    with pytest.raises(
        NotImplementedLayerRepresentationException,
        match=r"'bare': the modules 'a' and 'b' share it\. .*unsupported='skip' .*'diagonal' for",
    ):
        fitted(Ekfac(), model=model)
    with pytest.raises(NotImplementedLayerRepresentationException, match="'bare'"):
        influence(model, Ekfac()).layer_summary()


@updates
def test_a_fault_gets_a_diagonal_block(update_diagonal):
    model = make_model(fault=FAULT)
    method = Ekfac(update_diagonal, unsupported="diagonal")
    got = fitted(method, model=model, regularization=1e-2)
    matrix = usual_fisher(update_diagonal=update_diagonal).copy()
    own = PLACES["bare"].ravel()
    block = matrix[np.ix_(own, own)]
    matrix[np.ix_(own, own)] = np.diag(np.diag(block))
    want = factors_of(matrix, 1e-2)
    NUMPY.close(got.influence_factors(*TEST), want, 1e-8)


def test_what_the_backend_does_not_show_has_no_diagonal_block():
    model = make_model(fault=FAULT, hidden=("head", "mix.1"))
    with pytest.raises(
        NotImplementedLayerRepresentationException,
        match=r"'mix.weight', 'mix.bias': its rows from 3 on are of no such layer, and the backend "
        r"shows .*; 'head.weight': of no such layer, and .* unsupported='skip' to leave it out, or",
    ):
        fitted(Ekfac(unsupported="diagonal"), model=model)


@updates
@pytest.mark.parametrize("structure", ["full", "layer_wise"])
def test_what_is_skipped_has_no_influence(update_diagonal, structure, caplog):
    """The bare parameter has a fault, the head is hidden, and half of the mixing."""
    model = make_model(fault=FAULT, hidden=("head", "mix.1"))
    left_out = ("bare", "head", "mix.0", "mix.1")
    method = Ekfac(update_diagonal, unsupported="skip")
    with caplog.at_level(logging.INFO, logger="influence_core"):
        got = fitted(method, model=model, regularization=1e-2, block_structure=structure)
    (record,) = caplog.records
    assert "leaves out" in record.message
    assert all(name in record.message for name in ("'bare'", "'head.weight'", "'mix.bias'"))
    keep = np.ones(SIZE)
    for name in left_out:
        keep[PLACES[name].ravel()] = 0.0
    matrix = usual_fisher(update_diagonal=update_diagonal, leave_out=left_out)
    want = factors_of(matrix, 1e-2) * keep
    NUMPY.close(got.influence_factors(*TEST), want, 1e-8)
    reports = got.report if structure == "layer_wise" else {"": got.report}
    assert max(report.residual_norms.max() for report in reports.values()) < 1e-12
    scores = got.influences(*TEST, *TRAIN)
    NUMPY.close(scores, want @ train_rows().T, 1e-8)
    square = got.influences(*TRAIN)
    NUMPY.close(got.self_influences(loader(TRAIN)), np.diag(square), 1e-9)
    NUMPY.close(got.influences_by_position(*TEST, *TRAIN).sum(axis=2), scores, 1e-9)
    asked = {name for names in got._fitted.problem.asked for name in names}
    assert asked == {"embed", "norm", "stack.q", "stack.k"}


def test_everything_is_skipped():
    model = make_model(hidden=tuple(PLACES))
    got = fitted(Ekfac(unsupported="skip"), model=model, regularization=1e-2)
    assert not got.influence_factors(*TEST).any()
    assert got.influences(*TEST, *TRAIN).shape == (4, N)
    assert not got.influences(*TEST, *TRAIN).any()


class UsedElsewhere(SequenceProblem):
    """The gradients of one parameter have a part that its layer does not see."""

    wrong = ""

    def gradients(self, batch, names):
        rows, start = super().gradients(batch, names).copy(), 0
        for name in names:
            size = int(np.prod(SHAPES[name]))
            if name == self.wrong:
                rows[:, start + size - 1] += 1e-2
            start += size
        return rows


@pytest.mark.parametrize("memory", [1, None])
@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_is_held_against_the_gradients(name, memory, monkeypatch):
    monkeypatch.setattr(UsedElsewhere, "wrong", name)
    spec = dataclasses.replace(BACKEND, factory=f"{__name__}:UsedElsewhere")
    with pytest.raises(NotImplementedLayerRepresentationException, match=f"'{name}': the layer's"):
        fitted(Ekfac(), backend=spec, max_memory=memory)


class WrongWidth(SequenceProblem):
    """The inputs of one layer are of another length than it says."""

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, layers, labels)
        seen = found.get("head")
        if seen is not None:
            found["head"] = dataclasses.replace(seen, inputs=seen.inputs[..., 1:])
        return found


def test_inputs_of_another_length():
    spec = dataclasses.replace(BACKEND, factory=f"{__name__}:WrongWidth")
    with pytest.raises(NotImplementedLayerRepresentationException, match=r"'head\.weight': the"):
        fitted(Ekfac(), backend=spec)


# memory, passes and numbers


@pytest.mark.parametrize("at_once", [1, 3, 8, 99])
@pytest.mark.parametrize(("update_diagonal", "each"), [(False, 1), (True, 2)])
def test_layers_a_group_at_a_time(at_once, update_diagonal, each):
    batches = CountingLoader(loader(TRAIN))
    method = Ekfac(update_diagonal, layers_at_once=at_once)
    model = influence(make_model(), method, regularization=1e-2).fit(batches)
    order = list(SequenceProblem(make_model()).layers())
    groups = [order[start : start + at_once] for start in range(0, len(order), at_once)]
    exact = sum(set(group) <= set(FREE) for group in groups)
    passes = each * len(groups) - (exact if update_diagonal else 0)
    assert batches.since() == 1 + passes  # one to check the data
    want = fitted(Ekfac(update_diagonal), regularization=1e-2).influence_factors(*TEST)
    NUMPY.close(model.influence_factors(*TEST), want, 1e-10)
    asked = {names for names in model._fitted.problem.asked if len(names) > at_once}
    assert asked <= {tuple(dict.fromkeys(model._fitted._watched.layers))}


@updates
@pytest.mark.parametrize(
    "library", [NUMPY, STRICT, pytest.param(TORCH, marks=needs_torch)], ids=str
)
def test_short_factors_of_a_long_model(library, update_diagonal):
    model = fitted(Ekfac(update_diagonal, factor_dtype="float32"), library, regularization=1e-2)
    short = dataclasses.replace(library, dtype="float32").array(0.0).dtype
    layers = [layer for each in model._fitted.inverses.values() for layer in each.layers]
    assert {q.dtype for each in layers for q in (each.inputs, each.outputs) if q is not None} == {
        short
    }
    want = factors_of(usual_fisher(update_diagonal=update_diagonal), 1e-2)
    got = library.host(model.influence_factors(*whole(TEST, library)))
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 1e-10 < error < 1e-4
    scores = model.influences(*whole(TEST, library), *whole(TRAIN, library))
    square = library.host(scores)
    np.testing.assert_allclose(square, got @ train_rows().T, rtol=1e-4, atol=1e-4)


def test_long_factors_of_a_short_model():
    """Second moments of nearly dependent inputs: the smaller eigenvalue is lost in float32."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((2, 2)))[0]
    x = ((rng.standard_normal((400, 2)) * [1.0, 1e-5]) @ turn).astype(np.float32)
    net = LeastSquares({"weight": np.ones((1, 2), np.float32)})
    want = np.linalg.eigvalsh(x.T.astype(np.float64) @ x / 400)[0]

    def smallest(dtype):
        method = Ekfac(factor_dtype=dtype)
        model = Influence(net, None, method, backend=CLOSED_FORM, regularization=0.1)
        (layer,) = model.fit([(x, np.ones((400, 1), np.float32))])._fitted.inverses[""].layers
        assert layer.inputs.dtype == np.float32
        return layer.values.min()

    np.testing.assert_allclose(smallest("float64"), want, rtol=1e-5)
    for dtype in ("float32", None):
        assert abs(smallest(dtype) - want) > 0.5 * want


def test_factors_that_the_device_does_not_have():
    with pytest.raises(OptionError, match="`factor_dtype='float64'` needs a device that computes"):
        fitted(Ekfac(factor_dtype="float64"), STRICT_FLOAT32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "mine"}, "`sharing` must be .*'expand', 'reduce'"),
        ({"unsupported": "mine"}, "`unsupported` must be .*'raise', 'diagonal', 'skip'"),
        ({"largest_exact": 0}, "`largest_exact` must be an integer of one or more"),
        ({"largest_factor": 0}, "`largest_factor` must be an integer of one or more or None"),
        ({"layers_at_once": 1.5}, "`layers_at_once` must be an integer of one or more or None"),
        ({"factor_dtype": "half"}, "`factor_dtype` must be one of 'float32', 'float64', or None"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        Ekfac(**options)


# libraries and devices


@updates
@pytest.mark.parametrize(
    ("library", "solver"),
    [
        pytest.param(NUMPY, "array_api_strict", id="numpy-strict"),
        pytest.param(STRICT, "numpy", id="strict-numpy"),
        pytest.param(NUMPY, "torch", id="numpy-torch", marks=needs_torch),
        pytest.param(TORCH, "numpy", id="torch-numpy", marks=needs_torch),
    ],
)
def test_another_library_solves(library, solver, update_diagonal):
    """Indices cross over as well, and what counts."""
    model = fitted(Ekfac(update_diagonal), library, regularization=1e-2, array_backend=solver)
    want = factors_of(usual_fisher(update_diagonal=update_diagonal), 1e-2)
    sides = (*whole(TEST, library), *whole(TRAIN, library))
    library.close(model.influences(*sides), want @ train_rows().T, 1e-8)
    by_position = np.einsum("mp,nsp->mns", want, position_rows(make_model(), TRAIN))
    library.close(model.influences_by_position(*sides), by_position, 1e-8)


def test_moves_with_the_model():
    model = fitted(Ekfac(True), STRICT, regularization=1e-2)
    want = STRICT.host(model.influences(*whole(TEST, STRICT), *whole(TRAIN, STRICT)))
    model = model.to(STRICT_DEVICE.array(0.0).device)
    sides = (*whole(TEST, STRICT_DEVICE), *whole(TRAIN, STRICT_DEVICE))
    STRICT_DEVICE.close(model.influences(*sides), want, 1e-10)


def test_inverses_pickle():
    model = fitted(Ekfac(True, unsupported="skip"), model=make_model(fault=FAULT))
    rows = np.random.default_rng(0).standard_normal((2, SIZE))
    for name, part in model._fitted.split(rows, "here").items():
        inverse = model._fitted.inverses[name]
        copy = pickle.loads(pickle.dumps(inverse))
        np.testing.assert_array_equal(copy.solve(part, 0.1).rows, inverse.solve(part, 0.1).rows)


def test_as_a_preconditioner():
    """Of a system with another matrix: the answer stays that of the matrix."""
    options = {"backend": BACKEND, "second_order_mode": "gauss_newton", "regularization": 1e-2}
    method = Cg(rtol=1e-12, atol=0.0, preconditioner=EkfacPreconditioner())
    model = Influence(make_model(), None, method, **options).fit(loader(TRAIN))
    rows = train_rows()
    want = solve(rows.T @ rows / N, asked_rows(), 1e-2)
    NUMPY.close(model.influence_factors(*TEST), want, 1e-8)
    assert model.report.converged.all()
    assert CLASSES == 3
