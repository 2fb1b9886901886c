"""Gradients and factors of training points on disk."""

import math

import numpy as np
import pytest
import zarr
from jobs import PRODUCT, batches, calculator, chunk_files, model
from loaders import CountingLoader
from methods import BATCH_INVARIANT
from namespaces import LIBRARIES
from problems import N, make_setting
from stores import FullStore

from influence_core import Cg, Direct
from influence_core.calculators import Projection
from influence_core.errors import OptionError, StorageError
from influence_core.fitted import FittedInfluence

KINDS = ("gradients", "factors")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "rows.zarr"


def store(sequential, kind, *arguments, **options):
    return getattr(sequential, f"store_{kind}")(*arguments, **options)


def difference(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_exact_rows_give_the_usual_scores(library, kind, place):
    setting = make_setting("logistic", library)
    influence = model(setting)
    sequential = calculator(influence)
    array = store(sequential, kind, setting.loader(), place)
    assert array.shape == (N, influence.n_parameters)
    assert array.chunks[0] < N
    lazy = sequential.influences_from_store(batches(setting, 31), place)
    want = library.host(influence.influences(*setting.test(31), *setting.train))
    library.close(lazy.compute(), want)
    assert lazy.shape == (31, N)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", BATCH_INVARIANT)
def test_every_method(case, kind):
    setting = make_setting("tanh_cross_entropy")
    options = {"second_order_mode": "generalized_gauss_newton", "max_memory": PRODUCT}
    fitted = case.fitted(setting, regularization=1e-2, **options)
    sequential, memory = calculator(fitted), zarr.storage.MemoryStore()
    store(sequential, kind, setting.loader(), memory)
    lazy = sequential.influences_from_store(batches(setting, 6, (2,)), memory)
    assert difference(lazy.compute(), fitted.influences(*setting.test(6), *setting.train)) < (
        case.accuracy
    )


def test_later_test_points_cost_no_pass_over_the_training_data(place):
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    train = CountingLoader(setting.loader())
    sequential.store_gradients(train, place)
    assert train.since() == 2
    test = CountingLoader(batches(setting, 31))
    sequential.influences_from_store(test, place).compute()
    assert train.since() == 0
    assert test.since() == 2


def test_with_factors_later_test_points_cost_no_solve(place, monkeypatch):
    setting = make_setting("logistic")
    influence = model(setting)
    want = influence.influences(*setting.test(31), *setting.train)
    sequential = calculator(influence)
    sequential.store_factors(setting.loader(), place)
    monkeypatch.setattr(FittedInfluence, "solve", None)
    got = sequential.influences_from_store(batches(setting, 31), place).compute()
    assert difference(got, want) < 1e-12


def test_gradients_serve_every_regularization_and_method(place):
    setting = make_setting("logistic")
    influence = model(setting)
    calculator(influence).store_gradients(setting.loader(), place)
    for other in (influence.with_regularization(1.0), model(setting, Cg(rtol=1e-12, atol=0.0))):
        got = calculator(other).influences_from_store(batches(setting, 9), place).compute()
        assert difference(got, other.influences(*setting.test(9), *setting.train)) < 1e-10


def test_the_store_can_be_ranked_and_written(place, tmp_path):
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    sequential.store_gradients(setting.loader(), place)
    lazy = sequential.influences_from_store(batches(setting, 31), place)
    scores = lazy.compute()
    np.testing.assert_array_equal(lazy.to_zarr(tmp_path / "scores.zarr")[:], scores)
    want = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(lazy.top_k(3).helpful.indices, want)


@pytest.mark.parametrize("projection", [None, Projection(4)])
def test_an_interrupted_store_is_taken_up(place, tmp_path, projection):
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    whole = tmp_path / "whole.zarr"
    sequential.store_gradients(setting.loader(), whole, projection=projection)
    full = FullStore(place)
    full.room = 2
    with pytest.raises(StorageError, match="2 of"):
        sequential.store_gradients(setting.loader(), full, projection=projection)
    with pytest.raises(StorageError, match="complete"):
        sequential.influences_from_store(batches(setting, 4), place)
    sequential.store_gradients(setting.loader(), place, projection=projection)
    assert chunk_files(place) == chunk_files(whole)


def test_a_projection_is_that_of_the_whole_rows_however_they_are_cut(place, tmp_path):
    setting = make_setting("logistic")
    influence = model(setting)
    projection = Projection(6, seed=3)
    small = calculator(influence).store_gradients(setting.loader(), place, projection=projection)
    large = calculator(influence, max_memory=2**20).store_gradients(
        setting.loader(), tmp_path / "large.zarr", projection=projection
    )
    assert small.shape == (N, 6)
    np.testing.assert_allclose(small[:], large[:], rtol=1e-12)
    gradients = calculator(influence).store_gradients(setting.loader(), tmp_path / "exact.zarr")
    signs = np.concatenate([projection.of(np.eye(15)[[j]]) for j in range(15)]) * math.sqrt(6)
    np.testing.assert_allclose(np.abs(signs), 1.0, rtol=1e-12)
    np.testing.assert_allclose(small[:], gradients[:] @ signs / math.sqrt(6), rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_projection_is_the_stated_one(kind):
    setting = make_setting("logistic")
    influence = model(setting)
    sequential = calculator(influence, max_memory=2**20)
    test, size = [setting.test(31)], 64
    left, right = (
        influence.influence_factors(*setting.test(31)),
        sequential.store_gradients(setting.loader(), zarr.storage.MemoryStore())[:],
    )
    if kind == "factors":
        left = sequential.store_gradients(test, zarr.storage.MemoryStore())[:]
        right = influence.influence_factors(*setting.train)
    exact = influence.influences(*setting.test(31), *setting.train)
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    stated, errors = np.sqrt((norms**2 + exact**2) / size), []
    for seed in range(20):
        memory = zarr.storage.MemoryStore()
        store(sequential, kind, setting.loader(), memory, projection=Projection(size, seed))
        got = sequential.influences_from_store(test, memory).compute()
        errors.append((got - exact) / stated)
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.05
    assert abs(np.mean(errors)) < 0.1  # right in expectation


def test_a_store_of_other_parameters_is_refused(place):
    setting = make_setting("logistic")
    calculator(model(setting)).store_gradients(setting.loader(), place)
    setting.model.parameters["weight"][0, 0] += 1e-9
    with pytest.raises(StorageError, match="other parameters"):
        calculator(model(setting)).influences_from_store(batches(setting, 4), place)


def test_a_store_of_other_blocks_is_refused(place):
    setting = make_setting("logistic")
    calculator(model(setting)).store_gradients(setting.loader(), place)
    other = model(setting, block_structure={"": ["weight"]})
    with pytest.raises(StorageError, match="other blocks"):
        calculator(other).influences_from_store(batches(setting, 4), place)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: model(s, regularization=1e-3), "regularization"),
        (lambda s: model(s, Cg()), "method"),
        (lambda s: model(s, Direct(), batch_size=4), "fit"),
    ],
)
def test_factors_of_another_fit_are_refused(place, change, named):
    setting = make_setting("logistic")
    calculator(model(setting)).store_factors(setting.loader(), place)
    with pytest.raises(StorageError, match=f"other {named}"):
        calculator(change(setting)).influences_from_store(batches(setting, 4), place)


def test_scores_are_no_store(place):
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    sequential.influences(batches(setting, 4), setting.loader()).to_zarr(place)
    with pytest.raises(StorageError, match="holds 'influences'"):
        sequential.influences_from_store(batches(setting, 4), place)


def test_nothing_is_no_store(place):
    setting = make_setting("logistic")
    with pytest.raises(StorageError, match="no zarr array"):
        calculator(model(setting)).influences_from_store(batches(setting, 4), place)
    assert not place.exists()


def test_an_array_of_another_kind_is_no_store(place):
    setting = make_setting("logistic")
    zarr.create_array(place, shape=(3, 15), dtype="float64")
    with pytest.raises(StorageError, match="something else"):
        calculator(model(setting)).influences_from_store(batches(setting, 4), place)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1] + b"x"])
def test_damage_is_found_when_it_is_read(place, damage):
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    sequential.store_gradients(setting.loader(), place)
    file = place / "c" / "0" / "0"
    file.write_bytes(damage(file.read_bytes()))
    lazy = sequential.influences_from_store(batches(setting, 4), place)
    with pytest.raises(StorageError, match=r"cannot be read.*computes what is missing"):
        lazy.compute()
    file.unlink()
    with pytest.raises(StorageError, match="has lost a chunk"):
        lazy.compute()
    sequential.store_gradients(setting.loader(), place)
    lazy.compute()


@pytest.mark.parametrize("projection", [10, "random", Projection])
def test_what_is_no_projection_is_refused(projection, place):
    setting = make_setting("logistic")
    with pytest.raises(OptionError, match="projection"):
        calculator(model(setting)).store_gradients([], place, projection=projection)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 1.5}, {"size": 3, "seed": -1}])
def test_a_projection_of_no_size_is_refused(options):
    with pytest.raises(OptionError, match=r"Projection\("):
        Projection(**options)
