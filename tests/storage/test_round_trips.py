"""What is loaded answers as what was saved, to the last bit: every method, library and block."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from methods import CASES
from namespaces import (
    NUMPY,
    NUMPY_FLOAT32,
    STRICT,
    STRICT_DEVICE,
    STRICT_FLOAT32,
    TORCH,
)
from problems import influence, make_setting
from saving import (
    BACKEND,
    BLOCKS,
    GGN,
    case,
    fit,
    load_again,
    record_of,
    same,
    same_memory,
)

from influence_core import DataError, Direct, Influence, load

# both sides say so: the leverages are compared, not judged
pytestmark = pytest.mark.filterwarnings("ignore:.*have a leverage of one or more")

NEEDS_TORCH = pytest.mark.skipif(not TORCH.installed, reason="torch is not installed")


@pytest.mark.parametrize("each", CASES)
@pytest.mark.parametrize(
    "library", [NUMPY, NUMPY_FLOAT32, pytest.param(TORCH, marks=NEEDS_TORCH)], ids=str
)
def test_every_method(each, library, place):
    setting = make_setting("tanh_cross_entropy", library)
    before = fit(each, setting, block_structure="layer_wise")
    before.save(place)
    after = load_again(place, setting, each)
    assert after.is_fitted
    assert after.block_names == before.block_names == ["hidden", "output"]
    assert after.report is None
    same_memory(before, after)
    same(before, after, setting)


@pytest.mark.parametrize("library", [STRICT, STRICT_DEVICE, STRICT_FLOAT32], ids=str)
@pytest.mark.parametrize(
    "name", ["direct", "nystroem cg", "arnoldi woodbury", "nystroem", "harmonic mean", "ekfac"]
)
def test_the_array_standard_is_enough(name, library, place):
    setting = make_setting("logistic", library)
    before = fit(case(name), setting)
    before.save(place)
    same(before, load_again(place, setting, case(name)), setting)


@pytest.mark.parametrize("mode", ["hessian", "gauss_newton", GGN])
@pytest.mark.parametrize("name", ["direct", "nystroem", "cg"])
def test_every_curvature(mode, name, place):
    setting = make_setting("least_squares")
    before = fit(case(name), setting, second_order_mode=mode)
    before.save(place)
    same(before, load_again(place, setting, case(name)), setting, "influences", "removal")


@pytest.mark.parametrize("name", ["direct", "jacobi", "ekfac cg", "nystroem", "lissa"])
def test_blocks_of_ones_own_with_a_regularization_each(name, place):
    setting = make_setting("tanh_cross_entropy")
    blocks = {"last": ["output.weight", "output.bias"], "first": ["hidden.weight", "hidden.bias"]}
    regularization = {"first": 0.2, "last": 0.05}
    before = fit(case(name), setting, block_structure=blocks, regularization=regularization)
    before.save(place)
    assert record_of(place)["regularization"] == {"last": 0.05, "first": 0.2}
    after = load_again(place, setting, case(name))
    assert after.block_names == ["last", "first"]
    same(before, after, setting)


def test_parameters_that_no_block_covers(place):
    setting = make_setting("tanh_squared")
    before = fit(case("direct"), setting, block_structure=BLOCKS)
    before.save(place)
    same(before, load_again(place, setting), setting)


def test_the_present_regularization_is_saved_not_that_of_the_fit(place):
    setting = make_setting("tanh_squared")
    before = fit(case("direct"), setting).with_regularization(np.float32(0.3))
    before.save(place)
    same(before, load_again(place, setting), setting, "influences")


def test_penalties_and_weights_of_points(place):
    setting = make_setting("tanh_cross_entropy")
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 23)
    data = [(*setting.train, weights)]
    penalty = {"hidden.weight": 0.3, "output.weight": 0.1}
    for name in ("direct", "cg", "harmonic mean", "ekfac"):
        before = case(name).influence(
            setting, penalty=penalty, regularization=0.1, second_order_mode=GGN
        )
        before.fit(data).save(place)
        after = load_again(place, setting, data=data)
        same(before, after, setting, "influences", "removal", "norm")
        assert after.removal_effects(*setting.test(), *setting.train) is not None


def test_what_is_loaded_can_be_saved_and_loaded_again(tmp_path):
    setting = make_setting("tanh_cross_entropy")
    before = fit(case("nystroem cg"), setting)
    before.save(tmp_path / "one")
    load_again(tmp_path / "one", setting, case("cg")).save(tmp_path / "two")
    same(before, load_again(tmp_path / "two", setting, case("cg")), setting, "influences")
    first, second = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert first == second


def test_what_was_moved_can_be_saved(place):
    setting = make_setting("tanh_cross_entropy", STRICT)
    before = fit(case("jacobi"), setting)
    answer = STRICT.host(before.influences(*setting.test(), *setting.train))
    before.to(STRICT_DEVICE.array(0.0).device).save(place)
    after = load_again(place, setting, case("jacobi"))
    assert np.array_equal(STRICT.host(after.influences(*setting.test(), *setting.train)), answer)


def test_another_device_and_another_library(place):
    setting = make_setting("tanh_cross_entropy", STRICT)
    before = fit(case("ekfac"), setting)
    before.save(place)
    answer = STRICT.host(before.influences(*setting.test(), *setting.train))
    for library in (STRICT_DEVICE, NUMPY):
        there = make_setting("tanh_cross_entropy", library)
        after = load_again(place, there)
        library.close(after.influences(*there.test(), *there.train), answer, 1e-12)
        assert after.to(library.array(0.0).device).is_fitted


def test_another_library_for_the_solver(place):
    setting = make_setting("tanh_cross_entropy", STRICT)
    before = fit(case("direct"), setting, array_backend="numpy")
    before.save(place)
    own = load_again(place, setting, array_backend=None)
    answer = STRICT.host(before.influences(*setting.test(), *setting.train))
    STRICT.close(own.influences(*setting.test(), *setting.train), answer, 1e-12)
    same(before, load_again(place, setting), setting)


@pytest.mark.parametrize("name", ["cg", "block cg", "harmonic mean"])
def test_the_batches_of_the_data_may_be_others(name, place):
    setting = make_setting("tanh_cross_entropy")
    before = fit(case(name), setting)
    before.save(place)
    for batch_size in (1, 9, 23):
        after = load_again(place, setting, data=setting.loader(batch_size))
        answer = before.influences(*setting.test(), *setting.train)
        NUMPY.close(after.influences(*setting.test(), *setting.train), answer, 1e-8)


def test_a_loaded_model_can_be_fitted_again(place):
    setting = make_setting("tanh_cross_entropy")
    before = fit(case("direct"), setting)
    before.save(place)
    after = load_again(place, setting).fit(setting.loader(5))
    same(before, after, setting)


def test_state_without_data_says_so_where_data_is_asked_for(place):
    setting = make_setting("tanh_squared")
    fit(case("direct"), setting).save(place)
    (curvature,) = load_again(place, setting)._fitted.training.curvatures.values()
    with pytest.raises(DataError, match=r"loaded without its training data.*Call `fit\(data\)`"):
        curvature.product(NUMPY.array(np.zeros((1, 43))))


def test_an_empty_sketch(place):
    setting = make_setting("least_squares")
    model = type(setting.model)({name: 0 * a for name, a in setting.model.parameters.items()})
    x, y = setting.train
    data = [(x, 0 * y)]  # no gradient anywhere, hence no curvature either
    kwargs = {"regularization": 0.1, "second_order_mode": "gauss_newton", "backend": BACKEND}
    before = Influence(model, None, case("nystroem").make(NUMPY), **kwargs).fit(data)
    before.save(place)
    after = load(place, model, None, backend=BACKEND)
    assert np.array_equal(after.influence_factors(x, y), before.influence_factors(x, y))


OTHER_PROCESS = """
import sys
sys.path[:0] = {path!r}
from problems import *
from saving import *
setting = make_setting("tanh_cross_entropy")
after = load_again({place!r}, setting, case("nystroem cg"))
print(after.influences(*setting.test(), *setting.train).tobytes().hex())
"""


def test_another_process(place):
    setting = make_setting("tanh_cross_entropy")
    before = fit(case("nystroem cg"), setting)
    before.save(place)
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "core")]
    code = OTHER_PROCESS.format(path=path, place=str(place))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer = before.influences(*setting.test(), *setting.train)
    assert run.stdout.strip() == answer.tobytes().hex()


def test_nothing_is_pickled(place):
    setting = make_setting("tanh_squared")
    before = influence(setting, Unpicklable(), regularization=0.1, second_order_mode=GGN)
    before.fit(setting.loader()).save(place)
    same(before, load_again(place, setting), setting)


class Unpicklable(Direct):
    def __reduce__(self):
        raise AssertionError("pickled")
