"""The documented API: names, order and defaults as in `signatures.json`, values of the enums."""

import enum
import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import influence_torch
from influence_core.errors import OptionError
from influence_torch import (
    BlockMode,
    CgInfluence,
    DirectInfluence,
    InfluenceMode,
    NotFittedException,
    SecondOrderMode,
    UnsupportedInfluenceModeException,
)

SPEC = json.loads(Path(__file__).with_name("signatures.json").read_text())
CALLABLES = [(name, "__init__", entry["init"]) for name, entry in SPEC.items()] + [
    (name, method, wanted)
    for name, entry in SPEC.items()
    for method, wanted in entry.get("methods", {}).items()
]
PROPERTIES = [(name, attr) for name, entry in SPEC.items() for attr in entry.get("properties", [])]
SOLVERS = [DirectInfluence, CgInfluence]


def shown(parameter):
    if parameter.default is parameter.empty:
        return parameter.name
    default = parameter.default
    if isinstance(default, enum.Enum):
        default = f"{type(default).__name__}.{default.name}"
    return f"{parameter.name}={default}"


@pytest.mark.parametrize(("owner", "method", "documented"), CALLABLES)
def test_parameters(owner, method, documented):
    function = getattr(getattr(influence_torch, owner), method)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    assert [shown(p) for p in parameters[: len(documented)]] == documented
    for extra in parameters[len(documented) :]:
        assert extra.kind is extra.KEYWORD_ONLY
        assert extra.default is not extra.empty


@pytest.mark.parametrize(("owner", "attribute"), PROPERTIES)
def test_properties(owner, attribute):
    assert isinstance(inspect.getattr_static(getattr(influence_torch, owner), attribute), property)


@pytest.mark.parametrize("owner", SPEC)
def test_fit_required_is_static(owner):
    if "fit_required" in SPEC[owner].get("methods", {}):
        found = inspect.getattr_static(getattr(influence_torch, owner), "fit_required")
        assert isinstance(found, staticmethod)


@pytest.mark.parametrize("solver", SOLVERS)
def test_additions_have_the_same_names_everywhere(solver):
    parameters = inspect.signature(solver).parameters
    extra = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert extra == {"seed": 0, "max_memory": None, "array_backend": None, "forward": None}


@pytest.mark.parametrize("name", influence_torch.__all__)
def test_public_names(name):
    value = getattr(influence_torch, name)
    assert inspect.getdoc(value)
    assert name in dir(influence_torch)
    for method, function in inspect.getmembers(value, inspect.isfunction):
        assert method.startswith("_") or inspect.getdoc(function), f"{name}.{method}"


def test_everything_documented_is_offered():
    assert set(SPEC) <= set(influence_torch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        influence_torch.Nonsense  # noqa: B018


def test_enums():
    values = {kind: [m.value for m in kind] for kind in (SecondOrderMode, BlockMode, InfluenceMode)}
    assert values == {
        SecondOrderMode: ["hessian", "gauss_newton", "generalized_gauss_newton"],
        BlockMode: ["full", "layer_wise", "parameter_wise"],
        InfluenceMode: ["up", "perturbation"],
    }
    assert [m.name for m in InfluenceMode] == ["Up", "Perturbation"]
    assert all(issubclass(kind, str) for kind in values)


def test_exceptions():
    assert issubclass(NotFittedException, ValueError)
    assert issubclass(UnsupportedInfluenceModeException, ValueError)


@pytest.mark.parametrize("solver", SOLVERS)
def test_strings_serve_as_enums(solver):
    data = [(torch.eye(3), torch.ones(3, 2))]
    by_string, by_member = (
        solver(
            nn.Linear(3, 2, bias=False).requires_grad_(True),
            nn.functional.mse_loss,
            1.0,
            block_structure=structure,
            second_order_mode=mode,
        ).fit(data)
        for structure, mode in (
            ("parameter_wise", "gauss_newton"),
            (BlockMode.PARAMETER_WISE, SecondOrderMode.GAUSS_NEWTON),
        )
    )
    assert by_string.block_names == by_member.block_names == ["weight"]
    for mode in ("perturbation", InfluenceMode.Perturbation):
        assert by_string.influences(*data[0], mode=mode).shape == (3, 3, 3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("keyword", ["block_structure", "second_order_mode"])
@pytest.mark.parametrize("value", ["nonsense", "", 3, None, InfluenceMode.Up])
def test_unknown_modes(solver, keyword, value):
    with pytest.raises(OptionError, match=keyword) as caught:
        solver(nn.Linear(3, 2), nn.functional.mse_loss, **{keyword: value})
    assert isinstance(caught.value, ValueError)


def test_unknown_influence_mode():
    x, y = torch.eye(3), torch.ones(3, 2)
    model = DirectInfluence(nn.Linear(3, 2), nn.functional.mse_loss, 1.0).fit([(x, y)])
    for call in (
        lambda: model.influences(x, y, mode="sideways"),
        lambda: model.influences_by_block(x, y, mode=BlockMode.FULL),
        lambda: model.influences_from_factors(model.influence_factors(x, y), x, y, "sideways"),
        lambda: model.influences_from_factors_by_block({}, x, y, mode="sideways"),
    ):
        with pytest.raises(UnsupportedInfluenceModeException, match="'up', 'perturbation'"):
            call()
