"""What a stranger writes: a class with the fixture `subject`, and a `Subject` in it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from namespaces import NUMPY, READ_ONLY, STRICT
from subjects import POINTS, cross_entropy, make_data, make_model, make_subject, outputs, squared

from influence_core.errors import DataError
from influence_core.testing import BackendConformance, ClosedForm, LeastSquares, Subject


def test_a_class_without_a_subject_is_refused():
    with pytest.raises(TypeError, match=r"class TestMine\(.* must have the fixture `subject`.*non"):
        type("TestMine", (BackendConformance,), {})


def test_a_subject_may_be_inherited():
    def subject():
        raise NotImplementedError

    base = type("Base", (BackendConformance,), {"subject": staticmethod(subject)})
    assert type("TestMine", (base,), {})()


def test_a_forgotten_subject_stops_pytest(tmp_path):
    code = "class TestMine(BackendConformance):\n    pass\n"
    path = tmp_path / "test_mine.py"
    path.write_text(f"from influence_core.testing import BackendConformance\n\n\n{code}")
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, path]
    found = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == pytest.ExitCode.INTERRUPTED
    assert "must have the fixture `subject`" in found.stdout


def test_a_subject_needs_points():
    x, y = make_data("squared")
    oracle = ClosedForm(lambda p: LeastSquares(dict(p)))
    with pytest.raises(DataError, match=r"needs 5 points or more.*; got 4"):
        Subject(LeastSquares.random(3, 2), (x[:4], y[:4]), oracle)


def test_a_subject_remembers_how_things_were():
    subject = make_subject("logistic")
    before = subject.values["weight"].copy()
    subject.model.parameters["weight"][...] = 0.0
    subject.data[0][...] = 0.0
    np.testing.assert_array_equal(subject.values["weight"], before)
    np.testing.assert_array_equal(subject.host_data[0], make_data("cross_entropy")[0])
    assert np.all(subject.read_parameters()["weight"] == 0.0)
    losses = cross_entropy(np.zeros((POINTS, 2)), subject.host_data[1])
    np.testing.assert_allclose(losses, np.log(2))


def test_losses_alone_are_an_oracle():
    losses = Subject(
        make_model("least_squares"),
        make_data("squared"),
        lambda p, x, y: squared(outputs(p, x), y),
    )
    want = make_subject("least_squares").truth
    np.testing.assert_array_equal(losses.truth.hessians, want.hessians)
    assert losses.truth.gauss_newton is None


@pytest.mark.parametrize("library", [NUMPY, STRICT], ids=str)
def test_parameters_are_written_into_the_arrays(library):
    subject = make_subject("logistic", library)
    new = {name: value + 1 for name, value in subject.values.items()}
    assert subject.write_parameters(new)
    for name, value in subject.read_parameters().items():
        np.testing.assert_array_equal(value, new[name])


def test_arrays_that_cannot_be_written_into_are_told_of():
    model = LeastSquares({"weight": READ_ONLY.array(np.ones((2, 3)))})
    subject = Subject(model, make_data("squared"), ClosedForm(lambda p: LeastSquares(dict(p))))
    assert not subject.write_parameters({"weight": np.zeros((2, 3))})
    np.testing.assert_array_equal(model.parameters["weight"], 1.0)


def test_parameters_that_are_copies_are_told_of():
    model = make_model("least_squares")
    subject = make_subject(
        "least_squares",
        model=model,
        parameters=lambda: {name: a.copy() for name, a in model.parameters.items()},
    )
    assert not subject.write_parameters({name: a + 1 for name, a in subject.values.items()})


def test_parameters_are_assigned():
    given = []
    subject = make_subject("least_squares", assign=given.append)
    assert subject.write_parameters(subject.values)
    assert given == [subject.values]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(mode="train"),
        lambda state: state["buffers"].update(more=np.zeros(1)),
        lambda state: state["buffers"].update(mean=np.array([np.nan, 2.0])),
        lambda state: state["buffers"].update(mean=np.array([np.nan, 1.0, 1.0])),
        lambda state: state["hooks"].append("one"),
        lambda state: state.update(grad=np.zeros(2)),
    ],
    ids=["word", "name", "number", "shape", "length", "none"],
)
def test_a_change_of_the_state_is_seen(change):
    state = {
        "mode": "eval",
        "buffers": {"mean": np.array([np.nan, 1.0])},
        "hooks": [],
        "grad": None,
    }
    subject = make_subject("least_squares", state=lambda: state)
    checks = type("Checks", (BackendConformance,), {"subject": None})()
    checks.test_the_model_is_left_alone(subject)
    change(state)
    with pytest.raises(AssertionError, match="leave the user's model as it is"):
        checks.test_the_model_is_left_alone(subject)


def test_the_kit_is_imported_without_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from influence_core.testing import BackendConformance, Subject\n"
        "assert not {'_pytest', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_prints_the_test_of_the_plug_in():
    root = Path(__file__).parents[2]
    code = (root / "examples/plugin/tests/test_conformance.py").read_text(encoding="utf-8")
    _, _, code = code.partition("\n\n")
    page = (root / "docs/writing-a-backend.md").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page
    assert "twelve lines with the imports" in page
    assert len([line for line in code.splitlines() if line]) == 12
