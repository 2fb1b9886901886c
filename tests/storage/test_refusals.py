"""Other models, other data, other settings: refused, with a message that says what differs."""

from dataclasses import replace

import numpy as np
import pytest
from loaders import ChangingLoader
from methods import CASES
from namespaces import NUMPY
from problems import influence, make_setting
from saving import BLOCKS, GGN, READS_DATA, case, fit, load_again, record_of

from influence_core import (
    BackendNotFoundError,
    CapabilityError,
    DataError,
    DataTypeError,
    Influence,
    ModelError,
    NotFittedException,
    OptionError,
    StorageError,
    load,
)
from influence_core.testing import BACKEND, ClosedFormProblem, LeastSquares, TanhNetwork


@pytest.fixture
def setting():
    return make_setting("tanh_cross_entropy")


@pytest.fixture
def saved(setting, place):
    fit(case("direct"), setting).save(place)
    return place


def changed(setting, **parameters):
    model = replace(setting.model, parameters={**setting.model.parameters, **parameters})
    return replace(setting, model=model)


def test_before_fit_there_is_nothing_to_save(setting, place):
    with pytest.raises(NotFittedException, match=r"Influence\.save.*fit"):
        influence(setting).save(place)
    assert not place.exists()


def test_other_values(setting, saved):
    weight = np.array(setting.model.parameters["output.weight"])
    weight[0, 0] = np.nextafter(weight[0, 0], 1.0)
    message = r"load\('.*saved'\).*the values of 'output.weight' differ\. Load the parameters"
    with pytest.raises(ModelError, match=message):
        load_again(saved, changed(setting, **{"output.weight": weight}))


def test_many_other_values_are_not_all_listed(saved):
    other = make_setting("tanh_cross_entropy")
    model = TanhNetwork.random(4, 5, 3, loss="cross_entropy", seed=1)
    with pytest.raises(ModelError, match=r"the values of 'hidden.weight', .*'output.bias' differ"):
        load_again(saved, replace(other, model=model))


def test_other_shapes(setting, saved):
    model = TanhNetwork.random(4, 6, 3, loss="cross_entropy")
    with pytest.raises(
        ModelError, match=r"'hidden.weight' has the shape \[6, 4\], where \[5, 4\] was saved"
    ):
        load_again(saved, replace(setting, model=model))


def test_other_names(setting, saved):
    with pytest.raises(ModelError, match=r"has no 'hidden.weight', .*; it has 'weight', 'bias'"):
        load_again(saved, replace(setting, model=LeastSquares.random(4, 3)))


def test_another_order(setting, saved):
    parameters = dict(reversed(setting.model.parameters.items()))
    model = replace(setting.model, parameters=parameters)
    with pytest.raises(ModelError, match="the same ones stand in another order"):
        load_again(saved, replace(setting, model=model))


def test_another_dtype(setting, saved):
    shorter = {name: a.astype(np.float32) for name, a in setting.model.parameters.items()}
    with pytest.raises(ModelError, match="has the dtype float32, where float64 was saved"):
        load_again(saved, changed(setting, **shorter))


def test_parameters_that_no_block_covers_count(setting, place):
    fit(case("direct"), setting, block_structure=BLOCKS).save(place)
    bias = setting.model.parameters["hidden.bias"] + 1
    with pytest.raises(ModelError, match=r"'hidden.bias' differ"):
        load_again(place, changed(setting, **{"hidden.bias": bias}))


@pytest.fixture
def served_by(monkeypatch):
    """Replace what the backend makes of a model."""
    return lambda problem: monkeypatch.setattr(
        "influence_core.testing.problem.ClosedFormProblem", problem
    )


class Normalized(ClosedFormProblem):
    mean = np.zeros(3)

    def constants(self):
        return {"mean": self.mean}


def test_constants_count(setting, place, served_by, monkeypatch):
    served_by(Normalized)
    fit(case("direct"), setting).save(place)
    assert load_again(place, setting).is_fitted
    monkeypatch.setattr(Normalized, "mean", np.ones(3))
    with pytest.raises(ModelError, match="the values of 'mean' differ"):
        load_again(place, setting)


class Hiding(ClosedFormProblem):
    values = None


def test_a_backend_that_hides_its_parameters(setting, place, served_by):
    served_by(Hiding)
    before = fit(case("direct"), setting)
    with pytest.raises(CapabilityError, match="needs `values`"):
        before.save(place)
    assert not place.exists()


@pytest.mark.parametrize("name", READS_DATA)
def test_data_is_asked_for(name, setting, place):
    fit(case(name), setting).save(place)
    batches = 1 if name == "lissa" else 5
    message = rf"needs the training data again.*23 points in {batches} batches.*`data=loader`"
    with pytest.raises(DataError, match=message):
        load_again(place, setting)


@pytest.mark.parametrize("each", CASES)
def test_data_is_asked_for_exactly_where_it_is_read(each, setting, place):
    fit(each, setting).save(place)
    assert ("sha256" in record_of(place)["data"]) == (each.passes != 0)


@pytest.mark.parametrize("name", READS_DATA)
@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x[:-1], y[:-1]),
        lambda x, y: (x + np.where(np.arange(23) == 7, 1e-12, 0.0)[:, None], y),
        lambda x, y: (x, np.roll(y, 1)),
        lambda x, y: (x[::-1], y[::-1]),
        lambda x, y: (np.tile(x, (2, 1)), np.tile(y, 2)),
        lambda x, y: (x, y, np.linspace(1, 2, 23)),
    ],
    ids=["fewer", "moved", "labels", "order", "twice", "weights"],
)
def test_other_data(name, change, setting, place):
    fit(case(name), setting).save(place)
    data = [change(*setting.train)]
    batches = 1 if name == "lissa" else 5
    message = rf"23 points in {batches} batches \(sha256 .*; got \d+ points in 1 batches \(sha256"
    with pytest.raises(DataError, match=message):
        load_again(place, setting, data=data)


def test_other_batches_where_they_matter(setting, place):
    before = case("lissa").influence(setting, regularization=0.1, second_order_mode=GGN)
    before.fit(setting.loader(5)).save(place)
    message = r"4 of 5 points and then 1 of 3 points; got 2 of 10 points and then 1 of 3 points"
    with pytest.raises(DataError, match=message):
        load_again(place, setting, data=setting.loader(10))
    assert load_again(place, setting, data=setting.loader(5)).is_fitted


def test_data_that_can_be_read_once_only(setting, place):
    fit(case("cg"), setting).save(place)
    with pytest.raises(DataTypeError, match=r"load\(.*reads `data` as `fit` does.*again"):
        load_again(place, setting, data=iter(setting.loader()))


def test_data_that_changes(setting, place):
    fit(case("cg"), setting).save(place)
    after = load_again(place, setting, data=ChangingLoader(setting.loader()))
    with pytest.raises(DataError, match="same points in every pass"):
        after.influences(*setting.test())


def test_data_is_not_read_where_it_is_not_needed(setting, saved):
    assert load_again(saved, setting, data=object()).is_fitted


class Tripled(ClosedFormProblem):
    def gradient_combinations(self, batch, w, names):
        return 3 * super().gradient_combinations(batch, w, names)


def test_another_loss_shows_in_the_gradient_of_the_objective(setting, place, served_by):
    fit(case("cg"), setting).save(place)
    served_by(Tripled)
    with pytest.raises(ModelError, match=r"gradient of the mean loss.*off by .*Pass the loss"):
        load_again(place, setting, case("cg"))


class Plain:
    weights = None

    def __init__(self, batch):
        self.batch, self.size = batch, batch.size

    def __getitem__(self, points):
        return Plain(self.batch[points])


class Undescribed(ClosedFormProblem):
    def batch(self, data):
        return Plain(super().batch(data))

    def validate(self, batch, where):
        super().validate(batch.batch, where)

    def gradient_combinations(self, batch, w, names):
        return super().gradient_combinations(batch.batch, w, names)


def test_batches_of_a_backend_that_are_no_dataclasses(setting, place, served_by):
    served_by(Undescribed)
    before = fit(case("cg"), setting)
    with pytest.raises(CapabilityError, match="Plain is no dataclass"):
        before.save(place)


def test_options_are_kept(setting, place):
    penalty = {"hidden.weight": 0.5}
    before = fit(case("direct"), setting, penalty=penalty, max_memory=2**20)
    before.save(place)
    after = load_again(place, setting)
    assert after._options == {"penalty": penalty, "max_memory": 2**20}
    assert load_again(place, setting, penalty=penalty).is_fitted
    assert load_again(place, setting, max_memory=None)._options["max_memory"] is None
    with pytest.raises(OptionError, match=r"keeps the options of the fit; got penalty=\{\}"):
        load_again(place, setting, penalty={})
    with pytest.raises(OptionError, match=r"got like=.*where none was saved"):
        load_again(place, setting, like=object())


def test_a_backend_that_is_not_installed(setting, saved):
    with pytest.raises(BackendNotFoundError, match="closed-form"):
        load(saved, setting.model, None)


def test_a_measuring_copy_is_not_saved(setting, place):
    before = fit(case("direct"), setting)
    before._quantity = abs
    with pytest.raises(StorageError, match=r"`measuring`.*Save the instance"):
        before.save(place)


def test_a_class_with_arguments_of_its_own(setting, place):
    before = Own(setting.model, 0.1).fit(setting.loader())
    with pytest.raises(StorageError, match=r"settings of Influence; Own has an `__init__`"):
        before.save(place)
    assert not place.exists()


def test_a_class_without_any(setting, place):
    before = Named(
        setting.model,
        None,
        case("direct").make(NUMPY),
        backend=BACKEND,
        regularization=1.0,
        second_order_mode=GGN,
    )
    before.fit(setting.loader()).save(place)
    after = load_again(place, setting)
    assert type(after) is Named
    assert after.named == "named"


class Own(Influence):
    def __init__(self, model, regularization):
        method = case("direct").make(NUMPY)
        super().__init__(
            model,
            None,
            method,
            backend=BACKEND,
            regularization=regularization,
            second_order_mode=GGN,
        )


class Named(Influence):
    named = "named"
