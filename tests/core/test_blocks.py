"""Block structures: which columns, in which order, and nothing across blocks."""

from collections import OrderedDict

import numpy as np
import oracle
import pytest
from methods import CASES
from problems import MANY, fitted, influence, make_setting, may_be_indefinite, tight

from influence_core import BlockError, BlockMode, OptionError
from influence_core.blocks import make_blocks

pytestmark = may_be_indefinite

NAMES = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
# Blocks against the order of the model, names too, and `hidden.bias` in none of them.
SHUFFLED = OrderedDict(
    late=["output.bias", "output.weight"],
    early=["hidden.weight"],
)
# What is passed, and the blocks that are meant.
STRUCTURES = {
    "full": (BlockMode.FULL, {"": NAMES}),
    "layer_wise": ("layer_wise", {"hidden": NAMES[:2], "output": NAMES[2:]}),
    "parameter_wise": ("parameter_wise", {name: [name] for name in NAMES}),
    "shuffled": (SHUFFLED, SHUFFLED),
    "interleaved": ({"a": NAMES[3::-2], "b": NAMES[2::-2]},) * 2,
    "one": ({"only": ["hidden.bias"]},) * 2,
}
structures = pytest.mark.parametrize("structure", STRUCTURES)


@structures
@pytest.mark.parametrize("m", [3, MANY])
@pytest.mark.parametrize("mode", ["up", "perturbation"])
def test_shares_of_the_blocks(library, structure, m, mode):
    setting = make_setting("tanh_squared", library)
    passed, blocks = STRUCTURES[structure]
    model = fitted(setting, regularization=0.1, block_structure=passed)
    got = model.influences_by_block(*setting.test(m), *setting.train, mode=mode)
    want = setting.oracle().influences_by_block(
        *setting.host_test(m), *setting.host_train, mode, regularization=0.1, blocks=blocks
    )
    assert isinstance(got, OrderedDict)
    assert list(got) == list(want) == model.block_names
    for name in want:
        library.close(got[name], want[name], library.accuracy())
    whole = library.host(model.influences(*setting.test(m), *setting.train, mode=mode))
    total = sum(library.host(share) for share in got.values())
    np.testing.assert_allclose(whole, total, rtol=1e-12 if library.dtype == "float64" else 1e-6)


@structures
@pytest.mark.parametrize("case", CASES)
def test_columns_of_the_factors(structure, case):
    setting = make_setting("tanh_squared")
    passed, blocks = STRUCTURES[structure]
    mode, regularization = "generalized_gauss_newton", 0.1
    model = case.fitted(
        setting,
        block_structure=passed,
        second_order_mode=mode,
        regularization=regularization,
    )
    truth = case.reference(setting, mode, blocks)
    want = truth.influence_factors(*setting.host_test(), regularization)
    got = model.influence_factors(*setting.test())
    setting.library.close(got, want, case.accuracy)
    assert model.n_parameters == want.shape[1]
    by_block = model.influence_factors_by_block(*setting.test())
    np.testing.assert_array_equal(np.concatenate(list(by_block.values()), axis=1), got)
    sizes = [len(oracle.columns(setting.parameters, names)) for names in blocks.values()]
    assert [rows.shape[1] for rows in by_block.values()] == sizes


def test_every_block_has_a_report():
    setting = make_setting("tanh_squared")
    options = {"regularization": 0.1, "second_order_mode": "gauss_newton"}
    model = fitted(setting, tight(), block_structure="layer_wise", **options)
    model.influence_factors(*setting.test())
    assert list(model.report) == ["hidden", "output"]
    assert all(report.converged.all() for report in model.report.values())


@pytest.mark.parametrize(
    ("structure", "names"),
    [("full", [""]), ("layer_wise", [""]), ("parameter_wise", ["weight", "bias"])],
)
def test_parameters_at_the_root(structure, names):
    model = influence(make_setting("logistic"), block_structure=structure)
    assert model.block_names == names
    assert model.n_parameters == 15


def test_layers_are_modules_however_deep():
    parameters = {
        "scale": (2,),
        "encoder.0.weight": (3, 2),
        "encoder.0.bias": (3,),
        "encoder.1.attention.weight": (),
        "encoder.gain": (1,),
    }
    blocks = make_blocks("layer_wise", parameters)
    assert [(b.name, b.names, b.size) for b in blocks] == [
        ("", ("scale",), 2),
        ("encoder.0", ("encoder.0.weight", "encoder.0.bias"), 9),
        ("encoder.1.attention", ("encoder.1.attention.weight",), 1),
        ("encoder", ("encoder.gain",), 1),
    ]


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        ({}, "at least one block"),
        ({"a": []}, r"`block_structure\['a'\]` must be a list of at least one"),
        ({"a": "hidden.bias"}, "must be a list"),
        ({"a": ["hidden.bais"]}, r"got 'hidden.bais'. The model has 'hidden.weight'"),
        ({"a": ["hidden.bias"], "b": ["hidden.bias"]}, "in the blocks 'a' and 'b'"),
        ({"a": ["hidden.bias", "hidden.bias"]}, "must name a parameter once"),
    ],
)
def test_structures_are_checked_at_once(structure, words):
    with pytest.raises(BlockError, match=words):
        influence(make_setting("tanh_squared"), block_structure=structure)


@pytest.mark.parametrize("structure", ["layerwise", "FULL", None, 3])
def test_unknown_modes_are_refused(structure):
    with pytest.raises(OptionError, match="'full', 'layer_wise', 'parameter_wise'; got"):
        influence(make_setting("tanh_squared"), block_structure=structure)
