"""Tasks written against the documented classes, which influence_torch and pyDVL share.

Every function takes the module that has the classes, a workload and options that JSON can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from harness import Answer
from workloads import Workload


def make(module: ModuleType, work: Workload, options: Mapping[str, Any]) -> Any:
    """Return an unfitted instance of the class that the options name.

    Options: `method`, the name of the class; `regularization`, the workload's if it is missing;
    `curvature`, the value of a `SecondOrderMode`; `preconditioner`, a name and its arguments;
    `keywords`, anything else.
    """
    kind = getattr(module, options["method"])
    keywords = dict(options.get("keywords", {}))
    if "curvature" in options:
        keywords["second_order_mode"] = module.SecondOrderMode(options["curvature"])
    if "preconditioner" in options:
        name, *arguments = options["preconditioner"]
        keywords["preconditioner"] = getattr(module, name)(*arguments)
    regularization = options.get("regularization", work.regularization)
    if options["method"] == "EkfacInfluence":
        return kind(work.model, hessian_regularization=regularization, **keywords)
    return kind(work.model, work.loss, regularization=regularization, **keywords)


def scores(module: ModuleType, work: Workload, options: Mapping[str, Any]) -> Answer:
    """Fit and score, and score again at each λ of the option `further`.

    Phases `fit`, `scores`, `further`; arrays `scores`, `(1 + r, m, n)`.
    """
    answer, parts = Answer(), []
    model = make(module, work, options)
    with answer.phase("fit"):
        model.fit(work.loader)
    with answer.phase("scores"):
        parts.append(model.influences(*work.test, *work.train))
    for value in options.get("further", ()):
        with answer.phase("further"):
            parts.append(model.with_regularization(value).influences(*work.test, *work.train))
    answer.arrays["scores"] = torch.stack(parts).detach().numpy()
    return answer


def factors(module: ModuleType, work: Workload, options: Mapping[str, Any]) -> Answer:
    """Fit and solve for the gradients of the test points.

    In float64 with the option `double`. Phases `fit`, `solve`; arrays `factors`, `(m, p)`, and
    their products `scores`, `(m, n)`; number `steps` where the model reports them.
    """
    answer = Answer()
    work = work.double() if options.get("double") else work
    model = make(module, work, options)
    with answer.phase("fit"):
        model.fit(work.loader)
    with answer.phase("solve"):
        found = model.influence_factors(*work.test)
    if report := getattr(model, "report", None):
        answer.numbers["steps"] = float(report.iterations.max())
    answer.arrays["factors"] = found.detach().numpy()
    answer.arrays["scores"] = model.influences_from_factors(found, *work.train).detach().numpy()
    return answer


def perturbation(module: ModuleType, work: Workload, options: Mapping[str, Any]) -> Answer:
    """Fit, then measure one call in perturbation mode for the first points: peak and seconds.

    Options `test` and `train` are numbers of points; with `solved` the solve for the test points is
    not part of what is measured.
    """
    answer = Answer()
    model = make(module, work, options).fit(work.loader)
    m, n = options["test"], options["train"]
    mode = module.InfluenceMode.Perturbation
    test, train = (side[:m] for side in work.test), [side[:n] for side in work.train]
    if options.get("solved"):
        left, call = [model.influence_factors(*test)], model.influences_from_factors
    else:
        left, call = list(test), model.influences
    with answer.memory(), answer.phase("scores"):
        found = call(*left, *train, mode=mode)
    answer.arrays["scores"] = found.detach().numpy()
    return answer
