"""Mutants that are wrong in one call and in one circumstance: every call, every circumstance.

A defect is `(problem, answer, batch or None, …) ↦` a wrong answer, or the right one where its
circumstance is not given. `family` makes of it a mutant for each call.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from mutants import Complete
from subjects import POINTS

OF_PARAMETERS = ("penalty", "values")
OF_BATCHES = (
    "gradients",
    "gradient_products",
    "gradient_combinations",
    "hessian_product",
    "linearize",
    "generalized_gauss_newton_product",
    "hessian_quadratics",
    "generalized_gauss_newton_quadratics",
    "mixed_gradient_products",
    "layer_statistics",
)
WITH_VECTORS = tuple(
    name for name in OF_BATCHES if name not in ("gradients", "linearize", "layer_statistics")
)


def changed(answer, change):
    """The answer of any call with `change` applied to its numbers."""
    if callable(answer):
        return lambda v: change(answer(v))
    if isinstance(answer, dict):
        return {
            name: replace(each, output_gradients=change(each.output_gradients))
            for name, each in answer.items()
        }
    return change(answer)


def doubled(answer):
    return changed(answer, lambda numbers: 2 * numbers)


class Circumstances(Complete):
    """Knows what has happened to it."""

    pickled = moved = False

    @property
    def little(self):
        return self._max_memory is not None

    def __setstate__(self, state):
        self.__dict__.update(state, pickled=True)

    def to(self, device):
        moved = super().to(device)
        moved.moved = True
        return moved


def family(word, calls, caught, defect):
    """Define a mutant for each of the calls, called by the word and the name of the call.

    `caught` is the check that must catch them, or name of call ↦ check.
    """

    def override(name):
        def call(self, *arguments):
            return defect(self, getattr(super(Circumstances, self), name)(*arguments), *arguments)

        return call

    for name in calls:
        title = f"{word}_{name}"
        check = caught[name] if isinstance(caught, dict) else caught
        body = {"__module__": __name__, "caught": (check,), name: override(name)}
        globals()[title] = type(title, (Circumstances,), body)


def _scales_with_the_batch(problem, answer, batch, *_):
    return changed(answer, lambda numbers: numbers * (batch.size / POINTS))


def _remembers_by_size(problem, answer, batch, *others):
    """Answers a question anew unless it was asked about as many points before."""
    key = (
        batch.size,
        *(each.tobytes() if hasattr(each, "tobytes") else str(each) for each in others),
    )
    return copy.deepcopy(vars(problem).setdefault("_remembered", {}).setdefault(key, answer))


def _weighs(problem, answer, batch, *_):
    return answer if batch.weights is None else doubled(answer)


def _learns_from_the_first_batch(problem, answer, batch, *_):
    first = vars(problem).setdefault("_first", batch.size)
    return doubled(answer) if first == 1 else answer


def _forgets_where_memory_is_short(problem, answer, *_):
    return changed(answer, lambda numbers: 0 * numbers) if problem.little else answer


def _is_wrong_after_pickling(problem, answer, *_):
    return doubled(answer) if problem.pickled and not problem.little else answer


def _is_wrong_after_pickling_where_memory_is_short(problem, answer, *_):
    return doubled(answer) if problem.pickled and problem.little else answer


def _is_wrong_after_moving(problem, answer, *_):
    return doubled(answer) if problem.moved and not problem.little else answer


def _is_wrong_after_moving_where_memory_is_short(problem, answer, *_):
    return doubled(answer) if problem.moved and problem.little else answer


def _rounds(problem, answer, *_):
    return changed(answer, lambda numbers: numbers.astype(np.float32).astype(np.float64))


def _wants_one_block(problem, answer, batch, v, *_):
    return answer if v.flags["C_CONTIGUOUS"] else doubled(answer)


family("ScalesWithTheBatch", OF_BATCHES, "points_are_independent", _scales_with_the_batch)
family("RemembersBySize", OF_BATCHES, "points_are_independent", _remembers_by_size)
family("Weighs", OF_BATCHES, "weights_enter_means_only", _weighs)
family(
    "LearnsFromTheFirstBatch",
    OF_BATCHES,
    "a_batch_may_have_one_point",
    _learns_from_the_first_batch,
)
EVERYTHING = OF_BATCHES + OF_PARAMETERS
family(
    "ForgetsWhereMemoryIsShort",
    EVERYTHING,
    "memory_limit_changes_no_number",
    _forgets_where_memory_is_short,
)
family("IsPickledWrongly", EVERYTHING, "problems_pickle", _is_wrong_after_pickling)
family(
    "IsPickledWronglyWithLittleMemory",
    EVERYTHING,
    "problems_pickle",
    _is_wrong_after_pickling_where_memory_is_short,
)
family("IsMovedWrongly", EVERYTHING, "problems_move", _is_wrong_after_moving)
family(
    "IsMovedWronglyWithLittleMemory",
    EVERYTHING,
    "problems_move",
    _is_wrong_after_moving_where_memory_is_short,
)
family("WantsOneBlockOfMemory", WITH_VECTORS, "vectors_may_be_views", _wants_one_block)
family(
    "Rounds",
    (*OF_BATCHES, "values"),
    {
        "gradients": "gradients_explain_their_products",
        "gradient_products": "gradients_explain_their_products",
        "gradient_combinations": "gradients_explain_their_products",
        "hessian_product": "hessian_is_linear",
        "linearize": "linearizations_stand_alone",
        "generalized_gauss_newton_product": "gauss_newton_is_linear",
        "hessian_quadratics": "hessian_quadratics",
        "generalized_gauss_newton_quadratics": "gauss_newton_quadratics",
        "mixed_gradient_products": "mixed_products_are_linear",
        "layer_statistics": "given_labels_rebuild_the_gradients",
        "values": "values",
    },
    _rounds,
)
