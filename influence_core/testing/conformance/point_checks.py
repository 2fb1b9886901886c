"""Checks of how points enter the answers: alone, in batches of any size, with weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from influence_core.problem import Batch, ReadsData, Tree
from influence_core.testing.conformance.calls import Arguments, Call, Over, arguments, calls_of
from influence_core.testing.conformance.expect import (
    oracle_tolerance,
    require,
    require_close,
    require_like,
    require_numbers,
    require_same,
    rounding,
    sheltered,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves, on_host
from influence_core.testing.conformance.weights import weighted_batch, weighted_data


class PointChecks:
    """Every call, for some of the points."""

    @sheltered
    def test_points_are_independent(self, subject: Subject) -> None:
        """However the points are cut into batches, the answers add up to those for all."""
        n, tolerance = subject.points, 10 * rounding(subject.problem.reference)
        for name, call in _calls_with_points(subject).items():
            # alike: other points with the same numbers must have other answers all the same
            for cuts, alike in (((*range(0, n, 3), n), False), (tuple(range(n + 1)), True)):
                whole = on_host(call(arguments(subject, alike=alike)))
                spans = list(itertools.pairwise(cuts))
                shares = [(stop - start) / n for start, stop in spans]
                for made, batches in _batches(subject, spans).items():
                    parts = [
                        on_host(call(_part(subject, slice(*span), batch, alike)))
                        for span, batch in zip(spans, batches, strict=True)
                    ]
                    rule = (
                        f"`{name}` must answer with {call.over.value}, so that batches {made} at "
                        f"{cuts} add up to the whole"
                    )
                    total = _joined(call, parts, shares, whole, rule)
                    require_same(total, whole, rule, tolerance, terms=_largest(parts))

    @sheltered
    def test_a_batch_may_have_one_point(self, subject: Subject) -> None:
        """One point is a batch like any other, also the first thing that a problem is asked."""
        points, tolerance = slice(1, 2), 10 * rounding(subject.problem.reference)
        for name, call in _calls_with_points(subject).items():
            call(arguments(subject))  # the subject's problem has seen more points than one
            want = on_host(call(_part(subject, points, subject.part(1, 2))))
            new = subject.make()
            batch = new.batch(subject.pair(1, 2))
            got = call(arguments(subject, problem=new, batch=batch, points=points))
            rule = f"`{name}` of one point must be right at once, for a problem made anew"
            require_same(got, want, rule, tolerance)
        got = subject.problem.gradients(subject.part(1, 2), subject.names)
        want = subject.truth.gradients[1:2]
        require_close(got, want, subject, "gradients(one point, names)", "∇ℓ of that point")

    @sheltered
    def test_slices_of_a_batch_are_batches(self, subject: Subject) -> None:
        """`batch[slice]` holds those points, and ends where the batch ends."""
        batch, names, n = subject.batch(), subject.names, subject.points
        for points in (slice(0, 2), slice(1, 4), slice(n - 2, n), slice(n - 1, n + 3), slice(n)):
            part, want = batch[points], subject.truth.gradients[points]
            call = f"batch[{points.start}:{points.stop}]"
            require(
                part.size == len(want),
                f"`{call}` of {n} points must have the size {len(want)}; got {part.size}.",
            )
            got = subject.problem.gradients(part, names)
            require_close(got, want, subject, f"gradients({call}, names)", "those points' rows")

    @sheltered
    def test_weights_come_with_the_points(self, subject: Subject) -> None:
        """`batch.weights` are those of the data, also of a slice, and of data that is read."""
        batch, w = weighted_batch(subject)
        reference, rule = subject.problem.reference, "`batch.weights` must be those of the data"
        batches = [(batch, w), (batch[1:4], w[1:4])]
        if isinstance(subject.problem, ReadsData):
            (read,) = subject.problem.batches([weighted_data(subject, w)])
            batches.append((read, w))
        for part, want in batches:
            require(
                part.weights is not None and tuple(part.weights.shape) == want.shape,
                f"`batch.weights` must be the {len(want)} weights of its points; got "
                f"{part.weights!r}.",
            )
            require_like(part.weights, reference, "batch.weights")
            require_numbers(on_host(part.weights), want, rule, oracle_tolerance(reference))

    @sheltered
    def test_weights_enter_means_only(self, subject: Subject) -> None:
        """A mean is `Σ wᵢ(·)ᵢ / Σ wᵢ`, zero where all weights are; a point has its own numbers."""
        batch, w = weighted_batch(subject)
        tolerance = 10 * rounding(subject.problem.reference)
        for name, call in _calls_with_points(subject).items():
            whole = on_host(call(arguments(subject)))
            singles = [
                on_host(call(_part(subject, slice(at, at + 1), subject.part(at, at + 1))))
                for at in range(subject.points)
            ]
            for points in (slice(0, subject.points), slice(1, 4), slice(0, 1)):
                rule = (
                    f"`{name}` of weighted points must answer with {call.over.value}: weights "
                    "enter means and nothing else, and a batch of weight zero has the mean zero"
                )
                shares = list(w[points] / (np.sum(w[points]) or 1.0))
                want = _joined(call, singles[points], shares, whole, rule)
                got = call(_part(subject, points, batch[points]))
                require_same(got, want, rule, tolerance, terms=_largest(singles))


def _calls_with_points(subject: Subject) -> dict[str, Call]:
    calls = calls_of(subject).items()
    return {name: call for name, call in calls if call.over is not Over.NOTHING}


def _batches(subject: Subject, spans: Sequence[tuple[int, int]]) -> dict[str, list[Batch]]:
    """Return the parts by how they were made."""
    whole = subject.batch()
    return {
        "made": [subject.part(*span) for span in spans],
        "sliced": [whole[slice(*span)] for span in spans],
    }


def _part(subject: Subject, points: slice, batch: Batch, alike: bool = False) -> Arguments:
    return arguments(subject, batch=batch, points=points, alike=alike)


def _joined(
    call: Call, parts: Sequence[Tree], shares: Sequence[float], whole: Tree, rule: str
) -> list[Host]:
    """Return the leaves of the answer for all points from those for parts of them."""
    shapes = [[_shape(call, leaf) for leaf in leaves(part)] for part in (whole, *parts)]
    require(
        all(each == shapes[0] for each in shapes),
        f"{rule}; beside their points, some parts have the shapes "
        f"{next((each for each in shapes if each != shapes[0]), None)}, all together {shapes[0]}.",
    )
    columns = list(zip(*(leaves(part) for part in parts), strict=True))
    if call.over is Over.POINTS:
        return [np.concatenate(column, axis=call.axis(column[0])) for column in columns]
    factors = shares if call.over is Over.MEAN else [1.0] * len(parts)
    return [sum(f * leaf for f, leaf in zip(factors, column, strict=True)) for column in columns]


def _largest(parts: Sequence[Tree]) -> float:
    numbers = [np.max(np.abs(leaf), initial=0.0) for part in parts for leaf in leaves(part)]
    return float(max(numbers, default=0.0))


def _shape(call: Call, leaf: Host) -> tuple[int | str, ...]:
    shape: list[int | str] = list(leaf.shape)
    if call.over is Over.POINTS and call.axis(leaf) < leaf.ndim:
        shape[call.axis(leaf)] = "n"
    return tuple(shape)
