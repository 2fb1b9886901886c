"""From entry points to backends: one plug-in at a time, so that a broken one harms no other."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import pluggy

from influence_core.errors import PluginError
from influence_core.plugins import spec as interface
from influence_core.plugins.spec import API_VERSION, GROUP, BackendSpec


@dataclass(frozen=True)
class Claim:
    """A backend that can be chosen, and who declared it."""

    spec: BackendSpec
    source: str
    plugin: object

    def __str__(self) -> str:
        return f"{self.spec.name!r} of {self.source}"


@dataclass(frozen=True)
class Skip:
    """A plug-in, or one backend of it, that cannot be used, and why.

    `spec` is known only where the plug-in got as far as declaring it.
    """

    source: str
    reason: str
    spec: BackendSpec | None = None

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def installed() -> list[Claim | Skip]:
    """Load every entry point of the group; raises for none of them."""
    entries = importlib.metadata.entry_points(group=GROUP)
    return [found for entry in entries for found in _load(entry)]


def declared(plugin: object, source: str) -> list[Claim | Skip]:
    """Return the backends of a plug-in.

    Those written for another version of the plug-in API are skipped.

    Raises:
        PluginError: the hook is missing, misspelt, raises, or returns something else.
    """
    return [
        Claim(spec, source, plugin)
        if spec.api_version == API_VERSION
        else Skip(source, _wrong_version(spec), spec)
        for spec in _specs(plugin)
    ]


def dotted_name(cls: type) -> str:
    """Return the name by which a `BackendSpec` refers to a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _load(entry: importlib.metadata.EntryPoint) -> list[Claim | Skip]:
    source = f"entry point `{entry.name} = {entry.value}`"
    if entry.dist:
        source = f"{entry.dist.name} {entry.dist.version} ({source})"
    try:
        plugin = entry.load()
    except Exception as error:
        return [Skip(source, f"importing `{entry.value}` raised {_shown(error)}")]
    try:
        return declared(plugin, source)
    except PluginError as error:
        return [Skip(source, str(error))]


def _specs(plugin: object) -> list[BackendSpec]:
    # A manager for each plug-in: in a shared one, `check_pending` would blame a misspelt hook of
    # one plug-in on whichever is checked, and a hook that raises would end the call for all.
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(interface)
    try:
        manager.register(plugin)
        manager.check_pending()
    except Exception as error:
        raise PluginError(
            f"its hooks must be those of `{GROUP}`, only `influence_backends()`: {_shown(error)}"
        ) from error
    hook = manager.hook.influence_backends
    if not hook.get_hookimpls():
        raise PluginError(
            "it has no hook `influence_backends()`; decorate one with "
            "`influence_core.plugins.hookimpl`"
        )
    try:
        answers = hook()
    except Exception as error:
        raise PluginError(f"its `influence_backends()` raised {_shown(error)}") from error
    return _checked(answers[0] if answers else None)


def _checked(answer: object) -> list[BackendSpec]:
    answers: list[object] = answer if isinstance(answer, list) else [answer]
    specs = [one for one in answers if isinstance(one, BackendSpec)]
    if len(specs) < len(answers):
        raise PluginError(
            "its `influence_backends()` must return a `BackendSpec` or a list of them; got "
            f"{answer!r}"
        )
    return specs


def _wrong_version(spec: BackendSpec) -> str:
    behind = "that plug-in" if spec.api_version < API_VERSION else "influence-core"
    return (
        f"backend {spec.name!r} was written for version {spec.api_version} of the plug-in API, "
        f"this influence-core has version {API_VERSION}; upgrade {behind}"
    )


def _shown(error: BaseException) -> str:
    # On one line: reasons are listed.
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
