"""Lazy results are those of the model's own calls, however they are cut."""

import numpy as np
import pytest
from abilities import BARE, COURTEOUS
from jobs import PRODUCT, batches, calculator, cut, model
from methods import BATCH_INVARIANT
from namespaces import LIBRARIES
from problems import N, fitted, influence, make_setting

from influence_core import Cg, Lissa
from influence_core.calculators import SequentialInfluenceCalculator
from influence_core.errors import (
    DataError,
    DataTypeError,
    NotFittedException,
    OptionError,
    StorageError,
    UnsupportedInfluenceModeException,
)

MODES = ("up", "perturbation")


def plain(fitted_model, setting, m, mode="up"):
    return setting.library.host(
        fitted_model.influences(*setting.test(m), *setting.train, mode=mode)
    )


def difference(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [1, 4, N, 31])
def test_every_size_and_mode(m, mode):
    setting = make_setting("logistic")
    fitted_model = model(setting)
    lazy = calculator(fitted_model).influences(batches(setting, m), setting.loader(), mode)
    assert difference(lazy.compute(), plain(fitted_model, setting, m, mode)) < 1e-12
    assert lazy.shape == (m, N) if mode == "up" else (m, N, 4)


@pytest.mark.parametrize("case", BATCH_INVARIANT)
def test_every_method(case):
    setting = make_setting("tanh_cross_entropy")
    options = {"second_order_mode": "generalized_gauss_newton", "max_memory": PRODUCT}
    fitted = case.fitted(setting, regularization=1e-2, **options)
    lazy = calculator(fitted).influences(batches(setting, 6, (2,)), setting.loader())
    assert difference(lazy.compute(), plain(fitted, setting, 6)) < case.accuracy


def test_a_stochastic_method_is_solved_like_its_own_factors():
    setting = make_setting("least_squares")
    fitted_model = model(setting, Lissa(maxiter=200, scale=None, warn_on_max_iteration=False))
    test = [setting.test(4)]
    lazy = SequentialInfluenceCalculator(fitted_model).influences(test, setting.loader())
    factors = fitted_model.influence_factors(*setting.test(4))
    want = fitted_model.influences_from_factors(factors, *setting.train)
    assert difference(lazy.compute(), want) < 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library(library, mode):
    setting = make_setting("logistic", library)
    fitted_model = model(setting)
    lazy = calculator(fitted_model).influences(batches(setting, 9), setting.loader(), mode)
    library.close(lazy.compute(), plain(fitted_model, setting, 9, mode))
    assert lazy.dtype == library.array(0.0).dtype


@pytest.mark.parametrize("sizes", [(1,), (3, 8, 2), (40,), (1, 30)])
def test_how_the_loaders_are_cut_does_not_matter(sizes):
    setting = make_setting("logistic")
    fitted_model = model(setting)
    train = list(cut(setting, *setting.host_train, sizes))
    lazy = calculator(fitted_model).influences(batches(setting, 31, sizes), train)
    assert difference(lazy.compute(), plain(fitted_model, setting, 31)) < 1e-12


def test_several_blocks():
    setting = make_setting("tanh_squared")
    blocks = {"block_structure": "parameter_wise", "second_order_mode": "gauss_newton"}
    fitted_model = model(setting, **blocks)
    lazy = calculator(fitted_model).influences(batches(setting, 9), setting.loader())
    assert difference(lazy.compute(), plain(fitted_model, setting, 9)) < 1e-12
    factors = calculator(fitted_model).influence_factors(batches(setting, 9))
    assert difference(factors.compute(), fitted_model.influence_factors(*setting.test(9))) < 1e-12


def test_factors_are_those_of_the_model():
    setting = make_setting("logistic")
    fitted_model = model(setting)
    lazy = calculator(fitted_model).influence_factors(batches(setting, 31))
    assert lazy.shape == (31, fitted_model.n_parameters)
    assert lazy.chunks[0] < 31
    want = fitted_model.influence_factors(*setting.test(31))
    assert difference(lazy.compute(), want) < 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["lazy", "computed", "zarr"])
def test_influences_from_factors(form, mode, tmp_path):
    setting = make_setting("logistic")
    fitted_model = model(setting)
    sequential = calculator(fitted_model)
    factors = sequential.influence_factors(batches(setting, 31))
    given = {
        "lazy": lambda: factors,
        "computed": factors.compute,
        "zarr": lambda: factors.to_zarr(tmp_path / "factors.zarr"),
    }[form]()
    lazy = sequential.influences_from_factors(given, setting.loader(), mode)
    assert difference(lazy.compute(), plain(fitted_model, setting, 31, mode)) < 1e-12


def test_blocks_tile_the_result():
    setting = make_setting("logistic")
    lazy = calculator(model(setting)).influences(batches(setting, 31), setting.loader())
    whole, seen = lazy.compute(), np.zeros(lazy.shape, int)
    for rows, columns, array in lazy.blocks():
        assert array.shape == (rows.stop - rows.start, columns.stop - columns.start)
        assert all(size <= most for size, most in zip(array.shape, lazy.chunks, strict=True))
        np.testing.assert_array_equal(array, whole[rows, columns])
        seen[rows, columns] += 1
    assert (seen == 1).all()
    assert lazy.chunks[0] < 31
    assert lazy.chunks[1] < N


def test_the_regularization_is_that_of_the_call():
    setting = make_setting("logistic")
    fitted_model = model(setting)
    lazy = calculator(fitted_model).influences(batches(setting, 4), setting.loader())
    want = plain(fitted_model, setting, 4)
    fitted_model.with_regularization(10.0)
    assert difference(lazy.compute(), want) < 1e-12


@pytest.mark.parametrize("backend", [BARE, COURTEOUS], ids=["bare", "courteous"])
def test_backends_with_other_abilities(backend, tmp_path):
    setting = make_setting("logistic")
    if backend is COURTEOUS:
        train = [{"x": x, "y": y} for x, y in setting.loader()]
        test = [{"x": x, "y": y} for x, y in batches(setting, 9)]
    else:
        train, test = setting.loader(), batches(setting, 9)
    fitted = influence(setting, backend=backend, regularization=1e-2).fit(train)
    lazy = SequentialInfluenceCalculator(fitted).influences(test, train)
    want = plain(model(setting), setting, 9)
    got = lazy.to_zarr(tmp_path / "scores.zarr")
    assert difference(got[:], want) < 1e-6
    assert got.dtype == lazy.dtype == lazy.compute().dtype


def test_the_report_holds_all_solves():
    setting = make_setting("logistic")
    fitted_model = model(setting, Cg(rtol=1e-8, atol=0.0))
    calculator(fitted_model).influences(batches(setting, 31), setting.loader()).compute()
    assert fitted_model.report.converged.shape == (31,)
    assert fitted_model.report.converged.all()
    assert fitted_model.report.iterations.max() > 1


def test_a_model_that_is_not_fitted_is_refused():
    with pytest.raises(NotFittedException, match="fit"):
        SequentialInfluenceCalculator(influence(make_setting()))


def test_what_is_no_model_is_refused():
    with pytest.raises(OptionError, match="got str"):
        SequentialInfluenceCalculator("model")


@pytest.mark.parametrize("memory", [0, -1, 1.5, True, "1 GB"])
def test_a_budget_that_is_none_is_refused(memory):
    with pytest.raises(OptionError, match="max_memory"):
        SequentialInfluenceCalculator(model(make_setting()), max_memory=memory)


def test_a_budget_that_one_product_takes_is_refused():
    unbounded = fitted(make_setting())  # whose products may take 1 GiB
    with pytest.raises(OptionError, match="Pass `max_memory=` of 500000 or less to the model"):
        SequentialInfluenceCalculator(unbounded, max_memory=10**6)


def test_an_unknown_mode_is_refused():
    setting = make_setting()
    with pytest.raises(UnsupportedInfluenceModeException):
        calculator(model(setting)).influences([], setting.loader(), "down")


@pytest.mark.parametrize("shape", [(3,), (3, 2), (0, 15)])
def test_factors_of_another_shape_are_refused(shape):
    setting = make_setting("logistic")
    with pytest.raises(DataError, match=r"shape \(m, 15\)"):
        calculator(model(setting)).influences_from_factors(np.zeros(shape), setting.loader())


def test_lazy_scores_are_no_factors():
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    scores = sequential.influences(batches(setting, 4), setting.loader())
    with pytest.raises(DataError, match="needs factors"):
        sequential.influences_from_factors(scores, setting.loader())


def test_perturbation_of_several_inputs_is_refused():
    torch = pytest.importorskip("torch")
    from influence_torch import DirectInfluence

    linear = torch.nn.Linear(2, 1).double()
    x = {"a": torch.ones(3, 2).double(), "b": torch.ones(3, 2).double()}
    data = [(x, torch.ones(3, 1).double())]
    fitted_model = DirectInfluence(
        linear,
        torch.nn.MSELoss(),
        regularization=1.0,
        forward=lambda model, x: model(x["a"] * x["b"]),
    ).fit(data)
    sequential = SequentialInfluenceCalculator(fitted_model)
    assert sequential.influences(data, data).compute().shape == (3, 3)
    with pytest.raises(DataTypeError, match="one array"):
        sequential.influences(data, data, "perturbation").compute()


def test_a_torch_loader():
    torch = pytest.importorskip("torch")
    from influence_torch import DirectInfluence

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    points = torch.utils.data.TensorDataset(torch.randn(23, 3), torch.randint(0, 2, (23,)))
    loader = torch.utils.data.DataLoader(points, batch_size=5)
    fitted_model = DirectInfluence(
        net,
        torch.nn.CrossEntropyLoss(),
        regularization=0.1,
        second_order_mode="generalized_gauss_newton",
        max_memory=2**13,
    ).fit(loader)
    lazy = SequentialInfluenceCalculator(fitted_model, max_memory=2**14).influences(loader, loader)
    before = torch.get_rng_state()
    got = lazy.compute()
    assert torch.equal(torch.get_rng_state(), before)
    want = fitted_model.influences(*points.tensors, *points.tensors)
    assert isinstance(got, torch.Tensor)
    assert lazy.dtype == got.dtype == torch.float32
    assert lazy.chunks[0] < 23
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_the_jax_backend(tmp_path):
    jax = pytest.importorskip("jax")
    from influence_jax import CgInfluence

    keys = jax.random.split(jax.random.key(0), 3)
    x, y = jax.random.normal(keys[0], (23, 3)), jax.random.normal(keys[1], (23, 2))
    params = {"w": jax.random.normal(keys[2], (3, 2))}
    train = [(x[i : i + 5], y[i : i + 5]) for i in range(0, 23, 5)]
    influence = CgInfluence(
        lambda params, x: x @ params["w"],
        params,
        lambda outputs, y: ((outputs - y) ** 2).mean(),
        regularization=0.1,
        rtol=1e-6,
    ).fit(train)
    lazy = SequentialInfluenceCalculator(influence).influences(train, train)
    got, want = lazy.compute(), influence.influences(x, y, x, y)
    assert isinstance(got, jax.Array)
    assert difference(got, np.asarray(want)) < 1e-4
    np.testing.assert_array_equal(lazy.to_zarr(tmp_path / "scores.zarr")[:], np.asarray(got))


def test_the_scikit_learn_backend(tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    from influence_core import Direct, Influence

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.integers(0, 3, 40)
    names = np.array(["a", "b", "c"])[y]
    estimator = linear_model.LogisticRegression().fit(x, names)
    train = [(x[i : i + 12], names[i : i + 12]) for i in range(0, 40, 12)]
    influence = Influence(estimator, None, Direct()).fit(train)
    lazy = SequentialInfluenceCalculator(influence).influences(train, train)
    assert difference(lazy.compute(), influence.influences(x, names)) < 1e-12
    np.testing.assert_array_equal(lazy.to_zarr(tmp_path / "scores.zarr")[:], lazy.compute())


def test_what_is_measured_at_the_test_points_counts(tmp_path):
    torch = pytest.importorskip("torch")
    from influence_torch import DirectInfluence

    torch.manual_seed(0)
    data = [(torch.randn(8, 3).double(), torch.randn(8, 2).double())]
    net = torch.nn.Linear(3, 2).double()
    influence = DirectInfluence(net, torch.nn.MSELoss(), regularization=0.1).fit(data)
    measured = influence.measuring(lambda outputs, y: outputs[:, 0])
    sequential = SequentialInfluenceCalculator(measured)
    got = sequential.influences(data, data).compute()
    assert (got - measured.influences(*data[0], *data[0])).abs().max() < 1e-12
    assert (got - influence.influences(*data[0], *data[0])).abs().max() > 0.1
    assert (
        sequential.influence_factors(data).compute() - measured.influence_factors(*data[0])
    ).abs().max() < 1e-12
    SequentialInfluenceCalculator(influence).store_factors(data, tmp_path / "factors.zarr")
    stored = sequential.influences_from_store(data, tmp_path / "factors.zarr")
    assert (stored.compute() - got).abs().max() < 1e-12
    sequential.influences(data, data).to_zarr(tmp_path / "scores.zarr")
    with pytest.raises(StorageError, match="first_gradient"):
        SequentialInfluenceCalculator(influence).influences(data, data).to_zarr(
            tmp_path / "scores.zarr"
        )


def test_a_method_of_the_users_own(tmp_path):
    torch = pytest.importorskip("torch")
    from influence_torch import TorchInfluenceFunctionModel

    class Scaled(TorchInfluenceFunctionModel):
        is_fitted = False

        def fit(self, data):
            self.is_fitted = True
            return self

        def solve_rows(self, rows):
            return rows / self.regularization

    torch.manual_seed(0)
    data = [(torch.randn(8, 3).double(), torch.randn(8, 2).double())]
    net = torch.nn.Linear(3, 2).double()
    influence = Scaled(net, torch.nn.MSELoss()).with_regularization(2.0).fit(data)
    lazy = SequentialInfluenceCalculator(influence).influences(data, data)
    want = influence.influences(*data[0], *data[0])
    np.testing.assert_allclose(lazy.to_zarr(tmp_path / "scores.zarr")[:], want, rtol=1e-12)
    influence.with_regularization(3.0)
    lazy = SequentialInfluenceCalculator(influence).influences(data, data)
    with pytest.raises(StorageError, match="regularization"):
        lazy.to_zarr(tmp_path / "scores.zarr")


def test_short_numbers_go_to_disk_as_float32(tmp_path):
    torch = pytest.importorskip("torch")
    from influence_torch import DirectInfluence

    torch.manual_seed(0)
    data = [(torch.randn(6, 3).bfloat16(), torch.randn(6, 1).bfloat16())]
    net = torch.nn.Linear(3, 1).bfloat16()
    fitted_model = DirectInfluence(net, torch.nn.MSELoss(), regularization=0.1).fit(data)
    lazy = SequentialInfluenceCalculator(fitted_model).influences(data, data)
    array = lazy.to_zarr(tmp_path / "scores.zarr")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[:], lazy.compute().float().numpy())


def test_enough_memory_is_one_chunk():
    setting = make_setting("logistic")
    lazy = calculator(model(setting), max_memory=2**20).influences(
        batches(setting, 31), setting.loader()
    )
    assert lazy.chunks == lazy.shape == (31, N)


def test_a_lazy_result_says_what_it_is_without_reading():
    setting = make_setting("logistic")
    lazy = calculator(model(setting)).influences(batches(setting, 4), setting.loader())
    assert "influences" in repr(lazy)
    assert lazy.ndim == 2
