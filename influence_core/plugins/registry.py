"""Finds the backend for a model among the plug-ins that are installed.

Entry points are loaded at the first look-up, never when `influence_core` is imported. A plug-in
that is broken is skipped with a warning, and its reason is kept for the message that says why a
model found no backend.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence

from influence_core.errors import (
    BackendConflictError,
    BackendNotFoundError,
    PluginError,
    PluginWarning,
)
from influence_core.plugins.loading import Claim, Skip, declared, dotted_name, installed
from influence_core.plugins.spec import GROUP, BackendSpec


class Registry:
    """The backends of the installed plug-ins, and those that were registered by hand.

    The first look-up loads the plug-ins; threads that come meanwhile wait.
    """

    def __init__(self) -> None:
        # Re-entrant: a plug-in may look a backend up while it is being imported.
        self._lock = threading.RLock()
        self._loaded = False
        self._claims: tuple[Claim, ...] = ()
        self._skips: tuple[Skip, ...] = ()

    def for_model(self, model: object) -> BackendSpec:
        """Return the backend that serves the nearest class in the model's MRO.

        Args:
            model: an instance; only the names of its type and its bases are looked at.

        Raises:
            BackendNotFoundError: no usable backend serves the type or a base of it.
            BackendConflictError: two backends serve that class.

        Warns:
            PluginWarning: a plug-in was skipped (once), or one that serves a nearer class was.
        """
        self._load()
        bases = [dotted_name(cls) for cls in type(model).__mro__]
        for position, base in enumerate(bases):
            claims = _distinct(c for c in self._claims if base in c.spec.model_types)
            if len(claims) > 1:
                raise _type_conflict(bases[0], base, claims)
            if claims:
                self._warn_of_nearer(bases[:position], claims[0])
                return claims[0].spec
        raise self._nothing_for(model, bases)

    def named(self, name: str) -> BackendSpec:
        """Return the backend of that name, whatever model types it serves.

        Raises:
            BackendNotFoundError: no usable backend has the name.
            BackendConflictError: two different backends have it.

        Warns:
            PluginWarning: a plug-in was skipped (once).
        """
        self._load()
        claims = _distinct(c for c in self._claims if c.spec.name == name)
        if len(claims) > 1:
            raise BackendConflictError(
                f"`backend={name!r}`: one backend must have this name; it is the name of "
                f"{_listed(claims)}. Uninstall (or `unregister`) all but one."
            )
        if not claims:
            raise self._nothing_named(name)
        return claims[0].spec

    def names(self) -> tuple[str, ...]:
        """Return the names that `backend=` accepts, sorted.

        A backend whose own library is missing is among them: it answers with what to install.
        """
        self._load()
        return tuple(sorted({claim.spec.name for claim in self._claims}))

    def register(self, plugin: object) -> None:
        """Add a plug-in that no distribution declares, for a notebook or a test.

        Args:
            plugin: a module or an object with the hook `influence_backends`.

        Raises:
            PluginError: the plug-in does not keep to the interface; nothing is added.
        """
        name = getattr(plugin, "__name__", repr(plugin))
        try:
            found = declared(plugin, f"the registered plug-in `{name}`")
        except PluginError as error:
            raise PluginError(f"`register(plugin)`: `{name}` cannot be used, {error}.") from error
        for skip in found:
            if isinstance(skip, Skip):
                raise PluginError(f"`register(plugin)`: `{name}` cannot be used, {skip.reason}.")
        with self._lock:
            self._add(found)

    def unregister(self, plugin: object) -> None:
        """Forget every backend that `plugin` declared."""
        with self._lock:
            self._claims = tuple(claim for claim in self._claims if claim.plugin is not plugin)

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            # Set first, or a plug-in that looks a backend up while it is imported would recurse.
            self._loaded = True
            try:
                self._add(installed())
            except BaseException:
                # Interrupted from the keyboard, say: the next look-up begins anew.
                self._loaded = False
                raise
        # Last, because a filter may turn the first warning into an exception.
        for skip in self._skips:
            warnings.warn(f"A plug-in of `{GROUP}` was skipped, {skip}", PluginWarning, 4)

    def _add(self, found: Iterable[Claim | Skip]) -> None:
        for one in found:
            if isinstance(one, Skip):
                self._skips += (one,)
            else:
                self._claims += (one,)

    def _skipped_for(self, bases: Iterable[str]) -> list[Skip]:
        names = set(bases)
        return [s for s in self._skips if s.spec and names.intersection(s.spec.model_types)]

    def _warn_of_nearer(self, nearer: Sequence[str], chosen: Claim) -> None:
        for skip in self._skipped_for(nearer):
            warnings.warn(
                f"`backend=None` chose {chosen} for a model of type `{nearer[0]}`; one that "
                f"serves a nearer class was skipped, {skip}",
                PluginWarning,
                4,
            )

    def _nothing_for(self, model: object, bases: Sequence[str]) -> BackendNotFoundError:
        if isinstance(model, type):
            got, remedy = f"the class `{dotted_name(model)}` itself", "pass an instance of it"
        else:
            got, remedy = f"`{bases[0]}`", "install a distribution with a backend for this type"
        return BackendNotFoundError(
            "\n".join(
                [
                    f"`backend=None`: an installed backend must serve the model's type; got {got}.",
                    *(f"One would, but was skipped: {skip}" for skip in self._skipped_for(bases)),
                    *self._inventory(),
                    f"Remedy: {remedy}, choose an installed one with `backend=`, or write one "
                    "(docs/writing-a-backend.md).",
                ]
            )
        )

    def _nothing_named(self, name: str) -> BackendNotFoundError:
        skips = [skip for skip in self._skips if skip.spec and skip.spec.name == name]
        return BackendNotFoundError(
            "\n".join(
                [
                    f"`backend={name!r}`: the name must be that of an installed backend.",
                    *(f"It was skipped: {skip}" for skip in skips),
                    *self._inventory(),
                    "Remedy: write an installed name, or install the distribution that has it.",
                ]
            )
        )

    def _inventory(self) -> list[str]:
        """Say what is installed and what was skipped, one line each."""
        lines = [f"Installed: {_described(claim)}" for claim in _distinct(self._claims)] or [
            f"Installed: none, not even the entry points of influence-core in `{GROUP}`; does it "
            "run from a source tree? `pip install -e .` declares them."
        ]
        return lines + [f"Skipped: {skip}" for skip in self._skips]


_DEFAULT = Registry()


def default_registry() -> Registry:
    """Return the registry that `influence_core.Influence` asks."""
    return _DEFAULT


def find_backend(model: object, backend: str | BackendSpec | None = None) -> BackendSpec:
    """Return the backend that `backend=` chooses for `model`.

    Args:
        model: an instance; only the names of its type and its bases are looked at.
        backend: a name, a specification (returned as it is), or None for the backend that serves
            the model's type.

    Raises:
        BackendNotFoundError: there is none.
        BackendConflictError: there are two.

    Warns:
        PluginWarning: a plug-in was skipped.
    """
    if isinstance(backend, BackendSpec):
        return backend
    return _DEFAULT.for_model(model) if backend is None else _DEFAULT.named(backend)


def _distinct(claims: Iterable[Claim]) -> list[Claim]:
    # Equal specifications name one factory: a cell run twice, a distribution under two names.
    return list({claim.spec: claim for claim in claims}.values())


def _type_conflict(model: str, base: str, claims: Sequence[Claim]) -> BackendConflictError:
    names = {claim.spec.name for claim in claims}
    choices = " or ".join(f"`backend={name!r}`" for name in sorted(names))
    remedy = f"Choose with {choices}, or uninstall" if len(names) > 1 else "Uninstall"
    return BackendConflictError(
        f"`backend=None`: one backend must serve `{base}`, by which a model of type `{model}` was "
        f"matched; it is claimed by {_listed(claims)}. {remedy} all but one."
    )


def _described(claim: Claim) -> str:
    library = f"; its library: {claim.spec.requires}" if claim.spec.requires else ""
    return f"{claim}, for {', '.join(claim.spec.model_types)}{library}"


def _listed(claims: Iterable[Claim]) -> str:
    return " and ".join(str(claim) for claim in claims)
