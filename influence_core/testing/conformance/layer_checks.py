"""Checks of what the layers of a model show."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from influence_core.arrays import from_host
from influence_core.errors import CapabilityError
from influence_core.modes import LabelKind
from influence_core.problem import (
    Batch,
    GeneralizedGaussNewton,
    HasLayers,
    Labels,
    Layer,
    LayerStatistics,
)
from influence_core.testing.conformance.calls import given_labels
from influence_core.testing.conformance.expect import (
    ability,
    oracle_tolerance,
    require,
    require_like,
    require_numbers,
    rounding,
    sheltered,
    skip,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host

_DRAWS = 3


class LayerChecks:
    """`layers` and `layer_statistics`."""

    @sheltered
    def test_layers_name_their_parameters(self, subject: Subject) -> None:
        """Every layer has a parameter of the problem, of the shape that it says."""
        shapes = {name: value.shape for name, value in subject.values.items()}
        layers = _layers(subject)
        for name, layer in layers.items():
            weight = (layer.outputs, layer.inputs)
            own = ((layer.weight, weight[::-1] if layer.transposed else weight),)
            named = (*own, (layer.bias, (layer.outputs,)))
            want = {parameter: shape for parameter, shape in named if parameter is not None}
            got = {parameter: shapes.get(parameter) for parameter in want}
            require(
                len(want) > 0 and got == want,
                f"`layers()[{name!r}]` must name parameters of the problem, the weight (o, i), or "
                f"(i, o) if it is `transposed`, and the bias (o,); it says {layer}, and the "
                f"parameters are {shapes}.",
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
            call = f"layer_statistics(…)[{name!r}]"
            for array in (each.inputs, each.output_gradients):
                require_like(array, subject.problem.reference, call)
            s = each.inputs.shape[1] if each.inputs.ndim == 3 else 0
            want = (subject.points, s, layers[name].inputs)
            slices = (1, subject.points, s, layers[name].outputs)
            got = tuple(each.inputs.shape), tuple(each.output_gradients.shape)
            require(
                got == (want, slices),
                f"`{call}` of given labels must have inputs (n, s, i) and output gradients "
                f"(1, n, s, o), with s the same: {want} and {slices}; got {got[0]} and {got[1]}.",
            )

    @sheltered
    def test_only_the_layers_asked_for_answer(self, subject: Subject) -> None:
        """One layer at a time."""
        for name in _layers(subject):
            found = list(_given(subject, subject.batch(), [name]))
            require(
                found == [name],
                f"`layer_statistics(batch, [{name!r}], labels)` must answer for that layer only; "
                f"it answered for {found}.",
            )

    @sheltered
    def test_given_labels_rebuild_the_gradients(self, subject: Subject) -> None:
        """`Σ_s g_s ⊗ a_s` and `Σ_s g_s` are the gradients of weight and bias."""
        layers, n = _layers(subject), subject.points
        tolerance = oracle_tolerance(subject.problem.reference)
        for start, stop in ((0, n), (1, 2)):
            found = _given(subject, subject.part(start, stop), list(layers))
            for name, layer in layers.items():
                want = subject.truth.gradients[start:stop, subject.columns(_names(layer))]
                rule = (
                    f"`layer_statistics` of {name!r} at given labels must rebuild the gradients of "
                    f"the points {start} to {stop}: Σ_s g ⊗ a for the weight, Σ_s g for the bias, "
                    "of each point's own loss"
                )
                require_numbers(_rows(found[name], layer)[0], want, rule, tolerance)

    @sheltered
    def test_expected_labels_rebuild_the_fisher_matrix(self, subject: Subject) -> None:
        """For a natural loss the Fisher matrix is the generalised Gauss–Newton matrix."""
        layers = _layers(subject)
        if not subject.natural:
            skip("the loss has no natural parameters (`Subject(natural=False)`)")
        labels = Labels(LabelKind.EXPECTED, _numbers(subject.points, seed=0))
        found = _statistics(subject, subject.batch(), layers, labels)
        tolerance = oracle_tolerance(subject.problem.reference)
        for name, layer in layers.items():
            rows, names = _rows(found[name], layer), _names(layer)
            got = np.einsum("cnp,cnq->pq", rows, rows) / subject.points
            rule = (
                f"`layer_statistics` of {name!r} at expected labels must rebuild the Fisher matrix "
                "of the layer: the sum over the slices is a mean over labels, with √p in each"
            )
            require_numbers(got, _gauss_newton_block(subject, names), rule, tolerance)

    @sheltered
    def test_sampled_labels_follow_the_uniforms(self, subject: Subject) -> None:
        """The same numbers give the same labels, others give others; each point has its own."""
        layers = _layers(subject)
        n, tolerance = subject.points, rounding(subject.problem.reference)

        def drawn(seed: int, batch: Batch, points: slice = slice(None)) -> dict[str, Host]:
            labels = Labels(LabelKind.SAMPLED, _numbers(n, seed, points))
            found = _statistics(subject, batch, layers, labels)
            return {name: on_host(each.output_gradients) for name, each in found.items()}

        batch, last = subject.batch(), list(layers)[-1]
        first, again, other = drawn(0, batch), drawn(0, batch), drawn(1, batch)
        part = drawn(0, batch[1:4], slice(1, 4))
        for name, got in first.items():
            rule = f"`layer_statistics` of {name!r} at sampled labels must follow"
            require(
                got.shape[0] == _DRAWS,
                f"{rule} `labels.uniforms`: one slice for each of {_DRAWS} draws; got {len(got)}.",
            )
            require_numbers(again[name], got, f"{rule} the uniforms and nothing else", tolerance)
            positions = part[name].shape[2]
            require_numbers(
                part[name],
                got[:, 1:4, :positions],
                f"{rule} each point's own uniforms, whatever the batch",
                tolerance,
            )
        require(
            not np.array_equal(first[last], other[last]),
            "`layer_statistics` at sampled labels must follow `labels.uniforms`; other numbers "
            "gave the same labels.",
        )


def _layers(subject: Subject) -> Mapping[str, Layer]:
    layers: Mapping[str, Layer] = ability(subject, HasLayers).layers()
    if not layers:
        skip("the subject's model has no layer that can be factored")
    return layers


def _given(subject: Subject, batch: Batch, names: list[str]) -> Mapping[str, LayerStatistics]:
    problem = ability(subject, HasLayers)
    found: Mapping[str, LayerStatistics] = problem.layer_statistics(
        batch, names, given_labels(batch.size)
    )
    return found


def _statistics(
    subject: Subject, batch: Batch, layers: Mapping[str, Layer], labels: Labels
) -> Mapping[str, LayerStatistics]:
    problem = ability(subject, HasLayers)
    try:
        found: Mapping[str, LayerStatistics] = problem.layer_statistics(batch, list(layers), labels)
    except CapabilityError as error:
        skip(f"the distribution of the labels is not known: {error}")
    return found


def _numbers(points: int, seed: int, chosen: slice = slice(None)) -> Callable[[int], Host]:
    def uniforms(positions: int) -> Host:
        shape = (_DRAWS, points, positions)
        return np.random.default_rng([seed, *shape]).random(shape)[:, chosen]

    return uniforms


def _names(layer: Layer) -> list[str]:
    return [name for name in (layer.weight, layer.bias) if name is not None]


def _rows(statistics: LayerStatistics, layer: Layer) -> Host:
    """Return the gradients of the layer's parameters in every slice, `(c, n, d)`."""
    a, g = on_host(statistics.inputs), on_host(statistics.output_gradients)
    parts = []
    if layer.weight is not None:
        order = "io" if layer.transposed else "oi"
        weight = np.einsum(f"cnso,nsi->cn{order}", g, a)
        parts.append(weight.reshape(*g.shape[:2], layer.outputs * layer.inputs))
    if layer.bias is not None:
        parts.append(np.sum(g, axis=2))
    return np.concatenate(parts, axis=2)


def _gauss_newton_block(subject: Subject, names: list[str]) -> Host:
    place = subject.columns(names)
    if subject.truth.gauss_newton is not None:
        mean: Host = np.mean(subject.truth.gauss_newton, axis=0)
        return mean[np.ix_(place, place)]
    problem = ability(subject, GeneralizedGaussNewton)
    eye = from_host(np.eye(place.size), subject.problem.reference)
    answer: Host = on_host(problem.generalized_gauss_newton_product(subject.batch(), eye, names))
    return answer
