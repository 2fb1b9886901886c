"""What a user reads of the layers before and after `fit`, and the estimate of memory."""

import numpy as np
import pytest
from abilities import BARE
from namespaces import NUMPY_FLOAT32
from problems import make_setting
from sequences import influence, loader, make_data, make_model

from influence_core import CapabilityError, Ekfac
from influence_core.curvature.layer_data import COPIES
from influence_core.curvature.layer_summary import LayerRow, LayerSummary
from influence_core.layer_calls import LayerCalls

TRAIN = make_data(23, seed=1)

TABLE = """\
layer    kind                        factors    memory
embed    kronecker, diagonal inputs  4×4, 6      320 B
norm     diagonal                    8            64 B
mix.0    kronecker                   3×3, 3×3    216 B
mix.1    kronecker                   3×3, 3×3    216 B
stack.k  kronecker, diagonal inputs  2×2, 7      144 B
stack.q  kronecker, diagonal inputs  2×2, 7      144 B
head     kronecker                   3×3, 4×4    296 B
bare     skipped                     tied          0 B
                                                1.4 KiB"""


def test_the_table():
    method = Ekfac(largest_exact=7, largest_factor=6, unsupported="skip")
    model = influence(make_model(fault="tied"), method, regularization=1e-2)
    summary = model.layer_summary()
    assert [line.split() for line in str(summary).splitlines()] == [
        line.split() for line in TABLE.splitlines()
    ]
    assert len({len(line) for line in str(summary).splitlines()}) == 1
    assert str(model.fit(loader(TRAIN)).layer_summary()) == str(summary)


def test_it_says_what_is_kept():
    """Eigenvectors and eigenvalues, to the byte."""
    for options in ({}, {"largest_exact": 3}, {"factor_dtype": "float32"}):
        model = influence(make_model(), Ekfac(True, **options)).fit(loader(TRAIN))
        layers = {
            layer.columns.name: layer
            for inverse in model._fitted.inverses.values()
            for layer in inverse.layers
        }
        summary = model.layer_summary()
        assert {row.name for row in summary.rows} == set(layers)
        for row in summary.rows:
            layer = layers[row.name]
            bases = [q.nbytes for q in (layer.inputs, layer.outputs) if q is not None]
            assert row.basis_bytes == sum(bases)
            assert row.value_bytes == layer.values.nbytes
            assert (row.outputs, row.inputs) == layer.values.shape
            assert row.parameters == layer.columns.parameters
        assert summary.memory == sum(row.memory for row in summary.rows)


def test_kinds():
    rows = {row.name: row for row in influence(make_model(), Ekfac()).layer_summary().rows}
    assert rows["norm"].kind == "exact"
    assert rows["norm"].factors == ((8, 8),)
    assert rows["embed"].kind == "kronecker, diagonal inputs"
    assert rows["embed"].factor_bytes == 8 * (4 * 4 + 6)
    rows = influence(make_model(), Ekfac(largest_factor=1)).layer_summary().rows
    assert rows[2].kind == "kronecker, diagonal inputs, diagonal outputs"


def test_blocks_that_cut_a_layer():
    model = influence(make_model(), Ekfac(), block_structure="parameter_wise")
    rows = [(row.name, row.parameters) for row in model.layer_summary().rows]
    assert ("mix.0", ("mix.weight",)) in rows
    assert ("mix.0", ("mix.bias",)) in rows
    assert ("norm", ("norm.scale",)) in rows


def test_bytes_are_those_of_the_model():
    setting = make_setting("tanh_cross_entropy", NUMPY_FLOAT32)
    from influence_core.testing import BACKEND

    model = LayerCalls(setting.model, None, Ekfac(), backend=BACKEND, max_memory=12345)
    summary = model.layer_summary()
    assert (summary.item, summary.factor_item, summary.max_memory) == (4, 4, 12345)
    double = LayerCalls(setting.model, None, Ekfac(factor_dtype="float64"), backend=BACKEND)
    assert double.layer_summary().factor_item == 8
    assert double.layer_summary().memory == summary.memory  # eigenvectors stay short


def test_a_backend_without_layers():
    model = LayerCalls(make_setting("logistic").model, None, Ekfac(), backend=BARE)
    with pytest.raises(CapabilityError, match="offers `layers`"):
        model.layer_summary()


def row(name, o, i):
    factors = ((o, o), (i, i))
    vectors = o * o + i * i
    return LayerRow(name, "kronecker", (name,), o, i, factors, 4 * vectors, 4 * vectors, 8 * o * i)


def test_the_estimate_of_a_fit():
    rows = (row("a", 100, 200), row("b", 50, 300))
    summary = LayerSummary(rows, max_memory=10**6)
    every = 4 * (100**2 + 200**2 + 50**2 + 300**2)
    found = summary.fit_memory(points=64, numbers=1000)
    assert found.factors == found.eigenvectors == every
    assert found.eigenvalues == 8 * (100 * 200 + 50 * 300)
    assert found.statistics == 64 * 1000 * 4 * COPIES
    kept = found.eigenvectors + found.eigenvalues
    assert found.peak == kept + max(found.statistics + 3 * every, every + 24 * 300**2)
    # gradients of four points, four times
    diagonal = (10**6,)
    many = LayerRow("c", "diagonal", ("c",), 10**6, 1, (diagonal,), 4 * 10**6, 0, 8 * 10**6)
    assert LayerSummary((many,)).fit_memory(9, 1).peak == 8 * 10**6 + 4 * 4 * 4 * 10**6
    one_by_one = LayerSummary(rows, layers_at_once=1, max_memory=10**6)
    assert one_by_one.fit_memory(64, 1000).factors == 4 * (50**2 + 300**2)
    assert one_by_one.fit_memory(64, 1000).peak < found.peak
    assert summary.fit_memory(10**6, 1000).statistics == 10**6  # batches are cut
    assert summary.fit_memory(1, 10**9).statistics == 4 * COPIES * 10**9  # but no points
    assert summary.numbers_seen(positions=7, slices=3) == 7 * (200 + 300 + 3 * 150)


def test_what_layers_see_of_a_point():
    """The estimate is an upper bound of the numbers that the backend shows."""
    model = influence(make_model(), Ekfac()).fit(loader(TRAIN))
    points = model._fitted.points((TRAIN[0][:1], TRAIN[1][:1]), "here")
    shown = sum(
        int(np.prod(each.inputs.shape)) + int(np.prod(each.output_gradients.shape))
        for each in points.factors.values()
    )
    bound = model.layer_summary().numbers_seen(positions=5, slices=1)
    assert shown <= bound <= 2 * shown


def test_nothing_to_summarize():
    empty = LayerSummary(())
    assert str(empty).split() == ["layer", "kind", "factors", "memory", "0", "B"]
    assert empty.fit_memory(1, 0).peak == 0
