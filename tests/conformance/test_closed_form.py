"""The closed forms are a backend that conforms, on every array library."""

import pytest
from namespaces import LIBRARIES, NUMPY
from subjects import INPUTS, KINDS, make_subject

from influence_core.testing import BackendConformance

# every kind on NumPy, and on every other library two that differ in all they can
CASES = [
    *(pytest.param((kind, NUMPY, (INPUTS,)), id=kind) for kind in KINDS),
    pytest.param(("tanh_squared", NUMPY, (1, INPUTS)), id="images"),
    *(
        pytest.param((kind, *other.values, (INPUTS,)), marks=other.marks, id=f"{kind}-{other.id}")
        for other in LIBRARIES
        if other.id != NUMPY.name
        for kind in ("least_squares", "tanh_cross_entropy")
    ),
]


class TestConformance(BackendConformance):
    @pytest.fixture(scope="class", params=CASES)
    @staticmethod
    def subject(request):
        kind, library, shape = request.param
        return make_subject(kind, library, shape=shape)
