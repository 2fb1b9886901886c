"""How the backend is found, what its import costs, and what it says without scikit-learn."""

import subprocess
import sys

import pytest
from fits import fit
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline

import influence_sklearn
from influence_core import Direct, Influence
from influence_core.plugins import find_backend
from influence_sklearn.plugin import influence_backends


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_model_types_are_those_of_the_estimators():
    kinds = (LinearRegression, LogisticRegression, Ridge, Pipeline)
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    assert set(influence_backends().model_types) == names


def test_it_is_found_by_its_entry_point():
    setting = fit("ridge")
    assert find_backend(setting.estimator) == influence_backends()
    assert find_backend(None, "sklearn") == influence_backends()
    influence = Influence(setting.estimator, None, Direct())
    assert influence.block_names == [""]
    assert influence.n_parameters == setting.theta.size


def test_the_plugin_imports_no_scikit_learn():
    program = "import sys, influence_sklearn.plugin; print('sklearn' in sys.modules)"
    assert run(program).strip() == "False"


def test_without_scikit_learn_the_extra_is_named():
    program = """
import sys
sys.modules["sklearn"] = None
import influence_sklearn
from influence_core.errors import BackendImportError
for name in influence_sklearn.__all__:
    try:
        getattr(influence_sklearn, name)
    except BackendImportError as error:
        print(name, error)
    else:
        print(name, "loads")
"""
    lines = run(program).splitlines()
    assert "Weighted loads" in lines
    missing = [line for line in lines if 'pip install "influence-core[sklearn]"' in line]
    assert {line.split()[0] for line in missing} == {
        "SklearnProblem",
        "influences",
        "leave_one_out",
    }


def test_public_names():
    assert set(influence_sklearn.__all__) <= set(dir(influence_sklearn))
    for name in influence_sklearn.__all__:
        assert getattr(influence_sklearn, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'influence'"):
        _ = influence_sklearn.influence
