"""The plug-in interface: one hook, and the light data that it returns.

A plug-in module imports nothing but `influence_core.plugins`. It says which model types it serves
by their dotted names, so that recognising a model imports no framework.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pluggy

from influence_core.errors import BackendImportError, PluginError
from influence_core.problem import Problem

GROUP = "influence_core.backends"
"""The entry-point group, and the name of the pluggy project."""

API_VERSION = 1
"""Version of the plug-in API: the hook, `BackendSpec` and `influence_core.problem.Problem`."""

ProblemFactory: TypeAlias = Callable[..., Problem]
"""Called as `factory(model, loss, *, device=None, max_memory=None, **options)`."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class BackendSpec:
    """What a plug-in says about one backend.

    Args:
        name: what a user writes as `backend=`.
        factory: ``"module:attribute"`` of a `ProblemFactory`, imported when a model needs it.
        model_types: dotted names, ``f"{cls.__module__}.{cls.__qualname__}"``, of the classes whose
            instances the backend serves. Subclasses are served too.
        api_version: the `API_VERSION` that the plug-in was written for. Write the number, not the
            constant. It stays 1 for a plug-in that says nothing, whatever the version of the core.
        requires: what installs the library that the backend stands on, such as
            ``'pip install "influence-core[torch]"'``.

    Raises:
        PluginError: a field has the wrong type or form.
    """

    name: str
    factory: str
    model_types: tuple[str, ...]
    api_version: int = 1
    requires: str | None = None

    def __post_init__(self) -> None:
        self._expect("name", _is_text(self.name), "a non-empty string")
        self._expect(
            "factory",
            _is_text(self.factory) and _FACTORY.fullmatch(self.factory) is not None,
            'a string "module:attribute"',
        )
        self._expect(
            "model_types",
            _is_names(self.model_types),
            'a non-empty tuple of dotted class names, such as ("torch.nn.modules.module.Module",)',
        )
        self._expect("api_version", type(self.api_version) is int, "an integer")
        self._expect(
            "requires", self.requires is None or _is_text(self.requires), "None or a command"
        )

    def _expect(self, field: str, holds: bool, rule: str) -> None:
        if not holds:
            raise PluginError(
                f"`BackendSpec({field}=...)` must be {rule}; got {getattr(self, field)!r}."
            )

    def load(self) -> ProblemFactory:
        """Import the factory and return it.

        Raises:
            BackendImportError: a library that the factory imports is not installed.
            PluginError: `factory` names nothing that can be called.
        """
        module, attribute = self.factory.split(":")
        try:
            factory = getattr(importlib.import_module(module), attribute, None)
        except BackendImportError:
            raise
        except ImportError as error:
            raise BackendImportError(self._missing_library(error), name=error.name) from error
        if not callable(factory):
            raise PluginError(
                f"`BackendSpec({self.name!r}, factory={self.factory!r})` must name something to "
                f"call; it names {factory!r}. Update the distribution of that backend."
            )
        return factory  # type: ignore[no-any-return]

    def _missing_library(self, error: ImportError) -> str:
        remedy = self.requires or "see the documentation of that backend"
        return (
            f"`backend={self.name!r}` stands on a library that must be importable; importing "
            f"`{self.factory}` raised {type(error).__name__}: {error}. To install it: {remedy}"
        )


@hookspec
def influence_backends() -> BackendSpec | list[BackendSpec]:  # type: ignore[empty-body]
    """Return the backends that this plug-in offers.

    A whole plug-in, `influence_acme/plugin.py`::

        from influence_core.plugins import BackendSpec, hookimpl


        @hookimpl
        def influence_backends():
            return BackendSpec(
                name="acme",
                factory="influence_acme.problem:AcmeProblem",
                model_types=("acme.models.Model",),
                api_version=1,
                requires="pip install acme",
            )

    and the lines of its `pyproject.toml` by which it is found::

        [project.entry-points."influence_core.backends"]
        acme = "influence_acme.plugin"

    `AcmeProblem(model, loss, *, device=None, max_memory=None, **options)` implements
    `influence_core.problem.Problem`. It is imported when the first `acme.models.Model` arrives.

    Returns:
        One specification, or a list of them.
    """


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_names(value: Any) -> bool:
    if not isinstance(value, tuple) or not value:
        return False
    return all(_is_text(name) and "." in name for name in value)
