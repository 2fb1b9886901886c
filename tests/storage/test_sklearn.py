"""Estimators of scikit-learn: saved and loaded without being refitted."""

import numpy as np
import pytest
from fits import ONE_OF_EACH, fit
from namespaces import TORCH
from saving import record_of
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from influence_core import (
    Cg,
    DataError,
    Direct,
    Ekfac,
    Influence,
    InverseHarmonicMean,
    ModelError,
    NystroemSketch,
    OptionError,
    load,
)

METHODS = {
    "direct": (Direct(), 0.0),
    "cg": (Cg(rtol=1e-10, atol=0.0), 0.1),
    "nystroem": (NystroemSketch(30), 0.1),
    "harmonic mean": (InverseHarmonicMean(), 0.1),
    "ekfac": (Ekfac(labels="given"), 0.1),
}


def answers(model, fitted):
    train = fitted.x, fitted.y
    return [
        model.influences(*fitted.test, *train),
        model.influences(*fitted.test, *train, mode="perturbation"),
        model.influence_factors(*train),
        model.removal_effects(*fitted.test, *train, leverage=True),
        np.asarray(model.gradient_norm),
        model.with_regularization(0.5).influences(*fitted.test),
    ]


def same(before, after, fitted):
    for was, now in zip(answers(before, fitted), answers(after, fitted), strict=True):
        assert np.array_equal(was, now)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*have a leverage of one or more")
def test_every_estimator(name, method, place):
    fitted = fit(name, weighted=True)
    how, regularization = METHODS[method]
    before = Influence(fitted.estimator, None, how, regularization=regularization)
    before.fit(fitted.batches(25)).save(place)
    data = fitted.batches(25) if "sha256" in record_of(place)["data"] else None
    same(before, load(place, fitted.estimator, None, data), fitted)


def test_an_estimator_that_was_fitted_to_other_data(place):
    fitted, other = fit("ridge"), fit("ridge", seed=1)
    Influence(fitted.estimator, None, Direct()).fit(fitted.batches(60)).save(place)
    with pytest.raises(ModelError, match="the values of 'coef', 'intercept' differ"):
        load(place, other.estimator)
    again = clone(fitted.estimator).fit(fitted.x, fitted.y)
    assert load(place, again).is_fitted


def test_weights_are_data(place):
    fitted = fit("linear", weighted=True)
    model = Influence(fitted.estimator, None, Cg(), regularization=0.1)
    model.fit(fitted.batches(60)).save(place)
    with pytest.raises(DataError, match="needs the data that was fitted"):
        load(place, fitted.estimator, None, [(fitted.x, fitted.y)])


def test_class_weights_are_kept(place):
    fitted = fit("multinomial")
    weights = {"ant": 2.0, "bee": 1.0, "cat": 0.5}
    before = Influence(fitted.estimator, None, Direct(), class_weight=weights)
    before.fit(fitted.batches(60)).save(place)
    same(before, load(place, fitted.estimator), fitted)
    with pytest.raises(OptionError, match="keeps the options of the fit; got class_weight="):
        load(place, fitted.estimator, class_weight={"ant": 1.0})


def test_arrays_among_the_options_are_passed_again(place):
    fitted = fit("binary")
    like = np.zeros(1, np.float32)
    before = Influence(fitted.estimator, None, Direct(), regularization=0.1, like=like)
    before.fit(fitted.batches(60)).save(place)
    with pytest.raises(OptionError, match="needs `like=` again"):
        load(place, fitted.estimator)
    same(before, load(place, fitted.estimator, like=like), fitted)


@pytest.mark.skipif(not TORCH.installed, reason="torch is not installed")
def test_another_library(place):
    fitted = fit("ridge")
    before = Influence(fitted.estimator, None, Direct(), like=np.zeros(1))
    answer = before.fit(fitted.batches(60)).influences(*fitted.test)
    before.save(place)
    after = load(place, fitted.estimator, like=TORCH.array(np.zeros(1)))
    TORCH.close(after.influences(*fitted.test), answer)


def test_pipelines(place):
    fitted = fit("ridge")
    pipeline = make_pipeline(StandardScaler(), clone(fitted.estimator)).fit(fitted.x, fitted.y)
    before = Influence(pipeline, None, Cg(rtol=1e-10), regularization=0.1)
    before.fit(fitted.batches(25)).save(place)
    after = load(place, pipeline, None, fitted.batches(60))
    was, now = before.influences(*fitted.test), after.influences(*fitted.test)
    assert np.allclose(was, now, rtol=1e-6)
    pipeline[0].scale_ = pipeline[0].scale_ * 1.01
    with pytest.raises(DataError, match="needs the data that was fitted"):
        load(place, pipeline, None, fitted.batches(60))
