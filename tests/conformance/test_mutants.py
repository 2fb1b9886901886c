"""The kit catches backends that break a promise, and lets those pass that keep them all."""

import importlib.util

import families
import pytest
from mutants import Complete, Watched
from subjects import HIDDEN, INPUTS, OUTPUTS, make_subject

from influence_core.testing import BackendConformance

CHECKS = sorted(
    name.removeprefix("test_") for name in dir(BackendConformance) if name.startswith("test_")
)


def below(kind):
    return [mutant for each in kind.__subclasses__() for mutant in (each, *below(each))]


MUTANTS = [mutant for mutant in below(Complete) if mutant is not families.Circumstances]


class Checks(BackendConformance):
    """Called one by one."""

    @staticmethod
    def subject():
        raise NotImplementedError


class Known:
    """An oracle that was asked before."""

    def __init__(self, truth):
        self.truth = truth

    def derivatives(self, parameters, x, y):
        return self.truth


@pytest.fixture(scope="module")
def oracle():
    return Known(make_subject("tanh_squared").truth)


def failure(check, mutant, oracle):
    """What the check says of a mutant; None where it finds no fault."""
    like = mutant.library.array(0.0)
    model = Watched.random(INPUTS, HIDDEN, OUTPUTS, seed=1, like=like)
    subject = make_subject(
        "tanh_squared",
        mutant.library,
        mutant.spec(),
        oracle=oracle,
        model=model,
        state=lambda: model.state,
    )
    try:
        getattr(Checks(), f"test_{check}")(subject)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("check", CHECKS)
def test_a_correct_backend_passes(oracle, check):
    assert failure(check, Complete, oracle) is None


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        pytest.param(mutant, check, id=f"{mutant.__name__}-{check}")
        for mutant in MUTANTS
        for check in mutant.caught
    ],
)
def test_a_mutant_is_caught(oracle, mutant, check):
    if importlib.util.find_spec(mutant.library.module) is None:
        pytest.skip(f"{mutant.library.module} is not installed")
    error = failure(check, mutant, oracle)
    assert type(error) is mutant.raises, error


def test_every_check_can_fail():
    assert sorted({check for mutant in MUTANTS for check in mutant.caught}) == CHECKS


def test_every_mutant_is_told_what_catches_it():
    assert [mutant for mutant in MUTANTS if not mutant.caught] == []


@pytest.mark.parametrize(
    ("mutant", "check", "words"),
    [
        ("SumsTheHessian", "hessian_product", "Every number is 7 times what it should be"),
        ("AveragesGradients", "gradients", "Every number is 0.142857 times"),
        ("TransposesWeights", "gradients", "row-major inside a parameter"),
        ("IgnoresWeights", "weights_enter_means_only", "the weighted mean where they have weights"),
        ("ReturnsItsBuffer", "answers_stay_as_they_were", "return fresh memory, no buffer"),
        ("KeepsTheGraph", "gradients", "Detach it"),
        ("AnswersOnAnotherDevice", "gradients", "in the device of `problem.reference`"),
        ("HoldsALock", "problems_pickle", "Keep locks, lambdas"),
        ("TakesAnything", "no_points_are_refused", "It raised nothing"),
        ("AnswersForAllParameters", "hessian_product", "restricted to `names` on both sides"),
    ],
)
def test_messages_say_what_to_do(oracle, mutant, check, words):
    (found,) = [each for each in MUTANTS if each.__name__ == mutant]
    if importlib.util.find_spec(found.library.module) is None:
        pytest.skip(f"{found.library.module} is not installed")
    error = failure(check, found, oracle)
    assert isinstance(error, AssertionError)
    assert words in str(error)
