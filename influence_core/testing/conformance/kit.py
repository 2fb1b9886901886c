"""All checks in one class."""

from __future__ import annotations

from influence_core.testing.conformance.ability_checks import AbilityChecks
from influence_core.testing.conformance.behaviour_checks import BehaviourChecks
from influence_core.testing.conformance.curvature_checks import GaussNewtonChecks, HessianChecks
from influence_core.testing.conformance.gradient_checks import GradientChecks
from influence_core.testing.conformance.influence_checks import InfluenceChecks
from influence_core.testing.conformance.layer_checks import LayerChecks
from influence_core.testing.conformance.mixed_checks import MixedChecks
from influence_core.testing.conformance.problem_checks import ProblemChecks


class BackendConformance(
    ProblemChecks,
    GradientChecks,
    HessianChecks,
    GaussNewtonChecks,
    MixedChecks,
    LayerChecks,
    AbilityChecks,
    BehaviourChecks,
    InfluenceChecks,
):
    """What every backend must pass: derive a class, and supply the fixture `subject`.

    Every method is a check of one promise of `influence_core.problem`. It takes a `Subject` and
    raises `AssertionError` with what the backend should have done, or `unittest.SkipTest` where the
    backend does not offer the protocol. pytest runs them as tests::

        import pytest
        from influence_core.testing import BackendConformance, FiniteDifferences, Subject


        @pytest.fixture(scope="module")
        def subject():
            model = ...  # of the kind that your backend serves
            oracle = FiniteDifferences(losses)  # the losses once more, in NumPy
            return Subject(model, loss, (x, y), lambda: model.parameters, oracle)


        class TestConformance(BackendConformance):
            pass

    A fixture with `params` examines several models. Without pytest, call the methods one by one.
    """
