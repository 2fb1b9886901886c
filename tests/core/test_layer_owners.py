"""Which layer a parameter belongs to, and where its rows stand among the columns of a block."""

import numpy as np
import pytest

from influence_core.errors import NotImplementedLayerRepresentationException
from influence_core.layers import columns_of_layers, find_faults, join_pieces, unfactored
from influence_core.problem import FreeParameters, Layer

SHAPES = {
    "kernel": (6, 2, 2),  # three groups, as a convolution has them
    "bias": (6,),
    "flat": (3, 4),  # two layers side by side, transposed
    "scale": (5,),
    "shift": (1, 2),
}
LAYERS = {
    "b": Layer("kernel", "bias", inputs=4, outputs=1, first=2),
    "a": Layer("kernel", "bias", inputs=4, outputs=2),
    "c": Layer("kernel", "bias", inputs=4, outputs=3, first=3),
    "right": Layer("flat", None, inputs=3, outputs=1, transposed=True, first=3),
    "left": Layer("flat", None, inputs=3, outputs=3, transposed=True),
    "free": FreeParameters(("scale", "shift"), 7),
}
ORDER = ("bias", "flat", "shift", "kernel", "scale")


def rows_and_parameters(k=2):
    sizes = [int(np.prod(SHAPES[name])) for name in ORDER]
    rows = np.arange(float(k * sum(sizes))).reshape(k, -1)
    cuts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    own = {n: cut.reshape(k, *SHAPES[n]) for n, cut in zip(ORDER, cuts, strict=True)}
    return rows, own


def test_every_layer_finds_its_rows(library):
    host, own = rows_and_parameters()
    rows = library.array(host)
    kernel, bias = own["kernel"].reshape(2, 6, 4), own["bias"][:, :, None]
    flat = np.swapaxes(own["flat"], 1, 2)
    affine = np.concatenate([kernel, bias], axis=2)
    free = np.concatenate([own["scale"], own["shift"][:, 0]], axis=1)[:, :, None]
    want = {
        "a": affine[:, :2],
        "b": affine[:, 2:3],
        "c": affine[:, 3:],
        "left": flat[:, :3],
        "right": flat[:, 3:],
        "free": free,
    }
    pieces = []
    found = columns_of_layers(ORDER, LAYERS, SHAPES)
    for columns in found:
        got = columns.gather(rows)
        library.close(got, want[columns.name], 0.0)
        assert columns.shape == want[columns.name].shape[1:]
        assert [name for name, _ in columns.split(got)] == list(columns.parameters)
        for (name, part), (other, picked) in zip(
            columns.split(got), columns.pick(rows), strict=True
        ):
            assert name == other
            library.close(picked, library.host(part), 0.0)
        pieces += columns.scatter(got)
    assert [columns.name for columns in found] == list(LAYERS)
    library.close(join_pieces(pieces, {}, rows), host, 0.0)


def test_some_parameters_of_a_layer():
    """A block may have the bias of a layer only, and one of its free parameters."""
    names = ("bias", "shift")
    found = {c.name: c for c in columns_of_layers(names, LAYERS, SHAPES)}
    assert list(found) == ["b", "a", "c", "free"]
    assert found["a"].shape == (2, 1)
    assert found["free"].shape == (2, 1)
    assert found["free"].parameters == ("shift",)
    rows = np.arange(8.0)[None, :]
    np.testing.assert_array_equal(found["c"].gather(rows)[0, :, 0], [3, 4, 5])
    np.testing.assert_array_equal(found["free"].gather(rows)[0, :, 0], [6, 7])


def test_what_is_left_out_stays_zero():
    """The kernel counts as a constant; its layers keep their biases."""
    found = columns_of_layers(ORDER, LAYERS, SHAPES, left_out=["kernel"])
    host, own = rows_and_parameters()
    pieces = [piece for c in found for piece in c.scatter(c.gather(host))]
    start = 6 + 12 + 2
    got = join_pieces(pieces, {start: 24}, host)
    want = host.copy()
    want[:, start : start + 24] = 0.0
    np.testing.assert_array_equal(got, want)
    assert own["kernel"].all()


def layers(**changes):
    return {name: layer for name, layer in {**LAYERS, **changes}.items() if layer is not None}


@pytest.mark.parametrize(
    ("known", "names", "fault"),
    [
        (layers(a=None), ["kernel", "bias"], "its rows from 0 on are of no such layer"),
        (layers(b=None), ["kernel", "bias"], "its rows from 2 on are of no such layer"),
        (layers(c=None), ["kernel", "bias"], "its rows from 3 on are of no such layer"),
        (layers(free=None), ["scale", "shift"], "of no such layer"),
        (
            layers(b=Layer("kernel", None, 4, 2, first=2)),
            ["kernel"],
            "shared by several layers ('b', 'c')",
        ),
        (
            layers(more=Layer("flat", None, 3, 4, transposed=True)),
            ["flat"],
            "shared by several layers ('left', 'more')",
        ),
        (
            layers(more=FreeParameters(("bias",), 6)),
            ["bias"],
            "shared by several layers ('b', 'a', 'c', 'more')",
        ),
        (
            layers(free=FreeParameters(("scale", "shift"), 7, "tied")),
            ["scale", "shift"],
            "tied",
        ),
        (
            layers(c=Layer("kernel", "bias", 4, 4, first=3)),
            ["kernel", "bias"],
            "it has 6 rows, where its layers have 7",
        ),
        (
            layers(left=Layer("flat", None, 5, 2), right=None),
            ["flat"],
            "the layer 'left' says that its rows are of length 5",
        ),
    ],
)
def test_faults(known, names, fault):
    found = find_faults(list(SHAPES), known, SHAPES)
    if fault.startswith(("its rows from 2", "shared by several layers ('b', 'c")):
        found = {name: found[name] for name in names}  # what follows is out of order as well
    assert found == dict.fromkeys(names, fault)


def test_no_faults():
    assert find_faults(ORDER, LAYERS, SHAPES) == {}


def test_faults_are_told_together():
    faults = {"a": "tied", "b": "of no such layer", "c": "tied"}
    error = unfactored(faults, "sing, ")
    assert isinstance(error, NotImplementedLayerRepresentationException)
    assert "factored. 'a', 'c': tied; 'b': of no such layer. Make" in str(error)
    assert "(freeze the parameter), sing, or use another method, such as Cg." in str(error)
