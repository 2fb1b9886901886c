"""Backends that break one promise each, and the checks that must catch them.

`Complete` keeps every promise and offers every protocol. A mutant says in `caught` which checks of
the kit have to fail on it, in `library` on which arrays, and in `raises` with which exception: its
own where the defect is that it raises.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
from namespaces import NUMPY, STRICT_DEVICE, TORCH

from influence_core.arrays import move, namespace
from influence_core.modes import LabelKind
from influence_core.plugins import BackendSpec
from influence_core.problem import FreeParameters, Labels, Layer, LayerStatistics
from influence_core.testing import BACKEND, ClosedFormBatch, ClosedFormProblem, TanhNetwork


@dataclass(frozen=True)
class Watched(TanhNetwork):
    """Has what frameworks keep in a model beside its parameters."""

    state: dict = field(
        default_factory=lambda: {
            "mode": {"training": True},
            "buffers": {"mean": np.zeros(3)},
            "hooks": [],
            "requires_grad": [True] * 4,
        }
    )


class Complete(ClosedFormProblem):
    """Keeps every promise."""

    library = NUMPY
    caught: tuple[str, ...] = ()
    raises: type[Exception] = AssertionError

    def __init__(self, model, loss=None, **options):
        self._model = model
        super().__init__(model, loss, **options)

    @classmethod
    def spec(cls):
        return BackendSpec("mutant", f"{cls.__module__}:{cls.__name__}", BACKEND.model_types)

    def batches(self, data):
        return (self.batch(pair) for pair in data)

    def indexed(self, data):
        return list(data)

    def hand_over(self, answer):
        return answer

    @contextmanager
    def shelter(self):
        yield

    def hessian_product(self, batch, v, names):
        return super().linearize(batch, names)(v)  # whatever a mutant makes of `linearize`

    def hessian_quadratics(self, batch, v, names):
        def product(part, row, names):
            return super(Complete, self).linearize(part, names)(row)

        return _quadratics(product, batch, v, names)

    def generalized_gauss_newton_quadratics(self, batch, v, names):
        return _quadratics(super().generalized_gauss_newton_product, batch, v, names)


def _quadratics(product, batch, v, names):
    xp = namespace(v)
    parts = [unweighted(batch[i : i + 1]) for i in range(batch.size)]
    rows = [product(part, v[i : i + 1, :], names) for i, part in enumerate(parts)]
    return xp.sum(xp.concat(rows) * v, axis=1)


def unweighted(batch):
    return replace(batch, weights=None)


# scale


class SumsTheHessian(Complete):
    caught = (
        "hessian_product",
        "points_are_independent",
        "influences_by_direct",
        "influences_by_conjugate_gradient",
    )

    def hessian_product(self, batch, v, names):
        return batch.size * super().hessian_product(batch, v, names)


class AveragesGradients(Complete):
    caught = ("gradients", "points_are_independent", "slices_of_a_batch_are_batches")

    def gradients(self, batch, names):
        return super().gradients(batch, names) / batch.size


class AveragesProducts(Complete):
    caught = ("gradient_products",)

    def gradient_products(self, batch, v, names):
        return super().gradient_products(batch, v, names) / batch.size


class AveragesCombinations(Complete):
    caught = ("gradient_combinations",)

    def gradient_combinations(self, batch, w, names):
        return super().gradient_combinations(batch, w, names) / batch.size


class DividesByTheSizeOfTheFirstBatch(Complete):
    caught = ("points_are_independent",)

    def hessian_product(self, batch, v, names):
        self._first = getattr(self, "_first", batch.size)
        return super().hessian_product(batch, v, names) * batch.size / self._first


class SumsTheGaussNewtonMatrix(Complete):
    caught = ("gauss_newton_product", "points_are_independent")

    def generalized_gauss_newton_product(self, batch, v, names):
        return batch.size * super().generalized_gauss_newton_product(batch, v, names)


# the model


class ReadsTheLiveModel(Complete):
    caught = ("parameters_are_copied",)
    _values = property(lambda self: self._model.parameters, lambda self, values: None)


class KeepsItsParametersOnTheClass(Complete):
    """The problem that was made last answers for all."""

    caught = ("parameters_are_copied",)
    _latest = None

    @property
    def _values(self):
        return type(self)._latest

    @_values.setter
    def _values(self, values):
        type(self)._latest = values


class RemembersTheModel(Complete):
    """Copies the parameters of a model when it first meets it."""

    caught = ("parameters_are_copied",)
    _known = ()

    def __init__(self, model, loss=None, **options):
        super().__init__(model, loss, **options)
        for known, values in self._known:
            if known is model:
                self._values = values
        type(self)._known = (*self._known, (model, self._values))


class SwitchesTheMode(Complete):
    caught = ("the_model_is_left_alone",)

    def __init__(self, model, loss=None, **options):
        super().__init__(model, loss, **options)
        model.state["mode"]["training"] = False


class SwitchesTheModeToValidate(Complete):
    caught = ("the_model_is_left_alone",)

    def validate(self, batch, where):
        super().validate(batch, where)
        self._model.state["mode"]["training"] = False


class MovesTheStatistics(Complete):
    """As a normalisation does in training."""

    caught = ("the_model_is_left_alone",)

    def mixed_gradient_products(self, batch, v, names):
        self._model.state["buffers"]["mean"] += batch.x.mean(axis=0)
        return super().mixed_gradient_products(batch, v, names)


class AddsABuffer(Complete):
    caught = ("the_model_is_left_alone",)

    def linearize(self, batch, names):
        self._model.state["buffers"]["cache"] = np.zeros(1)
        return super().linearize(batch, names)


class LeavesAHook(Complete):
    caught = ("the_model_is_left_alone",)

    def layer_statistics(self, batch, layers, labels):
        self._model.state["hooks"].append(print)
        return super().layer_statistics(batch, layers, labels)


class FreezesTheParameters(Complete):
    caught = ("the_model_is_left_alone",)

    def to(self, device):
        self._model.state["requires_grad"][0] = False
        return super().to(device)


# points


class GivesEveryPointTheMeanGradient(Complete):
    caught = ("gradients",)

    def gradients(self, batch, names):
        rows = super().gradients(batch, names)
        return np.zeros_like(rows) + rows.mean(axis=0)


class NormalizesOverTheBatch(Complete):
    """Right for the whole data only, as statistics of a batch would be."""

    caught = ("points_are_independent",)

    def gradients(self, batch, names):
        return super().gradients(batch, names) * batch.size / 7

    def mixed_gradient_products(self, batch, v, names):
        return super().mixed_gradient_products(batch, v, names) * batch.size / 7


class NeedsTwoPoints(Complete):
    caught = ("a_batch_may_have_one_point",)
    raises = ZeroDivisionError

    def hessian_product(self, batch, v, names):
        if batch.size == 1:
            raise ZeroDivisionError
        return super().hessian_product(batch, v, names)


class IgnoresWeights(Complete):
    caught = ("weights_enter_means_only",)

    def _shares(self, batch):
        return super()._shares(unweighted(batch))


class WeighsGradients(Complete):
    caught = ("weights_enter_means_only",)

    def gradients(self, batch, names):
        rows = super().gradients(batch, names)
        return rows if batch.weights is None else rows * batch.weights[:, None]


# columns


class TransposesWeights(Complete):
    caught = ("gradients", "gradient_combinations", "hessian_product")

    def _columns(self, arrays, names):
        turned = {n: a.swapaxes(-1, -2) if a.ndim == 3 else a for n, a in arrays.items()}
        return super()._columns(turned, names)


class IgnoresTheOrderOfNames(Complete):
    caught = ("gradients", "gradient_products", "values")

    def _sorted(self, names):
        return [name for name in self.parameters if name in names]

    def gradients(self, batch, names):
        return super().gradients(batch, self._sorted(names))

    def gradient_products(self, batch, v, names):
        return super().gradient_products(batch, v, self._sorted(names))

    def values(self, names):
        return super().values(self._sorted(names))


class AnswersForAllParameters(Complete):
    caught = ("hessian_product",)

    def hessian_product(self, batch, v, names):
        everything = list(self.parameters)
        rows = np.zeros((len(v), 14))
        rows[:, : v.shape[1]] = v
        return super().hessian_product(batch, rows, everything)[:, : v.shape[1]]


class TakesARangeOfParameters(Complete):
    """Right where the names stand together in the model's order, or are turned around."""

    caught = ("hessian_product", "mixed_gradient_products")

    def hessian_product(self, batch, v, names):
        return self._through_a_range(super().hessian_product, batch, v, names, columns=True)

    def mixed_gradient_products(self, batch, v, names):
        return self._through_a_range(super().mixed_gradient_products, batch, v, names)

    def _through_a_range(self, product, batch, v, names, columns=False):
        everything = list(self.parameters)
        places = [everything.index(name) for name in names]
        if places != sorted(places):
            return product(batch, v, names)
        span = everything[places[0] : places[-1] + 1]
        width = sum(np.prod(self.parameters[name]) for name in span)
        wide = np.zeros((len(v), width))
        wide[:, : v.shape[1]] = v
        answer = product(batch, wide, span)
        return answer[:, : v.shape[1]] if columns else answer


class TakesAShortcutForOneVector(Complete):
    caught = ("hessian_product", "gradient_products")

    def hessian_product(self, batch, v, names):
        names = names if len(v) > 1 else sorted(names, key=list(self.parameters).index)
        return super().hessian_product(batch, v, names)

    def gradient_products(self, batch, v, names):
        names = names if len(v) > 1 else sorted(names, key=list(self.parameters).index)
        return super().gradient_products(batch, v, names)


class ReversesItsParameters(Complete):
    caught = ("parameters_are_those_of_the_model",)

    @property
    def parameters(self):
        return dict(reversed(super().parameters.items()))


# algebra; the errors are below what an oracle can see


class IsNotSymmetric(Complete):
    caught = ("hessian_is_symmetric", "gauss_newton_is_symmetric")

    def hessian_product(self, batch, v, names):
        return self._bent(super().hessian_product(batch, v, names), v)

    def generalized_gauss_newton_product(self, batch, v, names):
        return self._bent(super().generalized_gauss_newton_product(batch, v, names), v)

    def _bent(self, rows, v):
        rows[:, 0] += 1e-7 * v[:, -1]
        return rows


class IsNotLinear(IsNotSymmetric):
    caught = ("hessian_is_linear", "gauss_newton_is_linear")

    def _bent(self, rows, v):
        return rows + 1e-7 * v**2


class IsNotDeterministic(Complete):
    caught = ("answers_are_deterministic",)
    _noise = np.random.default_rng(0)

    def gradients(self, batch, names):
        rows = super().gradients(batch, names)
        return rows + 1e-8 * self._noise.standard_normal(rows.shape)


# other derivatives


class TurnsTheSignOfMixedProducts(Complete):
    caught = ("mixed_gradient_products", "influences_of_perturbations")

    def mixed_gradient_products(self, batch, v, names):
        return -super().mixed_gradient_products(batch, v, names)


class TakesTheHessianForGaussNewton(Complete):
    caught = ("gauss_newton_product", "influences_with_gauss_newton")

    def generalized_gauss_newton_product(self, batch, v, names):
        return super().hessian_product(batch, v, names)


class TakesTheMeanMatrixForEveryPoint(Complete):
    caught = ("hessian_quadratics", "gauss_newton_quadratics")

    def hessian_quadratics(self, batch, v, names):
        return np.sum(super().hessian_product(batch, v, names) * v, axis=1)

    def generalized_gauss_newton_quadratics(self, batch, v, names):
        return np.sum(super().generalized_gauss_newton_product(batch, v, names) * v, axis=1)


class LinearizesForOneVector(Complete):
    caught = ("linearize",)

    def linearize(self, batch, names):
        product, kept = super().linearize(batch, names), []

        def once(v):
            kept.append(product(v))
            return np.resize(kept[0], v.shape)

        return once


# memory


class ReturnsItsBuffer(Complete):
    caught = ("answers_stay_as_they_were",)

    def hessian_product(self, batch, v, names):
        buffers = vars(self).setdefault("_buffers", {})
        buffer = buffers.setdefault(v.shape, np.empty_like(v))
        buffer[...] = super().hessian_product(batch, v, names)
        return buffer


class ReturnsItsParameters(Complete):
    caught = ("answers_alias_nothing",)

    def values(self, names):
        kept = vars(self).setdefault("_kept", {})
        return kept.setdefault(tuple(names), super().values(names))


class ReturnsTheInputs(Complete):
    caught = ("answers_alias_nothing",)

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, layers, labels)
        if "hidden" in found:
            gradients = found["hidden"].output_gradients
            found["hidden"] = LayerStatistics(batch.x[:, None, :], gradients)
        return found


class MovesTheParameters(Complete):
    caught = ("the_model_is_left_alone",)

    def gradients(self, batch, names):
        self._model.parameters["hidden.bias"][...] += 1e-9
        return super().gradients(batch, names)


class ChangesTheData(Complete):
    caught = ("arguments_are_left_alone",)

    def hessian_product(self, batch, v, names):
        batch.x[0] += 1e-9
        return super().hessian_product(batch, v, names)


class ChangesTheVectors(Complete):
    caught = ("arguments_are_left_alone",)

    def gradient_products(self, batch, v, names):
        answer = super().gradient_products(batch, v, names)
        v *= 2.0
        return answer


class UsesTwoBuffersInTurn(Complete):
    caught = ("answers_stay_as_they_were",)

    def hessian_product(self, batch, v, names):
        calls = vars(self).setdefault("_calls", itertools.count())
        buffers = vars(self).setdefault("_buffers", {})
        buffer = buffers.setdefault((v.shape, next(calls) % 2), np.empty_like(v))
        buffer[...] = super().hessian_product(batch, v, names)
        return buffer


class SharesABufferAmongItsMethods(Complete):
    """Each returns the buffer and leaves a new one, which the other overwrites too late."""

    caught = ("answers_stay_as_they_were",)

    def gradient_combinations(self, batch, w, names):
        self._buffer = super().gradient_combinations(batch, w, names)
        return self._buffer

    def hessian_product(self, batch, v, names):
        answer = super().hessian_product(batch, v, names)
        buffer = vars(self).get("_buffer")
        if buffer is not None and buffer.shape == answer.shape:
            buffer[...] = answer
        return answer


class LinearizesTheLatestBatch(Complete):
    caught = ("linearizations_stand_alone",)

    def linearize(self, batch, names):
        self._latest = batch, names
        latest = super().linearize
        return lambda v: latest(*self._latest)(v)


class LinearizesIntoABuffer(Complete):
    caught = ("linearizations_stand_alone",)

    def linearize(self, batch, names):
        product, buffers = super().linearize(batch, names), {}

        def into_buffer(v):
            buffer = buffers.setdefault(v.shape, np.empty_like(v))
            buffer[...] = product(v)
            return buffer

        return into_buffer


class Shortens(Complete):
    caught = ("answers_follow_the_reference", "hessian_product")

    def hessian_product(self, batch, v, names):
        return super().hessian_product(batch, v, names).astype(np.float32)


class KeepsTheGraph(Complete):
    library = TORCH
    caught = ("answers_follow_the_reference", "gradients")

    def gradients(self, batch, names):
        return super().gradients(batch, names).requires_grad_()


class AnswersOnAnotherDevice(Complete):
    library = STRICT_DEVICE
    caught = ("answers_follow_the_reference", "gradients")

    def gradients(self, batch, names):
        home = namespace(self.reference).Device("CPU_DEVICE")
        return move(super().gradients(batch, names), home)


class MovesTheGlobalGenerator(Complete):
    caught = ("random_states_are_left_alone",)

    def gradients(self, batch, names):
        np.random.random()  # noqa: NPY002 - the defect
        return super().gradients(batch, names)


class ShufflesWhatItReads(Complete):
    caught = ("random_states_are_left_alone",)

    def batches(self, data):
        data = list(data)
        np.random.permutation(len(data))  # noqa: NPY002 - the defect
        return super().batches(data)


class NormalizesWhatItChecks(Complete):
    caught = ("arguments_are_left_alone",)

    def validate(self, batch, where):
        super().validate(batch, where)
        batch.x[...] /= 1 + 1e-9


class KeepsTheStateOfACall(Complete):
    caught = ("threads_do_not_disturb_each_other",)

    def gradients(self, batch, names):
        self._names = names
        time.sleep(0.002)
        return super().gradients(batch, self._names)


class HoldsALock(Complete):
    caught = ("problems_pickle",)

    def __init__(self, model, loss=None, **options):
        super().__init__(model, loss, **options)
        self._lock = threading.Lock()


class EmptiesItselfToBePickled(Complete):
    caught = ("problems_pickle",)

    def __getstate__(self):
        state = self.__dict__
        values = state.pop("_values")
        self._values = {name: 0 * value for name, value in values.items()}
        return {**state, "_values": values}


class EmptiesItselfToMove(Complete):
    caught = ("problems_move",)

    def to(self, device):
        moved = super().to(device)
        self._values = {name: 0 * value for name, value in self._values.items()}
        return moved


# batches


@dataclass(frozen=True)
class WrongBatch(ClosedFormBatch):
    """Counts in an integer of NumPy's, and takes slices without their weights one point late."""

    @property
    def size(self):
        return np.int64(self.x.shape[0])

    def __getitem__(self, points):
        part = unweighted(super().__getitem__(points))
        return replace(part, x=np.roll(part.x, 1, axis=0))


class MakesWrongBatches(Complete):
    caught = (
        "batch_counts_its_points",
        "slices_of_a_batch_are_batches",
        "weights_come_with_the_points",
    )

    def batch(self, data):
        batch = super().batch(data)
        return WrongBatch(batch.x, batch.targets, batch.weights)


class TakesAnything(Complete):
    caught = (
        "no_points_are_refused",
        "lengths_that_differ_are_refused",
        "numbers_that_are_not_finite_are_refused",
        "unknown_options_are_refused",
    )

    def __init__(self, model, loss=None, *, max_memory=None, penalty=None, **others):
        super().__init__(model, loss, max_memory=max_memory, penalty=penalty)

    def batch(self, data):
        x, y, *weights = data
        n = min(len(x), len(y))
        return ClosedFormBatch(x[:n], y[:n], *weights)

    def validate(self, batch, where):
        pass


class HasWeightsOfAnotherType(Complete):
    caught = ("weights_come_with_the_points",)

    def batch(self, data):
        batch = super().batch(data)
        if batch.weights is None:
            return batch
        return replace(batch, weights=batch.weights.astype(np.float32))


class TakesAnyWeights(Complete):
    caught = ("lengths_that_differ_are_refused", "numbers_that_are_not_finite_are_refused")

    def batch(self, data):
        x, y, *weights = data
        batch = super().batch((x, y))
        given = np.resize(weights[0], batch.size) if weights else None
        return replace(batch, weights=given)

    def validate(self, batch, where):
        super().validate(unweighted(batch), where)


class LosesTheWeightsItReads(Complete):
    caught = ("weights_come_with_the_points",)

    def batches(self, data):
        return (self.batch((x, y)) for x, y, *_ in data)


class RefusesAWeightOfZero(Complete):
    caught = ("good_data_is_accepted",)
    raises = ValueError

    def validate(self, batch, where):
        super().validate(batch, where)
        if batch.weights is not None and not np.all(batch.weights):
            raise ValueError(where)


class RefusesOnePoint(Complete):
    caught = ("good_data_is_accepted",)
    raises = ValueError

    def validate(self, batch, where):
        super().validate(batch, where)
        if batch.size == 1:
            raise ValueError(where)


class HasAReferenceOfIntegers(Complete):
    caught = ("reference_is_floating_point",)

    @property
    def reference(self):
        return np.arange(3)


class ForgetsRowsWhereMemoryIsShort(Complete):
    caught = ("memory_limit_changes_no_number",)

    def _by_rows(self, product, v, batch):
        answer = product(v)
        if self._max_memory is not None:
            answer[3:] = 0.0
        return answer


# layers


class ScalesLayerGradients(Complete):
    caught = ("given_labels_rebuild_the_gradients",)

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, layers, labels)
        return {
            name: LayerStatistics(each.inputs, each.output_gradients / batch.size)
            for name, each in found.items()
        }


class ForgetsTheRootOfTheProbability(Complete):
    caught = ("expected_labels_rebuild_the_fisher_matrix",)

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, layers, labels)
        if labels.kind is not LabelKind.EXPECTED:
            return found
        return {
            name: LayerStatistics(each.inputs, each.output_gradients * 1.5)
            for name, each in found.items()
        }


class DrawsItsOwnLabels(Complete):
    caught = ("sampled_labels_follow_the_uniforms",)

    def layer_statistics(self, batch, layers, labels):
        own = Labels(labels.kind, lambda positions: np.full((3, batch.size, positions), 0.3))
        return super().layer_statistics(batch, layers, own)


class MixesUpTheUniforms(Complete):
    """The points take the numbers of others: who takes which depends on the batch."""

    caught = ("points_are_independent",)

    def layer_statistics(self, batch, layers, labels):
        mixed = Labels(labels.kind, lambda positions: labels.uniforms(positions)[:, ::-1])
        return super().layer_statistics(batch, layers, mixed)


class SwapsInputsAndOutputs(Complete):
    caught = ("layers_name_their_parameters",)

    def layers(self):
        found = super().layers()
        return {k: Layer(a.weight, a.bias, a.outputs, a.inputs) for k, a in found.items()}


class GivesAParameterToTwoLayers(Complete):
    caught = ("layers_name_their_parameters",)

    def layers(self):
        found = super().layers()
        return {**found, "again": FreeParameters(("output.bias",), 2)}


class CountsTooManyParameters(Complete):
    caught = ("layers_name_their_parameters",)

    def layers(self):
        return {"all": FreeParameters(tuple(self.parameters), 15)}


class CallsEverythingPadding(Complete):
    caught = ("statistics_have_their_shapes",)

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, layers, labels)
        return {name: replace(each, counted=self._counted(each)) for name, each in found.items()}

    def _counted(self, statistics):
        return np.zeros(statistics.inputs.shape[:2])


class CountsPointsForPositions(CallsEverythingPadding):
    caught = ("statistics_have_their_shapes",)

    def _counted(self, statistics):
        return np.ones(len(statistics.inputs))


class LeavesOutThePositions(Complete):
    caught = ("statistics_have_their_shapes",)

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, layers, labels)
        return {
            name: LayerStatistics(each.inputs[:, 0, :], each.output_gradients)
            for name, each in found.items()
        }


class MixesUpTheLayers(Complete):
    caught = ("only_the_layers_asked_for_answer",)

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, list(self.layers()), labels)
        return dict(zip(layers, found.values(), strict=False))


class ForgetsTheNumberOfDraws(Complete):
    caught = ("sampled_labels_rebuild_the_fisher_matrix",)

    def layer_statistics(self, batch, layers, labels):
        found = super().layer_statistics(batch, layers, labels)
        if labels.kind is not LabelKind.SAMPLED:
            return found
        return {
            name: LayerStatistics(
                each.inputs, each.output_gradients * len(each.output_gradients) ** 0.5
            )
            for name, each in found.items()
        }


class TakesGivenLabelsUnlessTold(Complete):
    caught = ("labels_may_be_left_to_the_backend",)

    def layer_statistics(self, batch, layers, labels):
        if labels.kind is None:
            labels = replace(labels, kind=LabelKind.GIVEN)
        return super().layer_statistics(batch, layers, labels)


class DropsTheLastPartWhereMemoryIsShort(Complete):
    caught = ("memory_limit_changes_no_number",)

    def gradient_combinations(self, batch, w, names):
        if self._max_memory is None:
            return super().gradient_combinations(batch, w, names)
        cuts = range(0, batch.size - 2, 2)  # the last part, of one point or two, is left out
        parts = [
            super(DropsTheLastPartWhereMemoryIsShort, self).gradient_combinations(
                batch[at : at + 2], w[:, at : at + 2], names
            )
            for at in cuts
        ]
        return sum(parts[1:], start=parts[0])


class AnswersForAllLayers(Complete):
    caught = ("only_the_layers_asked_for_answer",)

    def layer_statistics(self, batch, layers, labels):
        return super().layer_statistics(batch, list(self.layers()), labels)


# other abilities


class IgnoresThePenalty(Complete):
    caught = ("penalty", "influences_by_direct")

    def penalty(self, names, weight):
        return 0 * super().penalty(names, weight)


class LosesTheLastBatch(Complete):
    caught = ("data_is_read_in_batches",)

    def batches(self, data):
        return (self.batch(pair) for pair in data[:-1])


class IndexesBackwards(Complete):
    caught = ("data_is_read_by_index",)

    def indexed(self, data):
        return list(data)[::-1]


class LosesItsParametersOnTheWay(Complete):
    caught = ("problems_move",)

    def to(self, device):
        moved = super().to(device)
        moved._values = {name: 0 * value for name, value in moved._values.items()}
        return moved


class ScalesWhatItHandsOver(Complete):
    caught = ("answers_are_handed_over", "influences_by_direct")

    def hand_over(self, answer):
        return 2 * answer


class SheltersOnce(Complete):
    caught = ("shelter_can_be_entered_again",)
    raises = RuntimeError
    _entered = False

    @contextmanager
    def shelter(self):
        if self._entered:
            raise RuntimeError("entered twice")
        self._entered = True
        try:
            yield
        finally:
            self._entered = False


class SheltersFromErrors(Complete):
    """Nearly every check would pass in such a shelter."""

    caught = ("errors_leave_a_shelter",)

    @contextmanager
    def shelter(self):
        with suppress(Exception):
            yield


class ForgetsItsLimit(Complete):
    caught = ("memory_limit_is_told",)
    max_memory = 2**30


class TellsNoLimit(Complete):
    caught = ("memory_limit_is_told",)

    @property
    def max_memory(self):
        return self._max_memory
