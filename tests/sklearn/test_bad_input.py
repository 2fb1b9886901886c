"""What cannot be right is refused, with a message that says what to do."""

import copy

import numpy as np
import pytest
from fits import INPUTS, N, fit, logistic
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from influence_core import (
    BackendNotFoundError,
    CapabilityError,
    DataError,
    DataTypeError,
    Direct,
    Influence,
    InfluenceError,
    ModelError,
    OptionError,
    UnsupportedInfluenceModeException,
)
from influence_sklearn import SklearnProblem, Weighted, influences, leave_one_out

SETTING, BINARY = fit("ridge"), fit("binary")
X, Y, LABELS = SETTING.x, SETTING.y, BINARY.y


class Renamed(StandardScaler):
    """A step that changes which points there are, as samplers do."""

    transform = None

    def __getattribute__(self, name):
        if name == "transform":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def fit_resample(self, x, y):
        return x, y


def changed(estimator, **attributes):
    """A fitted estimator with other attributes than its version of scikit-learn would give it."""
    again = copy.copy(estimator)
    for name, value in attributes.items():
        setattr(again, name, value)
    return again


@pytest.mark.parametrize("call", [influences, leave_one_out])
@pytest.mark.parametrize(
    "estimator",
    [Ridge(), LinearRegression(), LogisticRegression(), make_pipeline(StandardScaler(), Ridge())],
    ids=repr,
)
def test_unfitted_estimators(call, estimator):
    with pytest.raises(ModelError, match=r"must be fitted; this \w+ is not\. Call its `fit"):
        call(estimator, X, Y, X, Y)


def test_an_estimator_that_no_backend_serves():
    forest = RandomForestClassifier(2).fit(X, LABELS)
    for call in (influences, lambda *data: leave_one_out(*data, *data[1:])):
        with pytest.raises(ModelError, match=r"a LinearRegression, Ridge or.*got RandomForest"):
            call(forest, X, LABELS)
    with pytest.raises(BackendNotFoundError) as caught:
        Influence(forest, None, Direct())
    assert "RandomForestClassifier" in str(caught.value)
    assert "sklearn.linear_model._ridge.Ridge" in str(caught.value)


def test_pipelines_that_end_in_something_else():
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(2)).fit(X, LABELS)
    with pytest.raises(ModelError, match="got RandomForestClassifier, at the end of the pipeline"):
        influences(forest, X, LABELS)
    nothing = make_pipeline(StandardScaler(), "passthrough").fit(X)
    with pytest.raises(ModelError, match="got passthrough, at the end"):
        influences(nothing, X, Y)


def test_pipelines_with_a_step_that_does_not_transform():
    pipeline = make_pipeline(StandardScaler(), Ridge()).fit(X, Y)
    pipeline.steps.insert(1, ("sampler", Renamed()))
    with pytest.raises(ModelError, match="'sampler' is Renamed, which has none"):
        influences(pipeline, X, Y)


def test_a_search_for_a_penalty():
    search = LogisticRegressionCV.__new__(LogisticRegressionCV)
    with pytest.raises(ModelError, match=r"LogisticRegressionCV is a search.*`C_`"):
        influences(search, X, LABELS)


@pytest.mark.parametrize("estimator", [LinearRegression(positive=True), Ridge(positive=True)])
def test_constraints(estimator):
    with pytest.raises(ModelError, match=r"positive=True\) may be held by its constraint"):
        influences(estimator.fit(X, Y), X, Y)


PENALTIES = {
    "l1": {"penalty": "deprecated", "l1_ratio": 1.0},
    "both": {"penalty": "deprecated", "l1_ratio": 0.3},
    "l1, before 1.8": {"penalty": "l1", "l1_ratio": None},
    "both, before 1.8": {"penalty": "elasticnet", "l1_ratio": 0.3},
}


@pytest.mark.parametrize("attributes", PENALTIES.values(), ids=PENALTIES.keys())
def test_penalties_without_second_derivative(attributes):
    estimator = changed(BINARY.estimator, **attributes)
    words = r"must have a quadratic penalty, or none; got l1_ratio=.*, C=1.0.*l1_ratio=0 .*C=inf"
    with pytest.raises(CapabilityError, match=words):
        influences(estimator, X, LABELS)


@pytest.mark.parametrize("attributes", PENALTIES.values(), ids=PENALTIES.keys())
def test_an_infinite_C_is_no_penalty_of_any_kind(attributes):
    problem = SklearnProblem(changed(BINARY.estimator, C=np.inf, **attributes))
    np.testing.assert_array_equal(problem.penalty(["coef", "intercept"], 1.0), np.zeros(INPUTS + 1))


@pytest.mark.parametrize(
    ("attributes", "strength"),
    [
        ({"penalty": "l2", "l1_ratio": None}, 1.0),
        ({"penalty": "elasticnet", "l1_ratio": 0.0}, 1.0),
        ({"penalty": None}, 0.0),
        ({"penalty": "l2", "C": 0.25}, 4.0),
    ],
)
def test_penalties_as_older_versions_say_them(attributes, strength):
    problem = SklearnProblem(changed(BINARY.estimator, **attributes))
    want = [*([strength] * INPUTS), 0.0]
    np.testing.assert_array_equal(problem.penalty(["coef", "intercept"], 1.0), want)


def test_one_classifier_a_class():
    multinomial = fit("multinomial")
    for attributes in ({"multi_class": "ovr"}, {"solver": "liblinear"}):
        with pytest.raises(ModelError, match=r"one against the rest.*solver='lbfgs'"):
            SklearnProblem(changed(multinomial.estimator, **attributes))
    with pytest.raises(ModelError, match="with two classes must have the binary loss"):
        SklearnProblem(changed(BINARY.estimator, multi_class="multinomial"))
    SklearnProblem(changed(BINARY.estimator, multi_class="ovr"))


def test_balanced_classes_need_their_numbers():
    balanced = logistic(class_weight="balanced").fit(X, LABELS)
    with pytest.raises(OptionError, match=r"the estimator has 'balanced'.*class_weight=\{label"):
        Influence(balanced, None, Direct()).fit([(X, LABELS)])
    with pytest.raises(OptionError, match="is for a classification"):
        SklearnProblem(SETTING.estimator, class_weight={0: 1.0})


def test_options():
    with pytest.raises(OptionError, match="`loss` must be None"):
        SklearnProblem(SETTING.estimator, "squared")
    for like in (np.zeros(1, int), 1.0):
        with pytest.raises(OptionError, match="`like` must be a floating-point array"):
            SklearnProblem(SETTING.estimator, like=like)
    with pytest.raises(OptionError, match="max_memory"):
        SklearnProblem(SETTING.estimator, max_memory=0)
    with pytest.raises(UnsupportedInfluenceModeException):
        influences(SETTING.estimator, X, Y, mode="sideways")
    with pytest.raises(ModelError, match="finite"):
        SklearnProblem(changed(SETTING.estimator, coef_=np.full(INPUTS, np.nan)))


class Frame:
    """As much of a data frame as is looked at."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


def test_columns_in_another_order():
    estimator = changed(SETTING.estimator, feature_names_in_=np.array(["a", "b", "c"], object))
    problem = SklearnProblem(estimator)
    batch = problem.batch((Frame(X, ["a", "b", "c"]), Y))
    np.testing.assert_array_equal(batch.x, X)
    with pytest.raises(DataError, match=r"\['a', 'b', 'c'\], in this order; got \['b', 'a', 'c'\]"):
        problem.batch((Frame(X, ["b", "a", "c"]), Y))


def nan_at(array):
    array = array.copy()
    array[1] = np.nan
    return array


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ((X[:, :2], Y), DataError, r"must be \(n, 3\).*got the shape \(60, 2\)"),
        ((X[:, 0], Y), DataError, r"must be \(n, 3\)"),
        ((X, Y[:-1]), DataError, "'x': 60, 'y': 59"),
        ((X[:0], Y[:0]), DataError, "one point or more"),
        ((nan_at(X), Y), DataError, "`x` must hold finite"),
        ((X, nan_at(Y)), DataError, "`y` must hold finite"),
        ((X + 1j, Y), DataTypeError, "`X` must hold real numbers.*complex"),
        ((np.full((N, 3), "ant"), Y), DataTypeError, "`X` must hold real numbers.*Encode"),
        ((X, np.full(N, "ant")), DataTypeError, "`y` must hold real numbers"),
        ((X, np.stack([Y, Y], axis=1)), DataError, r"must be \(n,\) or \(n, 1\).*\(60, 2\)"),
    ],
)
def test_data_of_a_regression(data, error, words):
    with pytest.raises(error, match=words):
        influences(SETTING.estimator, *data)


def test_targets_of_a_regression_with_several():
    for kind in ("ridge, three targets", "ridge, a penalty a target"):
        setting = fit(kind)
        with pytest.raises(DataError, match=r"must be \(n, 3\), as the estimator was fitted"):
            influences(setting.estimator, X, Y)
        with pytest.raises(DataError, match=r"must be \(n, 3\), as the estimator was fitted"):
            leave_one_out(setting.estimator, X, setting.y, X, setting.y[:, :2])


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.where(np.arange(N) == 4, "dog", LABELS), r"\['ant', 'bee'\]; got 'dog'\. Drop"),
        (np.arange(N), r"got 0, 1, 2, 3, 4, …"),
        (LABELS[:, None], "Pass labels, not one-hot rows"),
        (LABELS[:-1], "'x': 60, 'y': 59"),
    ],
)
def test_labels(y, words):
    with pytest.raises(DataError, match=words):
        influences(BINARY.estimator, X, y)


@pytest.mark.parametrize("kind", ["ridge", "binary, classes weighted"])
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(N - 1), "'weights': 59"),
        (np.ones((N, 1)), r"'weights': \(60, 1\)"),
        (-np.ones(N), "zero or more"),
        (np.zeros(N), "positive sum"),
    ],
)
def test_weights(kind, weights, words):
    setting = fit(kind)
    with pytest.raises(DataError, match=words):
        influences(setting.estimator, setting.x, setting.y, sample_weight=weights)


def test_batches():
    problem = SklearnProblem(SETTING.estimator)
    with pytest.raises(DataError, match=r"fit\(\[\(X, y\)\]\)"):
        problem.batch(X)
    with pytest.raises(DataError, match="weights may be given once"):
        problem.batch((X, Weighted(Y, np.ones(N)), np.ones(N)))
    with pytest.raises(InfluenceError):
        Influence(SETTING.estimator, None, Direct()).fit([])


def test_class_weights_of_unknown_classes_are_refused():
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.array(["no", "yes"] * 20)
    estimator = LogisticRegression(class_weight={"yes": 3.0}).fit(x, y)
    with pytest.raises(OptionError, match=r"`class_weight`.*got \['Yes'\].*\['no', 'yes'\]"):
        Influence(estimator, None, Direct(), class_weight={"Yes": 3.0}).fit([(x, y)])


def test_unknown_options_are_named():
    with pytest.raises(OptionError, match="'class_weight'; got 'sample_weight'"):
        Influence(Ridge().fit(X, Y), None, Direct(), sample_weight=np.ones(N)).fit([(X, Y)])
