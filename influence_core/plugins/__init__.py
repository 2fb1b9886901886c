"""Plug-ins: how a backend says which models it serves, and how it is found.

A plug-in author needs `BackendSpec` and `hookimpl`; `influence_backends` shows a whole plug-in.
"""

from influence_core.plugins.lazy import lazy_names
from influence_core.plugins.registry import Registry, default_registry, find_backend
from influence_core.plugins.spec import (
    API_VERSION,
    GROUP,
    BackendSpec,
    ProblemFactory,
    hookimpl,
    hookspec,
    influence_backends,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "BackendSpec",
    "ProblemFactory",
    "Registry",
    "default_registry",
    "find_backend",
    "hookimpl",
    "hookspec",
    "influence_backends",
    "lazy_names",
]
