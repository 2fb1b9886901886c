"""The tasks of influence-core."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import documented
import numpy as np
import torch
from harness import Answer, serve
from workloads import Workload

import influence_torch


def ekfac(work: Workload, options: Mapping[str, Any]) -> Answer:
    """Fit and score EK-FAC; hand the factors over, so that the scores can be checked."""
    answer = Answer()
    model = documented.make(influence_torch, work, options)
    with answer.phase("fit"):
        model.fit(work.loader)
    with answer.phase("scores"):
        found = model.influences(*work.test, *work.train)
    answer.arrays["scores"] = found.numpy()
    for name, inverse in model._fitted.inverses.items():
        (layer,) = inverse.layers
        for kind, basis in (("inputs", layer.inputs), ("outputs", layer.outputs)):
            answer.arrays[f"{name}/{kind}"] = basis.numpy()
        answer.arrays[f"{name}/values"] = np.asarray(layer.values)
    return answer


def cost(work: Workload, options: Mapping[str, Any]) -> Answer:
    """Measure one call: seconds and the peak of memory.

    Option `call`: ``"fit"``, or ``"solve"`` for the gradients of the first `rows` points of `fit`.
    """
    answer = Answer()
    model = documented.make(influence_torch, work, options)
    if options["call"] == "fit":
        with answer.memory(), answer.phase("cost"):
            model.fit(work.loader)
        return answer
    model.fit(work.loader)
    rows = options["rows"]
    with answer.memory(), answer.phase("cost"):
        model.influence_factors(work.x_fit[:rows], work.y_fit[:rows])
    return answer


def training_pass(work: Workload, _options: Mapping[str, Any]) -> Answer:
    """Time a forward and a backward pass over the batches of `fit`, collated beforehand."""
    answer, batches = Answer(), list(work.loader)
    with answer.phase("pass"):
        for x, y in batches:
            loss = work.loss(work.model(x), y)
            torch.autograd.grad(loss, list(work.model.parameters()))
    return answer


NAMES = ("scores", "factors", "perturbation")
TASKS = {name: partial(getattr(documented, name), influence_torch) for name in NAMES}
TASKS |= {"cost": cost, "ekfac": ekfac, "training_pass": training_pass}

if __name__ == "__main__":
    serve(TASKS)
