"""The conformance kit: what a backend must pass, with oracles that know nothing of it.

`BackendConformance` holds the checks, `Subject` is what they are run on, `FiniteDifferences` and
`ClosedForm` are the oracles. None of it needs pytest to be imported.
"""

from influence_core.testing.conformance.differences import FiniteDifferences
from influence_core.testing.conformance.kit import BackendConformance
from influence_core.testing.conformance.oracles import ClosedForm, Derivatives, Oracle
from influence_core.testing.conformance.subject import Subject

__all__ = [
    "BackendConformance",
    "ClosedForm",
    "Derivatives",
    "FiniteDifferences",
    "Oracle",
    "Subject",
]
