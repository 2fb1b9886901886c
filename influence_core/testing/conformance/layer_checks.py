"""Checks of what the layers of a model show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from influence_core.arrays import from_host
from influence_core.errors import CapabilityError
from influence_core.modes import LabelKind
from influence_core.problem import (
    Array,
    Batch,
    FreeParameters,
    GeneralizedGaussNewton,
    HasLayers,
    Labels,
    Layer,
    LayerStatistics,
    Tree,
)
from influence_core.testing.conformance.calls import uniforms
from influence_core.testing.conformance.expect import (
    ability,
    oracle_tolerance,
    require,
    require_like,
    require_numbers,
    require_same,
    rounding,
    sheltered,
    skip,
)
from influence_core.testing.conformance.layer_columns import (
    AnyLayer,
    columns_of,
    gradients_of,
    names_of,
    shapes_of,
    size_of,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host

# enough for averages over draws to come within a few per cent of those over the distribution
_MANY_DRAWS, _CLOSE = 256, 0.25


class LayerChecks:
    """`layers` and `layer_statistics`."""

    @sheltered
    def test_layers_name_their_parameters(self, subject: Subject) -> None:
        """Every layer has parameters of the problem, of the sizes that it says, for its own."""
        layers, shapes = _layers(subject), {n: v.shape for n, v in subject.values.items()}
        taken: list[int] = []
        for name, layer in layers.items():
            names = names_of(layer)
            known = bool(names) and set(names) <= set(shapes)
            columns = columns_of(layer, subject) if known else np.zeros(0)
            require(
                len(columns) == size_of(layer) and _fits(layer, shapes),
                f"`layers()[{name!r}]` must name parameters of the problem: the weight (o, i), or "
                "(i, o) if it is `transposed`, and the bias (o,), or larger ones of which its rows "
                "begin at `first`; or free parameters with `outputs` numbers in all. It says "
                f"{layer}, and the parameters are {shapes}.",
            )
            taken.extend(columns)
        require(
            len(set(taken)) == len(taken),
            f"`layers()` must give every number of a parameter to one layer; some share: {layers}.",
        )

    @sheltered
    def test_statistics_have_their_shapes(self, subject: Subject) -> None:
        """Inputs `(n, s, i)` and one slice of output gradients `(1, n, s, o)`."""
        layers = _layers(subject)
        found = _given(subject, subject.batch(), list(layers))
        require(
            set(found) == set(layers),
            f"`layer_statistics` must answer for {list(layers)}; got {list(found)}.",
        )
        for name, each in found.items():
            _check_shapes(subject, f"layer_statistics(…)[{name!r}]", layers[name], each)

    @sheltered
    def test_only_the_layers_asked_for_answer(self, subject: Subject) -> None:
        """One layer at a time, and all in another order, with the numbers that each always has."""
        batch, names = subject.batch(), list(_layers(subject))
        whole, tolerance = _given(subject, batch, names), rounding(subject.problem.reference)
        for some in ([name] for name in names), [names[::-1]]:
            for asked in some:
                found = _given(subject, batch, asked)
                call = f"layer_statistics(batch, {asked}, labels)"
                require(
                    set(found) == set(asked),
                    f"`{call}` must answer for those layers only; it answered for {list(found)}.",
                )
                for name in asked:
                    rule = f"`{call}` must hold what {name!r} sees, whatever else is asked for"
                    require_same(_arrays(found[name]), _arrays(whole[name]), rule, tolerance)

    @sheltered
    def test_given_labels_rebuild_the_gradients(self, subject: Subject) -> None:
        """`Σ_s g_s ⊗ a_s` and `Σ_s g_s` are the gradients of weight and bias."""
        layers, n = _layers(subject), subject.points
        tolerance = 10 * rounding(subject.problem.reference)
        for start, stop in ((0, n), (1, 2)):
            batch = subject.part(start, stop)
            found = _given(subject, batch, list(layers))
            gradients = on_host(subject.problem.gradients(batch, subject.names))
            for name, layer in layers.items():
                rule = (
                    f"`layer_statistics` of {name!r} at given labels must rebuild the gradients of "
                    f"the points {start} to {stop}: Σ_s g ⊗ a for the weight, Σ_s g for the bias, "
                    "of each point's own loss"
                )
                want = gradients[:, columns_of(layer, subject)]
                require_numbers(gradients_of(layer, found[name])[0], want, rule, tolerance)

    @sheltered
    def test_expected_labels_rebuild_the_fisher_matrix(self, subject: Subject) -> None:
        """For a natural loss the Fisher matrix is the generalised Gauss–Newton matrix."""
        labels = Labels(LabelKind.EXPECTED, uniforms(subject.points))
        tolerance = oracle_tolerance(subject.problem.reference)
        _check_fisher(subject, labels, "the sum over labels, with √p in each slice", tolerance)

    @sheltered
    def test_sampled_labels_rebuild_the_fisher_matrix(self, subject: Subject) -> None:
        """So it is, nearly, for labels drawn many times from all parts of the distribution."""
        labels = Labels(LabelKind.SAMPLED, uniforms(subject.points, draws=_MANY_DRAWS))
        words = f"the sum over {_MANY_DRAWS} draws, with 1/√draws in each slice"
        _check_fisher(subject, labels, words, _CLOSE)

    @sheltered
    def test_sampled_labels_follow_the_uniforms(self, subject: Subject) -> None:
        """Other numbers give other labels, and there is a slice for each draw."""
        last, draws = list(_layers(subject))[-1], 3
        first, other = (
            on_host(
                _of_the_model(subject, Labels(LabelKind.SAMPLED, numbers))[last].output_gradients
            )
            for numbers in (uniforms(subject.points, seed, draws=draws) for seed in (0, 1))
        )
        rule = "`layer_statistics` at sampled labels must follow `labels.uniforms`"
        require(
            len(first) == draws,
            f"{rule}: one slice for each of {draws} draws; {last!r} has {len(first)}.",
        )
        require(not np.array_equal(first, other), f"{rule}; other numbers gave the same labels.")

    @sheltered
    def test_labels_may_be_left_to_the_backend(self, subject: Subject) -> None:
        """`Labels(None, …)` are those of the model's distribution, expected or sampled."""
        draw, tolerance = uniforms(subject.points), rounding(subject.problem.reference)
        own, *others = (
            on_host([_arrays(each) for each in _of_the_model(subject, Labels(kind, draw)).values()])
            for kind in (None, LabelKind.EXPECTED, LabelKind.SAMPLED)
        )
        require(
            any(_agree(own, other, tolerance) for other in others),
            "`layer_statistics` at labels of no kind, `Labels(None, …)`, must answer as at "
            "expected labels or as at sampled ones: those of the model's distribution, and not "
            "those of the data.",
        )


def _layers(subject: Subject) -> Mapping[str, AnyLayer]:
    problem = ability(subject, HasLayers)
    subject.batch()  # some backends find the layers when they see the first points
    layers: Mapping[str, AnyLayer] = problem.layers()
    if not layers:
        skip("the subject's model has no layers that the backend knows")
    return layers


def _fits(layer: AnyLayer, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether the inputs of a weight are as many as the layer says."""
    if isinstance(layer, FreeParameters) or layer.weight is None:
        return True
    first, *others = shapes[layer.weight]
    return (first if layer.transposed else math.prod(others)) == layer.inputs


def _given(subject: Subject, batch: Batch, names: Sequence[str]) -> Mapping[str, LayerStatistics]:
    labels = Labels(LabelKind.GIVEN, uniforms(batch.size))
    problem = ability(subject, HasLayers)
    found: Mapping[str, LayerStatistics] = problem.layer_statistics(batch, names, labels)
    return found


def _of_the_model(subject: Subject, labels: Labels) -> Mapping[str, LayerStatistics]:
    problem, names = ability(subject, HasLayers), list(_layers(subject))
    try:
        found: Mapping[str, LayerStatistics] = problem.layer_statistics(
            subject.batch(), names, labels
        )
    except CapabilityError as error:
        skip(f"the distribution of the labels is not known: {error}")
    return found


def _arrays(statistics: LayerStatistics) -> list[Array | None]:
    return [statistics.inputs, statistics.output_gradients, statistics.counted]


def _agree(one: Tree, other: Tree, tolerance: float) -> bool:
    try:
        require_same(one, other, "", tolerance)
    except AssertionError:
        return False
    return True


def _check_shapes(subject: Subject, call: str, layer: AnyLayer, found: LayerStatistics) -> None:
    indices = isinstance(layer, Layer) and layer.lookup
    reference = subject.problem.reference
    require_like(found.inputs, reference, call, indices=indices)
    require_like(found.output_gradients, reference, call)
    got = tuple(found.inputs.shape), tuple(found.output_gradients.shape)
    positions = got[0][1] if len(got[0]) > 1 else 0
    want = shapes_of(layer, 1, subject.points, positions)
    require(
        got == want,
        f"`{call}` of given labels must have inputs (n, s, i), (n, s) for a lookup or (n, s, 0) "
        "for free parameters, and output gradients (1, n, s, o), with s the same: "
        f"{want[0]} and {want[1]}; got {got[0]} and {got[1]}.",
    )
    if found.counted is None:
        return
    counted, shape = on_host(found.counted), (subject.points, positions)
    require(
        counted.shape == shape and set(np.unique(counted)) <= {0, 1},
        f"`{call}.counted` must be {shape}, ones and zeros; got {counted.shape}: {counted}.",
    )
    require(
        not np.any(on_host(found.output_gradients)[:, counted == 0]),
        f"`{call}` must have no gradients where a position is padding, that is where `counted` "
        "is zero.",
    )


def _check_fisher(subject: Subject, labels: Labels, sums: str, tolerance: float) -> None:
    if not subject.natural:
        skip("the loss has no natural parameters (`Subject(natural=False)`)")
    found = _of_the_model(subject, labels)
    for name, layer in _layers(subject).items():
        rows = gradients_of(layer, found[name])
        got = np.einsum("cnp,cnq->pq", rows, rows) / subject.points
        rule = (
            f"`layer_statistics` of {name!r} at {labels.kind} labels must rebuild the Fisher "
            f"matrix of the layer: {sums}"
        )
        want = _gauss_newton_block(subject, columns_of(layer, subject))
        require_numbers(got, want, rule, tolerance)


def _gauss_newton_block(subject: Subject, columns: npt.NDArray[np.int64]) -> Host:
    if subject.truth.gauss_newton is not None:
        mean: Host = np.mean(subject.truth.gauss_newton, axis=0)
        return mean[np.ix_(columns, columns)]
    problem = ability(subject, GeneralizedGaussNewton)
    eye = from_host(np.eye(subject.size)[columns], subject.problem.reference)
    product = problem.generalized_gauss_newton_product(subject.batch(), eye, subject.names)
    answer: Host = on_host(product)[:, columns]
    return answer
