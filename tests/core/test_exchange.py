"""One library differentiates, another one solves: few conversions, no rounding, no writing."""

import sys
import types

import numpy as np
import pytest
from methods import CASES
from namespaces import NUMPY, NUMPY_FLOAT32, READ_ONLY, STRICT, STRICT_DEVICE, TORCH
from problems import MANY, N, fitted, influence, make_setting, tight

from influence_core import (
    DeviceError,
    ExchangeError,
)
from influence_core.arrays import exchange, exchange_for

needs_torch = pytest.mark.skipif(not TORCH.installed, reason="torch is not installed")
PAIRS = [
    pytest.param(NUMPY, "array_api_strict", id="numpy-strict"),
    pytest.param(READ_ONLY, "array-api-strict", id="read-only-strict"),
    pytest.param(NUMPY_FLOAT32, "array_api_strict", id="float32-strict"),
    pytest.param(STRICT, "numpy", id="strict-numpy"),
    pytest.param(NUMPY, "torch", id="numpy-torch", marks=needs_torch),
    pytest.param(READ_ONLY, "torch", id="read-only-torch", marks=needs_torch),
    pytest.param(TORCH, "numpy", id="torch-numpy", marks=needs_torch),
    pytest.param(TORCH, "array_api_strict", id="torch-strict", marks=needs_torch),
]
pairs = pytest.mark.parametrize(("library", "solver"), PAIRS)
OPTIONS = {"regularization": 0.1, "second_order_mode": "gauss_newton"}


@pairs
@pytest.mark.parametrize("case", CASES)
def test_answers_come_back_in_the_library_of_the_model(library, solver, case):
    setting = make_setting("logistic", library)
    truth = case.reference(setting, "gauss_newton")
    model = case.fitted(setting, array_backend=solver, **OPTIONS)
    for m, mode in ((3, "up"), (MANY, "up"), (3, "perturbation")):
        want = truth.influences(setting.host_test(m), setting.host_train, 0.1, mode)
        got = model.influences(*setting.test(m), *setting.train, mode=mode)
        library.close(got, want, library.accuracy())


@pairs
def test_every_other_call(library, solver):
    setting = make_setting("tanh_squared", library)
    options = {"block_structure": "layer_wise", **OPTIONS}
    there = fitted(setting, array_backend=solver, **options)
    here = fitted(setting, **options)
    test, train, tolerance = setting.test(), setting.train, library.tolerance
    factors = there.influence_factors(*test)
    rows = library.array(np.random.default_rng(0).standard_normal((2, here.n_parameters)))
    for got, want in [
        (factors, here.influence_factors(*test)),
        (there.influences_from_factors(factors, *train), here.influences(*test, *train)),
        (there.influences_over([0.1, 1.0], *test), here.influences_over([0.1, 1.0], *test)),
        (there.self_influences([train]), here.self_influences([train])),
        (there.apply_inverse(rows), here.apply_inverse(rows)),
    ]:
        library.close(got, library.host(want), tolerance)


@pytest.fixture
def conversions(monkeypatch):
    """Libraries that arrays were handed to, in order."""
    seen, real = [], exchange._through_dlpack

    def counted(array, library, target):
        seen.append(library.__name__)
        return real(array, library, target)

    monkeypatch.setattr(exchange, "_through_dlpack", counted)
    return seen


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_two_conversions_a_product(conversions, batch_size):
    setting = make_setting("logistic")
    method = tight(maxiter=6, warn_on_max_iteration=False)
    model = fitted(
        setting, method, batch_size=batch_size, array_backend="array_api_strict", **OPTIONS
    )
    assert len(conversions) == 1  # the reference
    conversions.clear()
    model.apply_inverse(np.random.default_rng(0).standard_normal((3, model.n_parameters)))
    # the rows, 6 products and one to verify, there and back, and the answer
    assert len(conversions) == 1 + 2 * (6 + 1) + 1


@pytest.mark.parametrize("batch_size", [1, 23])
def test_direct_hands_the_matrix_over_once(conversions, batch_size):
    setting = make_setting("logistic")
    model = fitted(setting, batch_size=batch_size, array_backend="array_api_strict", **OPTIONS)
    assert len(conversions) == 2
    conversions.clear()
    model.influences(*setting.test(), *setting.train)
    # left rows; solved rows back; their products; the answer
    assert len(conversions) == 4


@pytest.mark.parametrize("library", [NUMPY, READ_ONLY, pytest.param(TORCH, marks=needs_torch)])
def test_its_own_library_is_no_exchange(conversions, library):
    setting = make_setting("logistic", library)
    model = fitted(setting, array_backend=library.module, **OPTIONS)
    library.close(
        model.influences(*setting.test()),
        library.host(fitted(setting, **OPTIONS).influences(*setting.test())),
        1e-15,
    )
    assert not conversions


def test_read_only_arrays_are_copied():
    reference = READ_ONLY.array(np.ones(3))
    there = exchange_for(reference, "array_api_strict").to_solver(reference)
    assert not reference.flags.writeable
    assert not np.shares_memory(np.asarray(there), reference)


def test_silent_rounding_is_refused(monkeypatch):
    rounding = types.ModuleType("rounding")
    rounding.from_dlpack = lambda array: np.from_dlpack(array).astype(np.float32)
    monkeypatch.setitem(sys.modules, "rounding", rounding)
    model = influence(make_setting("logistic"), array_backend="rounding")
    with pytest.raises(ExchangeError, match=r"'rounding' turns float64 into float32; .*64-bit"):
        model.fit(make_setting("logistic").loader())
    assert not model.is_fitted


@pytest.mark.parametrize(
    ("name", "words"),
    [("no_such_library", "cannot be imported.*Install it"), ("json", "`from_dlpack`.*has none")],
)
def test_unusable_libraries(name, words):
    setting = make_setting("logistic")
    with pytest.raises(ExchangeError, match=f"`array_backend='{name}'`.*{words}"):
        fitted(setting, array_backend=name)


def test_a_device_out_of_reach(monkeypatch):
    far = types.ModuleType("far")

    def from_dlpack(array):
        raise BufferError("no such device here")

    far.from_dlpack = from_dlpack
    monkeypatch.setitem(sys.modules, "far", far)
    with pytest.raises(DeviceError, match="cannot be handed to 'far': no such device here"):
        fitted(make_setting("logistic"), array_backend="far")


def test_answers_can_be_written_to():
    setting = make_setting("logistic")
    model = fitted(setting, array_backend="array_api_strict", **OPTIONS)
    for answer in (model.influences(*setting.test()), model.influence_factors(*setting.test())):
        answer += 1.0


def test_devices_of_the_model_are_kept():
    setting = make_setting("logistic", STRICT_DEVICE)
    got = fitted(setting, array_backend="array_api_strict", **OPTIONS).self_influences(
        [setting.train]
    )
    assert STRICT_DEVICE.host(got).shape == (N,)
