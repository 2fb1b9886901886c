"""Settings for fitted models of the closed forms, and what a loaded one is held to.

before = CASE.fitted(SETTING)
before.save(place)
same(before, load_again(place), SETTING)
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from methods import BY_NAME, Case
from problems import Setting

from influence_core import Influence, load
from influence_core.arrays import is_array
from influence_core.curvature import Curvature
from influence_core.restoring import maker_of
from influence_core.storage.files import RECORD
from influence_core.storage.hashes import hash_json
from influence_core.testing import BACKEND

GGN = "generalized_gauss_newton"
BLOCKS = {"last": ["output.weight", "output.bias"], "first": ["hidden.weight"]}

READS_DATA = ("cg", "nystroem cg", "lissa", "harmonic mean")


def fit(case: Case, setting: Setting, **options: Any) -> Influence:
    """Return a fitted model for which `C + λI` is positive definite."""
    return case.fitted(setting, **{"regularization": 0.1, "second_order_mode": GGN, **options})


def load_again(
    place: Path, setting: Setting, case: Case | None = None, data: Any = None, **options: Any
) -> Any:
    """Load for the setting's own model; with the case's own batches unless `data` is another."""
    if case is not None and data is None:
        data = setting.loader(case.batch_size)
    return load(place, setting.model, None, data, backend=BACKEND, **options)


def calls(setting: Setting) -> dict[str, Callable[[Influence], Any]]:
    """Every call that answers with arrays, by its name."""
    test, train = setting.test(), setting.train
    return {
        "influences": lambda i: i.influences(*test, *train),
        "perturbed": lambda i: i.influences(*test, *train, mode="perturbation"),
        "blocks": lambda i: np.stack(
            [host(setting, share) for share in i.influences_by_block(*test, *train).values()]
        ),
        "factors": lambda i: i.influence_factors(*train),
        "path": lambda i: i.influences_over([1e-2, 1.0], *test, *train),
        "self": lambda i: i.self_influences(setting.loader(4)),
        "removal": lambda i: i.removal_effects(*test, *train, leverage=True),
        "norm": lambda i: i.gradient_norm,
        "other λ": lambda i: i.with_regularization(0.5).influences(*test, *train),
        "norm at it": lambda i: i.gradient_norm,
    }


def host(setting: Setting, answer: Any) -> Any:
    """Return an answer as numbers of the host."""
    return answer if isinstance(answer, np.ndarray | float) else setting.library.host(answer)


def same(before: Influence, after: Influence, setting: Setting, *names: str) -> None:
    """Assert that two fitted models answer alike, to the last bit, and report alike."""
    for name, call in calls(setting).items():
        if names and name not in names:
            continue
        was, now = (host(setting, call(model)) for model in (before, after))
        assert np.array_equal(was, now), name
        assert str(before.report) == str(after.report), name


def arrays(value: Any) -> Iterator[Any]:
    """Yield the arrays of fitted state, but not those of its curvature."""
    if is_array(value):
        yield value
    elif isinstance(value, Mapping):
        yield from arrays(tuple(value.values()))
    elif isinstance(value, tuple | list):
        yield from itertools.chain.from_iterable(map(arrays, value))
    elif is_dataclass(value) and not isinstance(value, Curvature):
        for each in fields(value):
            if maker_of(each.metadata) is None:
                yield from arrays(getattr(value, each.name))


def strides(array: Any) -> list[int]:
    """Return the strides of the axes that are gone along, as the library calls them."""
    if not hasattr(array, "stride") and not hasattr(array, "strides"):
        return []
    steps = array.stride() if hasattr(array, "stride") else array.strides
    return [step for step, size in zip(steps, array.shape, strict=True) if size > 1]


def same_memory(before: Influence, after: Influence) -> None:
    """Assert that the arrays lie in memory alike: sums over them then round alike."""
    pairs = zip(arrays(before._fitted.inverses), arrays(after._fitted.inverses), strict=True)
    for was, now in pairs:
        assert (was.dtype, was.shape, strides(was)) == (now.dtype, now.shape, strides(now))


def case(name: str) -> Case:
    """Return a case of `methods.py`."""
    return BY_NAME[name]


def record_of(place: Path) -> dict[str, Any]:
    """Return what the JSON says."""
    found: dict[str, Any] = json.loads((place / RECORD).read_text(encoding="utf-8"))
    return found


def rewrite(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON, and its hash with it, as somebody might who wants to deceive."""
    record = record_of(place)
    del record["sha256"]
    change(record)
    record["sha256"] = hash_json(record)
    (place / RECORD).write_text(json.dumps(record), encoding="utf-8")
