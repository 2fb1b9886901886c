"""Conjugate gradient with one tolerance for all right-hand sides together."""

import numpy as np
import pytest
from loaders import CountingLoader
from problems import fitted, influence, make_setting, tight
from test_block_cg import BLOCK, MODE, OPTIONS, right_hand_sides

from influence_core import Cg, NonFiniteError, NystroemPreconditioner

KINDS = [name for name in right_hand_sides(1) if name != "scales"]


def solved(setting, b, **options):
    """The report, the residuals by dense algebra, and their Frobenius norm over that of b."""
    model = fitted(setting, Cg(atol=0.0, overall=True, **options), batch_size=12, **OPTIONS)
    x = setting.library.host(model.apply_inverse(setting.library.array(b)))
    residuals = b - x @ setting.oracle().damped(MODE, 1e-2)
    return model.report, residuals, np.linalg.norm(residuals) / np.linalg.norm(b)


@pytest.mark.parametrize("options", [{}, BLOCK, {"preconditioner": NystroemPreconditioner(4)}])
@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-6])
@pytest.mark.parametrize("name", right_hand_sides(1))
def test_the_residual_of_all_keeps_the_tolerance(name, rtol, options):
    setting = make_setting("tanh_squared")
    b = right_hand_sides(setting.oracle().damped(MODE, 1e-2).shape[0])[name]
    report, residuals, relative = solved(setting, b, rtol=rtol, **options)
    assert relative <= rtol
    assert report.converged.all()
    norms = np.linalg.norm(residuals, axis=1)
    rounding = 1e-10 * np.linalg.norm(b)
    np.testing.assert_allclose(report.residual_norms, norms, rtol=1e-6, atol=rounding)


@pytest.mark.parametrize("name", KINDS)
def test_a_small_tolerance_is_exact_on_every_library(library, name):
    setting = make_setting("tanh_squared", library)
    model = fitted(setting, tight(library, overall=True, **BLOCK), batch_size=12, **OPTIONS)
    b = right_hand_sides(model.n_parameters)[name]
    want = np.linalg.solve(setting.oracle().damped(MODE, 1e-2), b.T).T
    got = library.host(model.apply_inverse(library.array(b)))
    assert np.linalg.norm(got - want) <= library.accuracy(1e-2) * np.linalg.norm(want)


def test_scores_have_about_the_tolerance_for_an_error():
    setting = make_setting("tanh_squared")
    exact = fitted(setting, tight(), **OPTIONS).influences(*setting.test(), *setting.train)
    rough = Cg(rtol=1e-3, atol=0.0, overall=True)
    got = fitted(setting, rough, **OPTIONS).influences(*setting.test(), *setting.train)
    assert np.linalg.norm(got - exact) <= 1e-2 * np.linalg.norm(exact)


def test_directions_that_do_not_matter_are_not_solved_for():
    """A row of length 1e-6 beside one of length 1 costs nothing, and comes out as zero."""
    setting = make_setting("tanh_squared")
    d = setting.oracle().damped(MODE, 1e-2).shape[0]
    a, b = np.linalg.qr(np.random.default_rng(0).standard_normal((d, 2)))[0].T
    passes = {}
    for name, rows in (("one", a[None]), ("two", np.stack([a, 1e-6 * b]))):
        loader = CountingLoader(setting.loader(12))
        method = Cg(rtol=1e-2, atol=0.0, overall=True)
        model = influence(setting, method, **OPTIONS).fit(loader)
        loader.since()
        answer = model.apply_inverse(rows)
        passes[name] = loader.since()
    assert passes["one"] == passes["two"]
    assert np.abs(answer[1]).max() < 1e-6 * np.abs(answer[0]).max()
    assert model.report.converged.all()


def test_absolute_tolerance_zeros_and_infinity():
    setting = make_setting("tanh_squared")
    model = fitted(setting, Cg(rtol=0.0, atol=1e-3, overall=True), **OPTIONS)
    b = np.random.default_rng(0).standard_normal((3, model.n_parameters))
    residuals = b - model.apply_inverse(b) @ setting.oracle().damped(MODE, 1e-2)
    assert np.linalg.norm(residuals) <= 1e-3
    assert not model.apply_inverse(0 * b).any()
    with pytest.raises(NonFiniteError, match="right-hand side"):
        model.apply_inverse(np.full_like(b, 1e308))
