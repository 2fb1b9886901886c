"""LiSSA: the recursion, its limit, the order of the batches, what it costs, and how it fails."""

import logging
import pickle
import re
import warnings

import numpy as np
import pytest
from abilities import BARE, COURTEOUS
from loaders import ChangingLoader, CountingLoader
from namespaces import NUMPY_FLOAT32, STRICT, TORCH
from problems import (
    CONVEX_KINDS,
    DEFINITE,
    FEW,
    REGULARIZATIONS,
    REPRESENTATIVE,
    N,
    Setting,
    fitted,
    influence,
    make_setting,
)

from influence_core import ConvergenceWarning, DataError, NonFiniteError, OptionError
from influence_core.arrays import read_float
from influence_core.methods import neumann
from influence_core.methods.lissa import Lissa
from influence_core.testing import ClosedFormProblem

representative = pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
quiet = pytest.mark.filterwarnings("ignore:LiSSA:influence_core.ConvergenceWarning")
WEIGHTS = np.linspace(0.0, 3.0, N)


def random_rows(model, k, seed=0):
    return np.random.default_rng(seed).standard_normal((k, model.n_parameters))


def orders(seed, batches, steps):
    """The indices of the batches in the first steps."""
    stream, found = np.random.default_rng(np.random.SeedSequence(seed)), []
    while len(found) < steps:
        found.extend(stream.permutation(batches).tolist())
    return found[:steps]


def step_matrices(setting, size, mode, weights=None, penalty=None):
    """One dense matrix a batch, whose mean is the curvature of all points."""
    x, y = setting.host_train
    total = N if weights is None else weights.sum()
    diagonal = setting.oracle(penalty=penalty).curvature(mode) - setting.oracle().curvature(mode)
    matrices = []
    for at in range(0, N, size):
        part = slice(at, at + size)
        share = (len(y[part]) if weights is None else weights[part].sum()) / total
        batch = type(setting)(setting.library, setting.model, (x[part], y[part]))
        own = None if weights is None else weights[part]
        matrices.append(share * batch.oracle(weights=own).curvature(mode))
    return [len(matrices) * matrix + diagonal for matrix in matrices]


def recursion(b, matrices, order, regularization, scale, dampen=0.0):
    """The documented recursion in dense float64."""
    h = b
    for index in order:
        h = b + (1 - dampen) * h - (h @ matrices[index] + regularization * h) / scale
    return h / scale


# The limit


# eigenvalues near zero at a small λ take tens of thousands of steps: one network does
CASES = [
    (kind, curvature, regularization)
    for kind, curvature in DEFINITE
    for regularization in REGULARIZATIONS
    if kind in CONVEX_KINDS or regularization > 1e-3 or "cross" in kind
]


@pytest.mark.parametrize(("kind", "curvature", "regularization"), CASES)
@pytest.mark.parametrize("dampen", [0.0, 0.01])
def test_one_batch_is_the_dense_solve(kind, curvature, regularization, dampen):
    setting = make_setting(kind)
    scale = 0.6 * np.linalg.norm(setting.oracle().damped(curvature, regularization), 2)
    method = Lissa(maxiter=100_000, rtol=1e-9, scale=scale, dampen=dampen)
    options = {"regularization": regularization, "second_order_mode": curvature}
    model = fitted(setting, method, batch_size=N, **options)
    got = model.influences(*setting.test(2), *setting.train)
    want = setting.oracle().influences(
        *setting.host_test(2),
        *setting.host_train,
        mode=curvature,
        regularization=regularization + dampen * scale,
    )
    setting.library.close(got, want, 1e-6)
    assert model.report.converged.all()


@representative
def test_one_batch_on_every_library(library, kind, curvature):
    setting = make_setting(kind, library)
    rtol = 1e-9 if library.dtype == "float64" else 1e-6
    options = {"regularization": 1e-1, "second_order_mode": curvature}
    method = Lissa(maxiter=3000, rtol=rtol, scale=None)
    model = fitted(setting, method, batch_size=N, **options)
    got = model.influences(*setting.test(), *setting.train)
    want = setting.oracle().influences(
        *setting.host_test(), *setting.host_train, mode=curvature, regularization=1e-1
    )
    library.close(got, want, 1e-6 if library.dtype == "float64" else 1e-4)
    assert model.report.converged.all()


@pytest.mark.parametrize("kind", ["least_squares", "tanh_squared"])
def test_layers_are_blocks_of_their_own(kind):
    setting = make_setting(kind)
    blocks = {name: [name] for name in setting.parameters}
    options = {"regularization": 1e-1, "second_order_mode": "gauss_newton"}
    method = Lissa(maxiter=5000, rtol=1e-10, scale=None)
    model = fitted(setting, method, batch_size=N, block_structure=blocks, **options)
    got = model.influences_by_block(*setting.test(), *setting.train)
    want = setting.oracle().influences_by_block(
        *setting.host_test(),
        *setting.host_train,
        mode="gauss_newton",
        regularization=1e-1,
        blocks=blocks,
    )
    for name in blocks:
        setting.library.close(got[name], want[name], 1e-6)
        assert model.report[name].converged.all()


@pytest.mark.filterwarnings("ignore:LiSSA.*have not converged:influence_core.ConvergenceWarning")
def test_points_of_a_short_last_batch_count_like_all_others():
    """Small steps average the batches up to O(1 / scale); one point is one of 23 in the mean."""
    setting, mode, lam = make_setting("least_squares"), "generalized_gauss_newton", 0.1
    errors, want = [], None
    for scale in (50.0, 100.0):
        answers = []
        for seed in range(4):
            method = Lissa(scale=scale, maxiter=3000, rtol=0.0, seed=seed)
            model = fitted(
                setting, method, batch_size=N - 1, regularization=lam, second_order_mode=mode
            )
            rows = random_rows(model, 3)
            answers.append(model.apply_inverse(rows))
            # no row stops by its change; the residual is what counts
            assert (model.report.iterations == 3000).all()
            relative = model.report.residual_norms / np.linalg.norm(rows, axis=1)
            assert (model.report.converged == (relative <= 0.01)).all()
        want = np.linalg.solve(setting.oracle().damped(mode, lam), rows.T).T
        errors.append(np.linalg.norm(np.mean(answers, axis=0) - want) / np.linalg.norm(want))
    matrices = step_matrices(setting, N - 1, mode)
    plain = matrices[0] * N / (2 * (N - 1)) / 2 + matrices[1] * N / 2 / 2
    wrong = np.linalg.solve(plain + lam * np.eye(len(plain)), rows.T).T
    assert errors[1] < 0.6 * errors[0] < 0.02
    assert np.linalg.norm(wrong - want) / np.linalg.norm(want) > 20 * errors[1]


# The recursion


@representative
@pytest.mark.parametrize("size", [5, 12, N - 1])
def test_the_documented_recursion(library, kind, curvature, size):
    setting, steps = make_setting(kind, library), 37
    method = Lissa(scale=20.0, dampen=1e-3, maxiter=steps, rtol=0.0, seed=3)
    options = {"regularization": 1e-2, "second_order_mode": curvature}
    model = fitted(setting, method, batch_size=size, **options)
    rows = random_rows(model, 3) * np.array([[1.0], [1e-5], [1e5]])
    with pytest.warns(ConvergenceWarning):
        got = library.host(model.apply_inverse(library.array(rows)))
    matrices = step_matrices(setting, size, curvature)
    want = recursion(rows, matrices, orders(3, len(matrices), steps), 1e-2, 20.0, 1e-3)
    errors = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    assert errors.max() <= library.tolerance
    assert model.report.iterations.tolist() == [steps] * 3


@pytest.mark.parametrize("array_backend", [None, "array_api_strict"])
def test_weights_and_penalty(array_backend):
    setting, steps, mode = make_setting("tanh_squared"), 25, "gauss_newton"
    penalty = {"hidden.weight": 0.3, "output.bias": 0.7}
    assert penalty.keys() <= setting.parameters.keys()
    model = influence(
        setting,
        Lissa(scale=30.0, maxiter=steps, warn_on_max_iteration=False),
        regularization=1e-2,
        second_order_mode=mode,
        penalty=penalty,
        array_backend=array_backend,
    )
    parts = [slice(at, at + 5) for at in range(0, N, 5)]
    x, y = setting.train
    model.fit([(x[part], y[part], WEIGHTS[part]) for part in parts])
    rows = random_rows(model, 2)
    matrices = step_matrices(setting, 5, mode, WEIGHTS, penalty)
    want = recursion(rows, matrices, orders(0, len(matrices), steps), 1e-2, 30.0)
    setting.library.close(model.apply_inverse(rows), want)


@pytest.mark.parametrize(
    ("library", "solver"),
    [
        (NUMPY_FLOAT32, "array_api_strict"),
        (STRICT, "numpy"),
        pytest.param(
            TORCH,
            "numpy",
            marks=pytest.mark.skipif(not TORCH.installed, reason="torch is not installed"),
        ),
    ],
    ids=str,
)
@quiet
def test_exchange_changes_no_number(library, solver):
    setting = make_setting("logistic", library)
    answers = [
        fitted(
            setting, Lissa(maxiter=50, scale=None), regularization=0.1, array_backend=name
        ).influences(*setting.test(), *setting.train)
        for name in (None, solver)
    ]
    library.close(answers[1], library.host(answers[0]))


def test_a_row_does_not_depend_on_the_others(library):
    setting = make_setting("logistic", library)
    method = Lissa(maxiter=60, rtol=2e-2, scale=None, warn_on_max_iteration=False)
    model = fitted(setting, method, regularization=1e-1)
    b = random_rows(model, 4)
    b[2] = 0.0
    together = library.host(model.apply_inverse(library.array(b)))
    steps = model.report.iterations
    assert not together[2].any()
    assert steps[2] == 0
    for row, answer, count in zip(b, together, steps, strict=True):
        alone = library.host(model.apply_inverse(library.array(row[None])))[0]
        assert model.report.iterations.tolist() == [count]
        assert np.abs(alone - answer).max() <= library.tolerance * max(np.abs(alone).max(), 1.0)


# The order of the batches


@quiet
def test_seeds():
    setting = make_setting("logistic")

    def answer(seed):
        model = fitted(setting, Lissa(maxiter=33, seed=seed), regularization=0.1)
        return model, model.influences(*setting.test(), *setting.train)

    model, first = answer(0)
    np.testing.assert_array_equal(answer(0)[1], first)
    np.testing.assert_array_equal(model.influences(*setting.test(), *setting.train), first)
    assert not np.allclose(answer(1)[1], first, rtol=1e-6)


def record_batches(monkeypatch):
    """The first input of the batch of every product."""
    seen, product = [], ClosedFormProblem.hessian_product

    def recording(problem, batch, v, names):
        seen.append(float(batch.x[0, 0]))
        return product(problem, batch, v, names)

    monkeypatch.setattr(ClosedFormProblem, "hessian_product", recording)
    return seen


@quiet
@pytest.mark.parametrize("as_loader", [list, tuple, CountingLoader])
def test_every_epoch_has_every_batch_once_in_another_order(monkeypatch, as_loader):
    setting, epochs = make_setting("logistic"), 6
    batches = setting.loader(3)
    loader = as_loader(batches)
    model = influence(setting, Lissa(maxiter=epochs * len(batches), rtol=0.0), regularization=0.1)
    model.fit(loader)
    seen = record_batches(monkeypatch)
    model.apply_inverse(random_rows(model, 2))
    names = [float(x[0, 0]) for x, _ in batches]
    passes = [seen[at : at + len(names)] for at in range(0, len(seen), len(names))]
    *shuffled, measured = passes
    assert measured == names
    assert [sorted(one) for one in shuffled] == [sorted(names)] * epochs
    assert len({tuple(one) for one in shuffled}) == epochs
    assert names not in shuffled
    if as_loader is CountingLoader:  # read at fit, once to hold the batches, once to measure
        assert loader.since() == 3


@quiet
def test_data_that_a_backend_reads_its_own_way():
    setting = make_setting("logistic")
    options = {"regularization": 0.1}
    method = Lissa(maxiter=40)
    want = fitted(setting, method, **options).influences(*setting.test(), *setting.train)
    data = [{"x": x, "y": y} for x, y in setting.loader(5)]
    model = influence(setting, method, backend=COURTEOUS, **options).fit(data)
    got = model.influences(*setting.test(), *setting.train)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@quiet
def test_a_backend_that_offers_no_more_than_it_must():
    setting = make_setting("logistic")
    method = Lissa(maxiter=40, scale=None)
    plain, bare = (
        fitted(setting, method, regularization=0.1, **options)
        for options in ({}, {"backend": BARE})
    )
    np.testing.assert_array_equal(
        bare.influences(*setting.test()), plain.influences(*setting.test())
    )


class Shrinking(list):
    """A list that is one batch shorter when it is asked again."""


@pytest.mark.parametrize("loader", [Shrinking, ChangingLoader])
def test_data_that_changes_is_refused(loader):
    setting = make_setting("logistic")
    data = loader(setting.loader(5))
    model = influence(setting, Lissa(), regularization=0.1).fit(data)
    if loader is Shrinking:
        del data[-1]
    with pytest.raises(DataError, match="same points in every pass; `fit` saw 23, this pass 20"):
        model.apply_inverse(random_rows(model, 2))


# What a solve costs, and when it ends


def test_one_product_a_step_and_a_pass_at_the_end(monkeypatch):
    setting = make_setting("logistic")
    model = fitted(setting, Lissa(maxiter=57, rtol=0.0), regularization=0.1)
    seen, reads = record_batches(monkeypatch), []
    monkeypatch.setattr(neumann, "read_float", lambda a: reads.append(a) or read_float(a))
    with pytest.warns(ConvergenceWarning):
        model.apply_inverse(random_rows(model, 50))
    assert len(seen) == 57 + len(setting.loader(5))
    assert len(reads) <= 57 // 10
    assert model.report.iterations.tolist() == [57] * 50


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_a_row_stops_when_its_change_is_small(monkeypatch, rtol):
    setting, lam, mode = make_setting("tanh_squared"), 1e-2, "gauss_newton"
    method = Lissa(scale=4.0, maxiter=5000, rtol=rtol, warn_on_max_iteration=False)
    model = fitted(setting, method, batch_size=N, regularization=lam, second_order_mode=mode)
    b = random_rows(model, 3)
    got = model.apply_inverse(b)
    damped = setting.oracle().damped(mode, lam)
    for row, answer, count in zip(b, got, model.report.iterations, strict=True):
        h, steps, change = row, 0, np.inf
        while change > rtol:
            new = row + h - h @ damped / 4.0
            change, h = np.linalg.norm(new - h) / np.linalg.norm(h), new
            steps += 1
        assert count == steps
        np.testing.assert_allclose(answer, h / 4.0, rtol=1e-9)
    assert len(set(model.report.iterations.tolist())) > 1


def test_zero_right_hand_sides_cost_nothing(monkeypatch):
    setting = make_setting("logistic")
    model = fitted(setting, Lissa(), regularization=0.1)
    seen = record_batches(monkeypatch)
    assert not model.apply_inverse(np.zeros((3, model.n_parameters))).any()
    assert not seen
    assert model.report.converged.all()
    assert model.report.iterations.tolist() == [0] * 3


def test_regularization_is_no_part_of_what_is_prepared():
    setting = make_setting("least_squares")
    method = Lissa(scale=None, rtol=1e-10, maxiter=10_000)
    model = fitted(setting, method, batch_size=N, regularization=1e-2)
    first = model.influences(*setting.test())
    model.with_regularization(1e4).influences(*setting.test())
    want = setting.oracle().influences(*setting.host_test(), regularization=1e4)
    setting.library.close(model.influences(*setting.test()), want, 1e-6)
    again = model.with_regularization(1e-2).influences(*setting.test())
    np.testing.assert_array_equal(again, first)


# The report


@pytest.mark.parametrize("dampen", [0.0, 0.02])
@pytest.mark.parametrize("size", [7, N])
def test_report_holds_the_residuals_over_all_data(dampen, size):
    setting, mode = make_setting("tanh_cross_entropy"), "generalized_gauss_newton"
    method = Lissa(scale=5.0, dampen=dampen, maxiter=100, warn_on_max_iteration=False)
    model = fitted(setting, method, batch_size=size, regularization=1e-2, second_order_mode=mode)
    b = random_rows(model, 4) * np.array([[1.0], [1e-3], [1e3], [0.0]])
    x = model.apply_inverse(b)
    damped = setting.oracle().damped(mode, 1e-2 + dampen * 5.0)
    want, report = np.linalg.norm(b - x @ damped, axis=1), model.report
    np.testing.assert_allclose(report.residual_norms, want, rtol=1e-8)
    assert want[:3].min() > 0
    assert not report.negative_curvature.any()
    assert (report.iterations.dtype, report.residual_norms.dtype) == (np.int64, np.float64)
    assert report.converged.dtype == report.negative_curvature.dtype == np.bool_
    assert report.converged[3]


@pytest.mark.parametrize("warn_on_max_iteration", [True, False])
def test_ends_without_convergence(caplog, warn_on_max_iteration):
    setting, mode = make_setting("tanh_squared"), "gauss_newton"
    method = Lissa(scale=7.0, maxiter=9, warn_on_max_iteration=warn_on_max_iteration)
    model = fitted(setting, method, regularization=1e-3, second_order_mode=mode)
    b = np.concatenate([np.zeros((1, model.n_parameters)), random_rows(model, 2)])
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        model.apply_inverse(b)
    told = [str(w.message) for w in caught if w.category is ConvergenceWarning]
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("lissa")]
    (message,) = told if warn_on_max_iteration else logged
    assert len(told) + len(logged) == 1
    relative = model.report.residual_norms[1:] / np.linalg.norm(b[1:], axis=1)
    assert "LiSSA: 2 of 3 right-hand sides have not converged after 9 steps" in message
    assert f"from {relative.min():.1e} to {relative.max():.1e}" in message
    assert "scale=7" in message
    assert all(remedy in message for remedy in ("`maxiter`", "`regularization`", "`scale`"))


def test_too_large_a_scale_is_no_convergence():
    """All changes are small, for the answer has hardly moved from zero."""
    setting = make_setting("least_squares")
    method = Lissa(scale=1e6, rtol=1e-2, maxiter=500)
    model = fitted(setting, method, batch_size=N, regularization=0.1)
    with pytest.warns(ConvergenceWarning, match="smaller `scale`"):
        model.apply_inverse(random_rows(model, 2))
    assert np.all(model.report.iterations < 500)
    assert not model.report.converged.any()


@pytest.mark.parametrize("progress", [False, True])
def test_progress(capsys, progress):
    setting = make_setting("least_squares")
    method = Lissa(progress=progress, maxiter=30, warn_on_max_iteration=False)
    fitted(setting, method, regularization=1e-2).influence_factors(*setting.test())
    shown = capsys.readouterr().err
    assert ("LiSSA" in shown and "30/30" in shown) == progress
    assert progress or not shown


# Divergence


def named_curvature(message):
    return float(re.search(r"curvature of `C \+ λI` \(λ=\S+\) is (\S+?)[;.] ", message).group(1))


def large(setting, factor):
    """The training points with inputs `factor` times as large, in one batch."""
    x, y = setting.host_train
    return [(setting.library.array(factor * x), setting.library.array(y))]


def test_divergence_names_the_scale(library):
    setting = make_setting("least_squares", library)
    model = influence(setting, Lissa(), regularization=1e-2).fit(large(setting, 60.0))
    with pytest.raises(NonFiniteError) as caught:
        model.influences(*setting.test())
    message = str(caught.value)
    x = 60.0 * setting.host_train[0]
    inputs = np.concatenate([x, np.ones((N, 1))], axis=1)
    top = np.linalg.eigvalsh(inputs.T @ inputs / N)[-1]
    assert top > 1e3
    assert "LiSSA diverges with scale=10:" in message
    assert 0.5 * top < named_curvature(message) <= 1.01 * top
    assert f"{FEW} of {FEW} right-hand sides" in message
    assert "scale=None" in message


@pytest.mark.parametrize("factor", [60.0, 1.0, 1e-3])
@pytest.mark.parametrize("kind", ["least_squares", "logistic"])
def test_an_estimated_scale_converges_at_any_size(library, factor, kind):
    """Where 10 is far too small (eigenvalues of 1e3), about right, or far too large (1e-6)."""
    whole = make_setting(kind, library)
    net = type(whole.model)({"weight": whole.model.parameters["weight"]})
    setting = Setting(library, net, (factor * whole.host_train[0], whole.host_train[1]))
    lam = 0.1 * factor**2
    model = fitted(setting, Lissa(scale=None, rtol=1e-6), batch_size=N, regularization=lam)
    got = model.influence_factors(*setting.test())
    want = setting.oracle().influence_factors(*setting.host_test(), regularization=lam)
    library.close(got, want, 1e-4 if library.dtype == "float64" else 1e-3)
    assert model.report.converged.all()


@pytest.mark.parametrize("curvature", ["gauss_newton", "generalized_gauss_newton"])
@quiet
def test_an_estimated_scale_is_stable_for_every_batch(curvature):
    """Batches of one point are as different as can be: noise, but no growth."""
    setting = make_setting("tanh_squared")
    method = Lissa(scale=None, maxiter=2000)
    options = {"regularization": 0.1, "second_order_mode": curvature}
    got = fitted(setting, method, batch_size=1, **options).influences(*setting.test())
    want = setting.oracle().influences(*setting.host_test(), mode=curvature, regularization=0.1)
    assert np.linalg.norm(got - want) < 0.25 * np.linalg.norm(want)


@pytest.mark.parametrize("size", [1, 5, N])
@representative
def test_the_estimate_is_near_the_largest_norm_of_a_batch(kind, curvature, size):
    setting = make_setting(kind)
    model = fitted(
        setting, Lissa(scale=None), batch_size=size, second_order_mode=curvature, regularization=1.0
    )
    (inverse,) = model._fitted.inverses.values()
    norms = [np.linalg.norm(m, 2) for m in step_matrices(setting, size, curvature)]
    least = 0.9 if size == N else 0.75  # several batches have the larger margin
    assert least * max(norms) <= inverse.largest <= max(norms) * (1 + 1e-9)


def test_the_estimate_includes_the_penalty():
    setting = make_setting("least_squares")
    model = influence(setting, Lissa(scale=None), penalty={"weight": 50.0})
    model.fit(setting.loader(N))
    (inverse,) = model._fitted.inverses.values()
    top = np.linalg.norm(setting.oracle(penalty={"weight": 50.0}).curvature(), 2)
    assert top <= inverse.largest <= 1.1 * top


def test_quickly_growing_negative_curvature():
    setting = make_setting("tanh_squared")
    lowest = np.linalg.eigvalsh(setting.oracle().curvature())[0]
    assert lowest < -0.05
    method = Lissa(scale=None, maxiter=5000)
    model = fitted(setting, method, batch_size=N, regularization=1e-3)
    with pytest.raises(NonFiniteError) as caught:
        model.influences(*setting.test())
    message = str(caught.value)
    assert 1.01 * (lowest + 1e-3) < named_curvature(message) < 0.5 * lowest
    assert "GENERALIZED_GAUSS_NEWTON" in message
    assert "the largest norm of a batch's matrix was estimated as" in message


def test_slowly_growing_negative_curvature():
    setting = make_setting("tanh_squared")
    values, vectors = np.linalg.eigh(setting.oracle().curvature())
    model = fitted(setting, Lissa(maxiter=100, scale=10.0), batch_size=N, regularization=1e-3)
    with pytest.warns(ConvergenceWarning, match=r"1 met negative curvature.*GENERALIZED"):
        model.apply_inverse(vectors[:, [0, -1]].T)
    assert values[0] < -1e-3
    assert model.report.negative_curvature.tolist() == [True, False]
    assert model.report.converged.tolist() == [False, True]


def test_divergence_names_the_block():
    setting = make_setting("least_squares")
    model = influence(setting, Lissa(), block_structure={"head": ["weight"]})
    model.fit(large(setting, 60.0))
    with pytest.raises(NonFiniteError, match="LiSSA of block 'head' diverges"):
        model.influences(*setting.test())


@pytest.mark.parametrize("scale", [10.0, None])
def test_curvature_that_overflows(scale):
    setting = make_setting("least_squares")
    model = influence(setting, Lissa(scale=scale), regularization=0.1)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
        model.fit(large(setting, 1e200)).apply_inverse(random_rows(model, 2))


def test_gradients_that_overflow():
    setting = make_setting("least_squares")
    model = fitted(setting, Lissa(), regularization=0.1)
    x, y = setting.test()
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="right-hand side"):
        model.influences(1e200 * x, y, *setting.train)


def test_no_curvature_at_all():
    setting = make_setting("least_squares")
    model = influence(setting, Lissa(scale=None, maxiter=20), second_order_mode="gauss_newton")
    x, _ = setting.train
    outputs = x @ setting.parameters["weight"].T + setting.parameters["bias"]
    model.fit([(x, outputs)])
    with pytest.warns(ConvergenceWarning):
        model.apply_inverse(random_rows(model, 1))
    assert not model.report.converged.any()


# Elsewhere, and settings


@quiet
def test_moves(monkeypatch):
    setting = make_setting("logistic", STRICT)
    for loader in (setting.loader(5), CountingLoader(setting.loader(5))):
        model = influence(setting, Lissa(maxiter=30, scale=None), regularization=0.1).fit(loader)
        before = setting.library.host(model.influences(*setting.test()))
        moved = model.to(_device1()).influences(*setting.test())
        assert str(moved.device) == str(_device1())
        back = np.asarray(moved.to_device(_cpu()))
        np.testing.assert_allclose(back, before, rtol=1e-12)


def _device1():
    import array_api_strict

    return array_api_strict.Device("device1")


def _cpu():
    import array_api_strict

    return array_api_strict.Device("CPU_DEVICE")


@quiet
def test_pickles():
    setting = make_setting("logistic")
    model = fitted(setting, Lissa(maxiter=30, scale=None), regularization=0.1)
    (inverse,) = model._fitted.inverses.values()
    rows = random_rows(model, 2)
    copy = pickle.loads(pickle.dumps(inverse))
    np.testing.assert_array_equal(copy.solve(rows, 0.1).rows, inverse.solve(rows, 0.1).rows)


BAD = [
    ("maxiter", [0, -1, 2.5, True, "10", None], "an integer of one or more"),
    ("dampen", [-0.1, 1.5, np.nan, "0", None, True], "a number from 0 to 1"),
    ("scale", [0.0, -1.0, np.nan, np.inf, "10", True], "a finite number above zero, or None"),
    ("rtol", [-1e-3, np.nan, np.inf, "1e-3", None, True], "a finite number, zero or more"),
    ("seed", [-1, 0.5, None, True], "an integer of one or more or zero"),
]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [(name, value, rule) for name, values, rule in BAD for value in values],
)
def test_settings_are_checked(name, value, rule):
    with pytest.raises(OptionError, match=f"`{name}` must be {rule}.*{value!r}"):
        Lissa(**{name: value})


@quiet
def test_settings_of_numpy_are_numbers():
    method = Lissa(
        maxiter=np.int64(5), dampen=np.float32(0.5), scale=np.float64(10), rtol=np.float32(1e-3)
    )
    model = fitted(make_setting("least_squares"), method, regularization=np.float32(0.5))
    assert model.apply_inverse(random_rows(model, 2)).dtype == np.float64


def test_a_found_scale_averages_noise_as_far_as_the_steps_allow():
    """Several batches, more steps than needed: a larger scale than the smallest safe one."""
    setting, mode, lam = make_setting("least_squares"), "generalized_gauss_newton", 0.1
    rows = random_rows(fitted(setting), 3)
    want = np.linalg.solve(setting.oracle().damped(mode, lam), rows.T).T
    errors = []
    for steps in (300, 3000, 30000):
        method = Lissa(scale=None, maxiter=steps, rtol=0.0)
        model = fitted(setting, method, batch_size=7, regularization=lam, second_order_mode=mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            answer = model.apply_inverse(rows)
        errors.append(np.linalg.norm(answer - want) / np.linalg.norm(want))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05
