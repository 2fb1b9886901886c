"""A fitted model: the snapshot of its parameters and one inverse for each block.

Everything that is asked after `fit` is answered here, block by block, for any regularisation.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from influence_core.arrays import (
    Exchange,
    concatenate_trees,
    map_tree,
    matching,
    namespace,
    read_flag,
)
from influence_core.blocks import Block
from influence_core.curvature import Curvature, Inverse, SolveReport, join_reports
from influence_core.errors import CapabilityError, DataError, NonFiniteError
from influence_core.memory import points_in_memory
from influence_core.objective import check_iterable, read_batches, validate
from influence_core.optimality import Optimality
from influence_core.problem import Array, HandsOver, Measures, Movable, Problem, Shelters, Tree
from influence_core.sources import Points, Watched

Reports: TypeAlias = "dict[str, SolveReport | None]"
ByBlock: TypeAlias = "OrderedDict[str, Tree]"


@dataclass(frozen=True)
class Training:
    """The training data as `fit` saw it.

    Attributes:
        curvatures: the curvature of every block, by its name.
        weight: the number `N` of points, or the sum of their weights.
        optimality: how far the parameters are from the minimum.
    """

    curvatures: Mapping[str, Curvature]
    weight: float
    optimality: Optimality

    def on(self, problem: Problem, exchange: Exchange) -> Training:
        """Return the same for the same model on another device."""
        moved = {
            name: curvature.on(problem, exchange) for name, curvature in self.curvatures.items()
        }
        optimality = self.optimality.on(problem.reference)
        return replace(self, curvatures=moved, optimality=optimality)


@dataclass(frozen=True)
class FittedInfluence:
    """Inverses of all blocks and the problem that supplies gradients to them.

    Attributes:
        problem: the snapshot of model and loss.
        blocks: the blocks, in the order of the columns.
        inverses: one for each block, by its name.
        exchange: the way from the model's array library to the solver's.
        training: what is known of the training data; None where a user's own method was fitted.
        measured: the problem whose gradients the test points have, where it is another one.
    """

    problem: Problem
    blocks: tuple[Block, ...]
    inverses: Mapping[str, Inverse]
    exchange: Exchange
    training: Training | None = None
    measured: Problem | None = None

    def points(self, data: Any, where: str) -> Points:
        """Return checked training points of the user."""
        return self._checked(self.problem, data, where)

    def test_points(self, data: Any, where: str) -> Points:
        """Return checked test points of the user."""
        return self._checked(self.measured or self.problem, data, where)

    def sides(self, call: str, x_test: Any, y_test: Any, x: Any, y: Any) -> tuple[Points, Points]:
        """Return the test and the training points; without the latter, the test points twice.

        Raises:
            DataError: only one of `x` and `y` was passed, or the points cannot be used.
        """
        if (x is None) != (y is None):
            given, missing = ("y", "x") if x is None else ("x", "y")
            raise DataError(
                f"`{call}` needs both `x` and `y`, or neither (the test points then stand on both "
                f"sides); got `{given}` without `{missing}`."
            )
        left = self.test_points((x_test, y_test), f"{call}(x_test, y_test)")
        if x is not None:
            return left, self.points((x, y), f"{call}(…, x, y)")
        same = self.measured is None
        return left, left if same else self.points((x_test, y_test), f"{call}(x_test, y_test)")

    def factors(
        self, points: Points, regularization: Mapping[str, float]
    ) -> tuple[ByBlock, Reports]:
        """Return `(C + λI)⁻¹ ∇ℓ`, `(n, d)` for each block, in the solver's library."""
        rows = {block.name: points.of(block.names).rows() for block in self.blocks}
        return self.solve(rows, regularization)

    def solve(
        self, rows: Mapping[str, Array], regularization: Mapping[str, float]
    ) -> tuple[ByBlock, Reports]:
        """Return `(C + λI)⁻¹` of the rows of each block, `(k, d)`, in the solver's library."""
        answers, reports = OrderedDict(), {}
        for block in self.blocks:
            solution = self.inverses[block.name].solve(rows[block.name], regularization[block.name])
            answers[block.name], reports[block.name] = solution.rows, solution.report
        return answers, reports

    def scores(
        self, left: Points, right: Points, regularizations: Sequence[Mapping[str, float]]
    ) -> tuple[ByBlock, Reports]:
        """Return `⟨(C + λI)⁻¹ ∇ℓ(left), ∇ℓ(right)⟩` for every λ, `(r, m, n)` for each block.

        The reports hold the right-hand sides of the first λ, then those of the second, and so on.
        """
        scores, reports = OrderedDict(), {}
        for block in self.blocks:
            scores[block.name], each = self.inverses[block.name].scores(
                left.of(block.names),
                right.of(block.names),
                [regularization[block.name] for regularization in regularizations],
            )
            reports[block.name] = join_reports(each)
        return scores, reports

    def products(self, factors: Mapping[str, Array], points: Points) -> ByBlock:
        """Return `⟨factors, ∇ℓ⟩`, `(m, n)` for each block."""
        return OrderedDict(
            (block.name, points.of(block.names).products(factors[block.name]))
            for block in self.blocks
        )

    def mixed_products(self, factors: Mapping[str, Array], points: Points) -> ByBlock:
        """Return `⟨factors, ∇ₓ∇ℓ⟩`, `(m, n, *x.shape[1:])` for each block."""
        return OrderedDict(
            (block.name, points.of(block.names).mixed_products(factors[block.name]))
            for block in self.blocks
        )

    def self_scores(self, data: Any, regularization: Mapping[str, float]) -> tuple[Array, Reports]:
        """Return `⟨(C + λI)⁻¹ ∇ℓᵢ, ∇ℓᵢ⟩`, `(N,)`, for the points of all batches of `data`.

        Raises:
            DataTypeError: `data` is no iterable.
            DataError: `data` yields no batch.
        """
        check_iterable(data, "self_influences(loader)")
        scores: list[Array] = []
        reports: list[Reports] = []
        for group in self._groups(data):
            answers = [
                self.inverses[b.name].self_scores(
                    [points.of(b.names) for points in group], regularization[b.name]
                )
                for b in self.blocks
            ]
            scores.append(sum((s for s, _ in answers[1:]), start=answers[0][0]))
            reports.append({b.name: r for b, (_, r) in zip(self.blocks, answers, strict=True)})
        if not scores:
            raise DataError("`self_influences(loader)` needs at least one batch; got none.")
        joined = {b.name: join_reports([r[b.name] for r in reports]) for b in self.blocks}
        return concatenate_trees(scores, axis=0), joined

    def _groups(self, data: Any) -> Iterator[list[Points]]:
        """Yield batches together as far as their gradients fit into memory: a solve for each."""
        width = sum(block.size for block in self.blocks)
        group: list[Points] = []
        room = most = points_in_memory(self.problem, width)
        for index, batch in enumerate(read_batches(self.problem, data), 1):
            validate(self.problem, batch, f"self_influences(loader), batch {index}")
            if group and batch.size > room:
                yield group
                group, room = [], most
            group.append(Points(self.problem, batch, self.exchange, self._watched))
            room -= batch.size
        if group:
            yield group

    def split(self, factors: Any, call: str) -> ByBlock:
        """Return the factors that a user passed, `(m, p)` or one for each block, by block.

        Raises:
            DataError: they have another shape or other blocks than `influence_factors` returns, or
                are not finite.
        """
        if isinstance(factors, Mapping):
            self._check_keys(factors, call)
            return OrderedDict(
                (b.name, self._rows(factors[b.name], b.size, call)) for b in self.blocks
            )
        rows = self._rows(factors, sum(block.size for block in self.blocks), call)
        parts: ByBlock = OrderedDict()
        start = 0
        for block in self.blocks:
            parts[block.name] = rows[:, start : start + block.size]
            start += block.size
        return parts

    def whole(self, shares: ByBlock) -> Tree:
        """Return the sum of the shares of all blocks, handed over."""
        first, *others = shares.values()
        return self.hand_over(functools.reduce(lambda a, b: map_tree(_add, a, b), others, first))

    def by_block(self, shares: ByBlock) -> ByBlock:
        """Return the share of each block, handed over."""
        return OrderedDict((name, self.hand_over(share)) for name, share in shares.items())

    def hand_over(self, answer: Tree) -> Tree:
        """Return an answer in the library, dtype and device of the model's parameters.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        return map_tree(self._hand_over_leaf, answer)

    def to(self, target: Any) -> FittedInfluence:
        """Return the same on the device `target`.

        Raises:
            CapabilityError: the backend cannot move its problem.
        """
        problem = _moved(self.problem, target)
        measured = self.measured and _moved(self.measured, target)
        exchange = self.exchange.on(problem.reference)
        inverses = {name: inverse.on(problem, exchange) for name, inverse in self.inverses.items()}
        training = self.training and self.training.on(problem, exchange)
        return replace(
            self,
            problem=problem,
            inverses=inverses,
            exchange=exchange,
            training=training,
            measured=measured,
        )

    def _checked(self, problem: Problem, data: Any, where: str) -> Points:
        batch = problem.batch(data)
        validate(problem, batch, where)
        return Points(problem, batch, self.exchange, self._watched)

    @property
    def _watched(self) -> Watched:
        return sum((inverse.watched for inverse in self.inverses.values()), start=Watched())

    def _hand_over_leaf(self, answer: Array) -> Array:
        answer = hand_over(self.problem, self.exchange.to_model(answer))
        xp = namespace(answer)
        if not read_flag(xp.all(xp.isfinite(answer))):
            raise NonFiniteError(
                f"the answer holds NaN or infinity in {answer.dtype}: a gradient of one of the "
                "points is not finite, the solve broke down, or the numbers are too large for a "
                "short dtype. Look at the points, raise `regularization`, use a longer dtype."
            )
        return answer

    def _check_keys(self, factors: Mapping[str, Any], call: str) -> None:
        names = [block.name for block in self.blocks]
        if set(factors) != set(names):
            raise DataError(
                f"`{call}` needs the factors of every block; got {list(factors)}, "
                f"the blocks are {names}. Pass what `influence_factors_by_block` returned."
            )

    def _rows(self, factors: Any, size: int, call: str) -> Array:
        try:
            rows = matching(factors, self.exchange.model)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"`{call}` needs an array of real numbers, (m, {size}); got "
                f"{type(factors).__name__}: {error}."
            ) from error
        if rows.ndim != 2 or rows.shape[1] != size or rows.shape[0] == 0:
            raise DataError(
                f"`{call}` needs factors of shape (m, {size}) with m of one or more; got "
                f"{tuple(rows.shape)}. Pass what `influence_factors` returned."
            )
        if not read_flag(namespace(rows).all(namespace(rows).isfinite(rows))):
            raise DataError(f"`{call}` needs finite factors; some are NaN or infinite.")
        return self.exchange.to_solver(rows)


def measured_problem(problem: Problem, quantity: Any) -> Problem | None:
    """Return the problem of the test points, for what is measured there; None where it is the loss.

    Raises:
        CapabilityError: the backend cannot differentiate another quantity.
    """
    if quantity is None:
        return None
    if isinstance(problem, Measures):
        return problem.with_loss(quantity)
    raise CapabilityError(
        f"`measuring(quantity)` needs a backend that offers `with_loss`; {type(problem).__name__} "
        "does not. Measure the loss, or use the torch or the JAX backend."
    )


def _moved(problem: Problem, target: Any) -> Problem:
    if isinstance(problem, Movable):
        return problem.to(target)
    raise CapabilityError(
        f"`to({target!r})` needs a backend that offers `to`; {type(problem).__name__} does not. "
        "Move the model before `fit`."
    )


def shelter(problem: Problem) -> AbstractContextManager[None]:
    """Return the context in which to compute with the problem."""
    return problem.shelter() if isinstance(problem, Shelters) else nullcontext()


def hand_over(problem: Problem, answer: Array) -> Array:
    """Return an answer as the backend wants the user to see it."""
    return problem.hand_over(answer) if isinstance(problem, HandsOver) else answer


def _add(a: Array, b: Array) -> Array:
    return namespace(a, b).add(a, b)
