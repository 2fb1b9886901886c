"""The documented API: names, order and defaults as in `signatures.json`, values of the enums."""

import enum
import inspect
import json
from pathlib import Path

import pytest
import torch
from solvers import SOLVERS, WITH_BLOCKS, WITH_MODES
from torch import nn

import influence_torch
from influence_core.errors import OptionError
from influence_core.modes import Sharing, Unsupported
from influence_torch import (
    BlockMode,
    DirectInfluence,
    EkfacInfluence,
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
CLASSES = [solver.kind for solver in SOLVERS]
EXTRAS = {"seed": 0, "max_memory": None, "array_backend": None, "forward": None}
OF_EKFAC = {
    "labels": None,
    "draws": 1,
    "loss": None,
    "sharing": Sharing.EXPAND,
    "unsupported": Unsupported.RAISE,
    "largest_exact": 2048,
    "largest_factor": None,
    "layers_at_once": None,
    "factor_dtype": None,
}


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


def test_every_documented_class_is_enumerated():
    names = [kind.__name__ for kind in CLASSES]
    assert set(names) == {name for name in SPEC if name.endswith("Influence")}
    assert len(names) == 7


@pytest.mark.parametrize("kind", CLASSES)
def test_additions_have_the_same_names_everywhere(kind):
    parameters = inspect.signature(kind).parameters
    extra = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert extra == (EXTRAS | OF_EKFAC if kind is EkfacInfluence else EXTRAS)
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize("kind", CLASSES)
def test_methods_that_every_class_adds(kind):
    added = {
        "influences_over": ["regularizations", "x_test", "y_test", "x=None", "y=None"],
        "self_influences": ["loader"],
        "with_regularization": ["regularization"],
        "removal_effects": ["x_test", "y_test", "x", "y", "leverage=False"],
    }
    for method, wanted in added.items():
        _, *parameters = inspect.signature(getattr(kind, method)).parameters.values()
        assert [shown(p) for p in parameters] == wanted
    for name in ("report", "gradient_norm", "block_names", "device", "dtype"):
        assert isinstance(inspect.getattr_static(kind, name), property)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("keyword", ["nonsense", "hessian_reg", "regularisation"])
def test_unknown_keywords(kind, keyword):
    with pytest.raises(TypeError, match=keyword):
        kind(nn.Linear(3, 2), nn.functional.mse_loss, **{keyword: 1.0})


@pytest.mark.parametrize("kind", CLASSES)
def test_every_argument_is_documented(kind):
    text = inspect.getdoc(kind)
    for name in inspect.signature(kind).parameters:
        assert f"\n    {name}: " in text, name


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


@pytest.mark.parametrize("solver", WITH_MODES)
def test_strings_serve_as_enums(solver):
    data = [(torch.eye(3), torch.ones(3, 2))]
    by_string, by_member = (
        solver(
            nn.Linear(3, 2, bias=False).requires_grad_(True),
            nn.functional.mse_loss,
            1.0,
            block_structure=structure,
            second_order_mode=mode,
            **solver.known(rtol=1e-4),
        ).fit(data)
        for structure, mode in (
            ("parameter_wise", "gauss_newton"),
            (BlockMode.PARAMETER_WISE, SecondOrderMode.GAUSS_NEWTON),
        )
    )
    assert by_string.block_names == by_member.block_names == ["weight"]
    for mode in ("perturbation", InfluenceMode.Perturbation):
        assert by_string.influences(*data[0], mode=mode).shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("solver", "keyword"),
    [(solver, "block_structure") for solver in WITH_BLOCKS]
    + [(solver, "second_order_mode") for solver in WITH_MODES],
)
@pytest.mark.parametrize("value", ["nonsense", "", 3, None, InfluenceMode.Up])
def test_unknown_modes(solver, keyword, value):
    with pytest.raises(OptionError, match=keyword) as caught:
        solver(nn.Linear(3, 2), nn.functional.mse_loss, 1.0, **{keyword: value})
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
