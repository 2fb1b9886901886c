"""The classes have the parameters of torch's, with `apply, params` in the place of the model."""

import enum
import importlib.util
import inspect
import json
from pathlib import Path

import pytest

import influence_jax

SPEC = json.loads((Path(__file__).parents[1] / "torch" / "signatures.json").read_text())
CLASSES = [name for name in influence_jax.__all__ if name.endswith("Influence")]
DOCUMENTED = [name for name in SPEC if name in CLASSES]


def shown(parameter):
    if parameter.default is parameter.empty:
        return parameter.name
    default = parameter.default
    if isinstance(default, enum.Enum):
        default = f"{type(default).__name__}.{default.name}"
    return f"{parameter.name}={default}"


def parameters(function):
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def test_the_classes():
    assert len(CLASSES) == 7
    assert {"DirectInfluence", "CgInfluence"} <= set(DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented(name):
    found = [shown(p) for p in parameters(getattr(influence_jax, name))]
    documented = SPEC[name]["init"]
    assert found[:2] == ["apply", "params"]
    assert found[2 : len(documented) + 1] == documented[1:]
    for method, wanted in SPEC[name]["methods"].items():
        got = parameters(getattr(getattr(influence_jax, name), method))
        assert [shown(p) for p in got[: len(wanted)]] == wanted
    for attribute in SPEC[name]["properties"]:
        assert isinstance(inspect.getattr_static(getattr(influence_jax, name), attribute), property)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize("name", CLASSES)
def test_as_in_torch(name):
    import influence_torch

    ours, theirs = getattr(influence_jax, name), getattr(influence_torch, name)
    model, *wanted = parameters(theirs)
    assert model.name == "model"
    wanted = [(shown(p), p.kind) for p in wanted if p.name != "forward"]
    assert [(shown(p), p.kind) for p in parameters(ours)[2:]] == wanted
    methods = [n for n, f in vars(theirs).items() if callable(f) and not n.startswith("_")]
    for method in methods:
        pair = (parameters(getattr(cls, method)) for cls in (ours, theirs))
        assert len({tuple(map(shown, each)) for each in pair}) == 1


@pytest.mark.parametrize("name", influence_jax.__all__)
def test_public_names(name):
    assert inspect.getdoc(getattr(influence_jax, name))
    assert name in dir(influence_jax)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        influence_jax.Nonsense  # noqa: B018
