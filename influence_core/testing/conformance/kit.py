"""All checks in one class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from influence_core.testing.conformance.ability_checks import AbilityChecks
from influence_core.testing.conformance.behaviour_checks import BehaviourChecks
from influence_core.testing.conformance.curvature_checks import GaussNewtonChecks, HessianChecks
from influence_core.testing.conformance.gradient_checks import GradientChecks
from influence_core.testing.conformance.influence_checks import InfluenceChecks
from influence_core.testing.conformance.layer_checks import LayerChecks
from influence_core.testing.conformance.mixed_checks import MixedChecks
from influence_core.testing.conformance.point_checks import PointChecks
from influence_core.testing.conformance.problem_checks import ProblemChecks
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.twin_checks import TwinChecks


class BackendConformance(
    ProblemChecks,
    PointChecks,
    GradientChecks,
    HessianChecks,
    GaussNewtonChecks,
    MixedChecks,
    LayerChecks,
    AbilityChecks,
    TwinChecks,
    BehaviourChecks,
    InfluenceChecks,
    ABC,
):
    """What every backend must pass: derive a class that has the fixture `subject`.

    Every `test_` method is a check of one promise of `influence_core.problem`. It takes a `Subject`
    and raises `AssertionError` with what the backend should have done, or `unittest.SkipTest` where
    the backend does not offer the protocol. pytest runs them as tests::

        import pytest
        from influence_core.testing import BackendConformance, Subject


        class TestConformance(BackendConformance):
            @pytest.fixture(scope="class")
            @staticmethod
            def subject():
                model = ...  # of the kind that your backend serves
                return Subject(model, (x, y), losses)  # the losses once more, in NumPy

    A fixture with `params` examines several models. Without pytest, `subject` is a method like any
    other; call the checks one by one.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse a class without a subject.

        Raises:
            TypeError: there is none. pytest itself would pass an abstract class by in silence.
        """
        super().__init_subclass__(**keywords)
        if getattr(cls.subject, "__isabstractmethod__", False):
            raise TypeError(
                f"`class {cls.__name__}(BackendConformance)` must have the fixture `subject`, "
                "which returns what is examined; it has none. Define `subject()` in the class, "
                'under `@pytest.fixture(scope="class")` and `@staticmethod`, to return an '
                "`influence_core.testing.Subject`."
            )

    @staticmethod
    @abstractmethod
    def subject() -> Subject:
        """Return what is examined; the fixture of the derived class."""
