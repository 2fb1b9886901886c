"""What happens to an instance: fit and refit, moves, pickles, threads, reads of the device."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import array_api_strict
import numpy as np
import pytest
from abilities import BARE, COURTEOUS
from loaders import CountingLoader
from methods import ALL, CASES, parameters
from namespaces import NUMPY, STRICT, STRICT_DEVICE, TORCH
from problems import FEW, N, fitted, influence, make_setting, tight

from influence_core import CapabilityError, DataError
from influence_core.arrays import to_host

MODE = "generalized_gauss_newton"
OPTIONS = {"regularization": 1e-1, "second_order_mode": MODE}
cases = pytest.mark.parametrize("case", CASES)


@cases
def test_fit_returns_the_instance_and_reads_the_parameters(case):
    setting, other = make_setting("tanh_squared"), make_setting("tanh_squared")
    model, loader = case.influence(setting, **OPTIONS), setting.loader(case.batch_size)
    assert not model.is_fitted
    assert model.fit(loader) is model
    assert model.is_fitted
    want = model.influences(*setting.test(), *setting.train)
    for parameter in setting.model.parameters.values():
        parameter *= 0.5
    np.testing.assert_array_equal(model.influences(*setting.test(), *setting.train), want)
    refitted = model.fit(loader).influences(*setting.test(), *setting.train)
    assert np.abs(refitted - want).max() > 1e-2
    again = case.fitted(other, **OPTIONS).influences(*setting.test(), *setting.train)
    np.testing.assert_array_equal(again, want)


@cases
def test_a_failed_fit_leaves_nothing_behind(case):
    setting = make_setting("tanh_cross_entropy")
    model = case.fitted(setting, **OPTIONS)
    want = model.influence_factors(*setting.test())
    x, y = setting.train
    with pytest.raises(DataError):
        model.fit([(x[:5], y[:5]), (np.nan * x[:5], y[:5])])
    assert not model.is_fitted
    with pytest.raises(ValueError, match="Call `fit"):
        model.influence_factors(*setting.test())
    assert model.n_parameters == want.shape[1]
    model.fit(setting.loader(case.batch_size))
    np.testing.assert_array_equal(model.influence_factors(*setting.test()), want)


def test_properties(library):
    setting = make_setting("tanh_squared", library)
    model = influence(setting, block_structure="layer_wise")
    for _ in range(2):
        assert model.block_names == ["hidden", "output"]
        assert model.n_parameters == 43
        assert model.dtype == library.array(0.0).dtype
        assert model.device == setting.problem().reference.device
        assert model.is_thread_safe is True
        model.with_regularization(5.0).fit(setting.loader())
    assert model.report is None


def same(library, a, b):
    np.testing.assert_array_equal(library.host(a), library.host(b))


@cases
@pytest.mark.parametrize("name", ["numpy", "strict", "torch"])
def test_pickles(case, name):
    library = {"numpy": NUMPY, "strict": STRICT, "torch": TORCH}[name]
    if not library.installed:
        pytest.skip(f"{name} is not installed")
    setting = make_setting("logistic", library)
    model = case.fitted(setting, **OPTIONS)
    again = pickle.loads(pickle.dumps(model))
    points = (*setting.test(), *setting.train)
    same(library, again.influences(*points), model.influences(*points))
    np.testing.assert_array_equal(again.report.residual_norms, model.report.residual_norms)
    again.fit(setting.loader(case.batch_size))
    same(library, again.influences(*points), model.influences(*points))


def test_unfitted_instances_pickle():
    setting = make_setting("logistic")
    model = pickle.loads(pickle.dumps(influence(setting, **OPTIONS)))
    assert not model.is_fitted
    assert model.fit(setting.loader()).is_fitted


@cases
def test_threads_do_not_disturb_each_other(case):
    setting = make_setting("tanh_cross_entropy")
    model = case.fitted(setting, **OPTIONS)
    sizes = [1, FEW, N] * 2
    want = [model.influences(*setting.test(m), *setting.train) for m in sizes]
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda m: model.influences(*setting.test(m), *setting.train), sizes)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


@cases
def test_moves(case):
    here = make_setting("logistic", STRICT)
    there = make_setting("logistic", STRICT_DEVICE)
    target = array_api_strict.Device("device1")
    model = case.fitted(here, **OPTIONS)
    want = STRICT.host(model.influences(*here.test(), *here.train))
    assert model.to(target) is model
    assert model.device == target
    for points in (there, here):  # inputs are moved to where the model is
        got = model.influences(*points.test(), *points.train)
        STRICT_DEVICE.close(got, want, 1e-12)
    assert all(a.device != target for a in here.model.parameters.values())
    moved_early = case.influence(here, **OPTIONS).to(target)
    assert moved_early.device == target
    got = moved_early.fit(here.loader(case.batch_size)).influences(*here.test(), *here.train)
    STRICT_DEVICE.close(got, want, 1e-12)
    back = model.to(array_api_strict.Device("CPU_DEVICE"))
    STRICT.close(back.influences(*here.test(), *here.train), want, 1e-12)


def test_a_move_with_an_exchange():
    setting = make_setting("logistic", STRICT)
    model = fitted(setting, array_backend="numpy", regularization=0.1)
    want = STRICT.host(model.influences(*setting.test()))
    STRICT.close(model.to(setting.problem().reference.device).influences(*setting.test()), want)


# What a backend need not offer


LAYERED = [case for case in ALL if "kfac" in case.name]
GENERAL = [case for case in ALL if case not in LAYERED]


@pytest.mark.parametrize("case", parameters(GENERAL))
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_the_bare_protocol_is_enough(case, curvature):
    setting = make_setting("logistic")
    options = {"regularization": 0.1, "second_order_mode": curvature}
    got = case.fitted(setting, backend=BARE, **options).influences(*setting.test())
    truth = case.reference(setting, curvature)
    want = truth.influences(setting.host_test(), setting.host_test(), 0.1)
    NUMPY.close(got, want, case.accuracy)


@pytest.mark.parametrize("case", parameters(LAYERED))
def test_layers_are_an_ability(case):
    setting = make_setting("logistic")
    model = case.influence(setting, backend=BARE, regularization=0.1)
    with pytest.raises(CapabilityError, match="BareProblem does not"):
        model.fit(setting.loader())
    assert not model.is_fitted


def test_missing_abilities_are_named():
    setting = make_setting("logistic")
    model = influence(setting, backend=BARE, second_order_mode=MODE)
    words = "`generalized_gauss_newton_product`; BareProblem does not.*'gauss_newton'"
    with pytest.raises(CapabilityError, match=words):
        model.fit(setting.loader())
    assert not model.is_fitted
    model = influence(setting, backend=BARE, regularization=0.1).fit(setting.loader())
    with pytest.raises(CapabilityError, match=r"`to\('cpu'\)`.*BareProblem does not"):
        model.to("cpu")
    assert model.influences(*setting.test()).shape == (FEW, FEW)


@cases
def test_a_backend_may_read_the_data_and_hand_answers_over(case):
    setting = make_setting("logistic")
    loader = [{"x": x, "y": y} for x, y in setting.loader(case.batch_size)]
    model = case.influence(setting, backend=COURTEOUS, **OPTIONS).fit(loader)
    assert model.dtype == np.float32
    truth = case.reference(setting, MODE)
    want = truth.influences(setting.host_train, setting.host_train, 1e-1)
    for answer, expected in [
        (model.influences(*setting.train), want),
        (model.influences_by_block(*setting.train)[""], want),
        (model.self_influences(loader), np.diag(want)),
        (model.influences_over([1e-1], *setting.train)[0], want),
    ]:
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


# The device is not stopped


@pytest.fixture
def reads(monkeypatch):
    """Numbers and arrays that were read from array-api-strict arrays."""
    count = {"scalars": 0}
    for name in ("__bool__", "__float__", "__int__", "__index__"):
        real = getattr(array_api_strict._array_object.Array, name)

        def counted(self, real=real):
            count["scalars"] += 1
            return real(self)

        monkeypatch.setattr(array_api_strict._array_object.Array, name, counted)
    return count


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weighted"])
def test_the_stop_flag_is_read_every_few_steps(reads, weights):
    setting = make_setting("tanh_squared", STRICT)
    batches = setting.loader(12)
    if weights:
        batches = [(x, y, STRICT.array(np.ones(len(to_host(y))))) for x, y in batches]
    loader = CountingLoader(batches)
    options = {**OPTIONS, "regularization": 1e-2}
    model = influence(setting, tight(rtol=1e-10), **options).fit(loader)
    loader.since()
    rows = STRICT.array(np.random.default_rng(0).standard_normal((2, model.n_parameters)))
    reads["scalars"] = 0
    model.apply_inverse(rows)
    passes = loader.since()
    assert passes > 40
    # 2 further ones see that rows and answer are finite
    assert reads["scalars"] <= passes / 2 + 2


def test_self_influences_solve_for_many_batches_at_once():
    """As many as fit into memory: a pass a step of CG, whatever the batch size of the loader."""
    setting = make_setting("logistic")
    passes = []

    class Loader(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    model = influence(setting, tight(), regularization=0.1).fit(Loader(setting.loader()))
    steps = []
    for size in (1, 23):
        passes.clear()
        model.self_influences(setting.loader(size))
        steps.append(len(passes))
    assert steps[0] == steps[1]
