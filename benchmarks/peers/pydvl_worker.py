"""The tasks of pyDVL 0.10.0, in its own environment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import documented
import numpy as np
import pydvl.influence.torch
import torch
from harness import Answer, serve
from pydvl.influence import InfluenceMode
from workloads import Workload

CLASSES = SimpleNamespace(InfluenceMode=InfluenceMode, **vars(pydvl.influence.torch))


def cg_rows(work: Workload, options: Mapping[str, Any]) -> Answer:
    """Solve row by row for `budget` seconds, each row to a residual of `rtol` times its norm.

    pyDVL compares the norm of the residual with the square of its tolerances, and takes the norm of
    a column of the right-hand sides for that of a row; so every row has an instance of its own,
    whose `atol` makes it stop where it should.
    """
    answer, found = Answer(), []
    gradients = _gradients(work)
    for x, y, norm in zip(*work.test, gradients.norm(dim=1).tolist(), strict=True):
        stop = {"rtol": 0.0, "atol": (options["rtol"] * norm) ** 0.5}
        settings = {**options, "method": "CgInfluence", "keywords": stop}
        with answer.phase("solve"):
            model = documented.make(CLASSES, work, settings).fit(work.loader)
            found.append(model.influence_factors(x[None], y[None]))
        if answer.total > options["budget"]:
            break
    answer.numbers["rows"] = len(found)
    factors = torch.cat(found)
    answer.arrays["factors"] = factors.detach().numpy()
    answer.arrays["scores"] = model.influences_from_factors(factors, *work.train).detach().numpy()
    return answer


def ekfac(work: Workload, options: Mapping[str, Any]) -> Answer:
    """Fit and score EK-FAC; hand the factors over, so that the scores can be checked."""
    answer = Answer()
    model = documented.make(CLASSES, work, options)
    with answer.phase("fit"):
        model.fit(work.loader)
    with answer.phase("scores"):
        found = model.influences(*work.test, *work.train)
    answer.arrays["scores"] = found.detach().numpy()
    for name, (_, inputs, outputs, values) in model.ekfac_representation:
        shape = len(outputs), len(inputs)
        answer.arrays[f"{name}/inputs"] = inputs.T.detach().numpy()
        answer.arrays[f"{name}/outputs"] = outputs.T.detach().numpy()
        answer.arrays[f"{name}/values"] = np.asarray(values.detach().reshape(shape))
    return answer


def _gradients(work: Workload) -> torch.Tensor:
    rows = []
    for x, y in zip(*work.test, strict=True):
        loss = work.loss(work.model(x[None]), y[None])
        parts = torch.autograd.grad(loss, list(work.model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


NAMES = ("scores", "factors", "perturbation")
TASKS = {name: partial(getattr(documented, name), CLASSES) for name in NAMES}
TASKS |= {"cg_rows": cg_rows, "ekfac": ekfac}

if __name__ == "__main__":
    serve(TASKS)
