"""Reading a fitted model from disk, for a model with the parameters of the fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from influence_core.arrays import exchange_for
from influence_core.blocks import make_blocks
from influence_core.calls import InfluenceFunctionModel
from influence_core.curvature import make_curvature
from influence_core.fitted import FittedInfluence, Training
from influence_core.methods import Method
from influence_core.modes import SecondOrderMode
from influence_core.objective import Objective
from influence_core.optimality import Optimality
from influence_core.plugins import find_backend
from influence_core.problem import Problem
from influence_core.storage import data as points
from influence_core.storage import files, parameters
from influence_core.storage.setup import class_of, options_of, package_of
from influence_core.storage.state import Surroundings, Unpacker


def load(
    path: str | os.PathLike[str], model: Any, loss: Any = None, data: Any = None, **options: Any
) -> Any:
    """Return a fitted model that `save` wrote, without fitting it again.

    The answers are those from before, to the last bit on the same machine and libraries.

    Args:
        path: the directory that `save` wrote.
        model: with the parameters of the fit, as `Influence` takes it (an `influence_jax.Model` for
            the classes of JAX); its device and its array library may be others.
        loss: of the fit. None where the backend knows it.
        data: what was fitted. Needed by the methods that read it in every solve (CG, LiSSA and the
            harmonic mean), and compared with what was fitted; the others do not look at it.
        **options: keywords of the fit that no file can hold, such as ``forward=``; ``backend=`` and
            ``array_backend=`` where they shall be others; ``max_memory=``.

    Returns:
        An instance of the class that was saved.

    Raises:
        StorageError: a file is missing, cut short, edited or of another version, or a class that
            was saved is not there.
        ModelError: the model has other parameters, or another loss.
        DataError: the data is needed and was not passed, or is other data.
        OptionError: an option is missing, or has another value than in the fit.
        MissingExtraError: safetensors is not installed.
    """
    where = f"load({os.fspath(path)!r})"
    record = files.read(path)
    backend = find_backend(model, options.pop("backend", record["backend"]))
    kind = class_of(record, backend, InfluenceFunctionModel)
    with files.tensors(path) as arrays:
        unpacker = Unpacker(arrays, [package_of(backend)])
        method: Method = unpacker.unpack(record["method"])
        array_backend = options.pop("array_backend", record["array_backend"])
        instance = kind._unfitted(
            model,
            loss,
            method=method,
            regularization=record["regularization"],
            block_structure=record["block_structure"],
            second_order_mode=record["second_order_mode"],
            backend=backend,
            array_backend=array_backend,
            options=options_of(record, options, unpacker, where),
        )
        state = _State(record, unpacker, method, array_backend, data, where)
        instance._resume(state.restored)
    return instance


@dataclass(frozen=True)
class _State:
    """What was read, and what it is restored with.

    Attributes:
        record: the JSON.
        unpacker: has the tensors.
        method: how `C + λI` is inverted.
        array_backend: the library of the solver's arithmetic.
        data: what the user passed.
        where: the call, for messages.
    """

    record: Mapping[str, Any]
    unpacker: Unpacker
    method: Method
    array_backend: str | None
    data: Any
    where: str

    def restored(self, problem: Problem) -> FittedInfluence:
        """Return the fitted model for the problem of the user's model."""
        record = self.record
        parameters.check(record["parameters"], problem, self.where)
        blocks = make_blocks(record["block_structure"], problem.parameters)
        exchange = exchange_for(problem.reference, self.array_backend)
        at = Surroundings(problem, blocks, exchange, self.method, problem.reference)
        optimality: Optimality = self._unpack(record["optimality"], at)
        objective = self._objective(problem, optimality)
        mode = SecondOrderMode(record["second_order_mode"])
        curvatures = {b.name: make_curvature(mode, objective, b, exchange) for b in blocks}
        inverses = {
            name: self._unpack(
                record["inverses"][name],
                replace(at, reference=exchange.solver, curvature=curvature),
            )
            for name, curvature in curvatures.items()
        }
        training = Training(curvatures, objective.weight, optimality)
        return FittedInfluence(problem, blocks, inverses, exchange, training)

    def _objective(self, problem: Problem, optimality: Optimality) -> Objective:
        saved = self.record["data"]
        if "sha256" not in saved:
            return points.without_data(problem, saved)
        return points.read_again(problem, self.data, saved, optimality, self.where)

    def _unpack(self, node: Any, at: Surroundings) -> Any:
        return replace(self.unpacker, at=at).unpack(node)
