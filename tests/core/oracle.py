"""Slow dense references in float64 NumPy, written apart from the code under test.

A chain of affine layers with tanh between them, evaluated so that it is analytic in complex
arguments: a derivative is then the imaginary part of `f(θ + ih e_j) / h` with `h = 1e-30`, exact to
the last digits because nothing is subtracted (Squire and Trapp, Using complex variables to estimate
derivatives of real functions, SIAM Review 40, 1998). First derivatives are complex steps of the
loss and of the outputs; second derivatives are complex steps of `_gradient`, a backward pass over
one point, which the tests hold against the first derivatives.

`parameters` is a dict of name to NumPy array, layers in order, every layer a ``"….weight"``
`(o, i)` and maybe a ``"….bias"`` `(o,)`. `loss` is ``"squared"`` (½‖f - y‖²) or
``"cross_entropy"``. Columns are the parameters in the order of the dict, each row-major.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Host = npt.NDArray[np.float64]
Parameters = Mapping[str, Host]
Regularization = float | Mapping[str, float]

STEP = 1e-30


def _remembered(fn: Callable[..., Host]) -> Callable[..., Host]:
    """Keep answers by the numbers in the arguments: many tests ask for the same few."""
    answers: dict[Any, Host] = {}

    @functools.wraps(fn)
    def once(*arguments: Any) -> Host:
        key = tuple(map(_key, arguments))
        if key not in answers:
            answers[key] = fn(*arguments)
            answers[key].flags.writeable = False
        return answers[key]

    return once


def _key(argument: Any) -> Any:
    if isinstance(argument, Mapping):
        return tuple((name, _key(value)) for name, value in argument.items())
    if isinstance(argument, np.ndarray):
        return argument.dtype, argument.shape, argument.tobytes()
    return argument


def losses(parameters: Parameters, loss: str, x: Host, y: npt.NDArray) -> Host:
    """`ℓᵢ`, `(n,)`."""
    theta = flatten(parameters)
    return np.stack([_loss(parameters, loss, theta, a, b) for a, b in zip(x, y, strict=True)])


@_remembered
def gradients(parameters: Parameters, loss: str, x: Host, y: npt.NDArray) -> Host:
    """`∇ℓᵢ`, `(n, p)`, by complex steps of the loss."""
    theta = flatten(parameters)
    return np.stack(
        [
            _derivative(lambda t, a=a, b=b: _loss(parameters, loss, t, a, b), theta)
            for a, b in zip(x, y, strict=True)
        ]
    )


def analytic_gradients(parameters: Parameters, loss: str, x: Host, y: npt.NDArray) -> Host:
    """`∇ℓᵢ`, `(n, p)`, by the backward pass that the second derivatives stand on."""
    theta = flatten(parameters)
    return np.stack([_gradient(parameters, loss, theta, a, b) for a, b in zip(x, y, strict=True)])


@_remembered
def hessians(parameters: Parameters, loss: str, x: Host, y: npt.NDArray) -> Host:
    """`∇²ℓᵢ`, `(n, p, p)`."""
    theta = flatten(parameters)
    return np.stack(
        [
            _derivative(lambda t, a=a, b=b: _gradient(parameters, loss, t, a, b), theta)
            for a, b in zip(x, y, strict=True)
        ]
    )


@_remembered
def jacobians(parameters: Parameters, x: Host) -> Host:
    """`∂fᵢ/∂θ`, `(n, o, p)`."""
    theta = flatten(parameters)
    return np.stack(
        [_derivative(lambda t, a=a: _forward(unflatten(parameters, t), a)[-1], theta).T for a in x]
    )


@_remembered
def mixed(parameters: Parameters, loss: str, x: Host, y: npt.NDArray) -> Host:
    """`∂/∂x ∇θℓᵢ`, `(n, *x.shape[1:], p)`."""
    theta = flatten(parameters)
    rows = [
        _derivative(lambda t, b=b: _gradient(parameters, loss, theta, t, b), a.ravel())
        for a, b in zip(x, y, strict=True)
    ]
    return np.stack(rows).reshape(*x.shape, theta.size)


def hessian(
    parameters: Parameters, loss: str, x: Host, y: npt.NDArray, weights: Host | None = None
) -> Host:
    """`Σ wᵢ ∇²ℓᵢ / Σ wᵢ`, `(p, p)`."""
    return np.average(hessians(parameters, loss, x, y), axis=0, weights=weights)


def gauss_newton(
    parameters: Parameters, loss: str, x: Host, y: npt.NDArray, weights: Host | None = None
) -> Host:
    """`Σ wᵢ ∇ℓᵢ ∇ℓᵢᵀ / Σ wᵢ`, `(p, p)`."""
    rows = gradients(parameters, loss, x, y)
    return np.average([np.outer(g, g) for g in rows], axis=0, weights=weights)


def generalized_gauss_newton(
    parameters: Parameters, loss: str, x: Host, y: npt.NDArray, weights: Host | None = None
) -> Host:
    """`Σ wᵢ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ / Σ wᵢ`, `(p, p)`."""
    points = []
    for jacobian, a, b in zip(jacobians(parameters, x), x, y, strict=True):
        f = _forward(parameters, a)[-1]
        bend = _derivative(lambda t, b=b: _output_gradient(loss, t, b), f)
        points.append(jacobian.T @ bend @ jacobian)
    return np.average(points, axis=0, weights=weights)


CURVATURES = {
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "generalized_gauss_newton": generalized_gauss_newton,
}


def columns(parameters: Parameters, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """The columns of the parameters `names`, in the order of `names`."""
    ends = np.cumsum([a.size for a in parameters.values()])
    places = {
        name: np.arange(end - a.size, end)
        for (name, a), end in zip(parameters.items(), ends, strict=True)
    }
    return np.concatenate([places[name] for name in names])


@dataclass(frozen=True)
class Oracle:
    """Influence functions by dense solves, for a model and its training data.

    Attributes:
        parameters: name to array.
        loss: ``"squared"`` or ``"cross_entropy"``.
        x: training inputs, `(N, *)`.
        y: training targets.
        weights: of the training points, `(N,)`, or None.
        penalty: parameter name to `c` of a term `½ c ‖θ‖²`, or None.

    Where a method takes `blocks`, it is block name -> names of its parameters, or None for one
    block ``""`` of all; `regularization` is a number or a dict by block (missing blocks get 0).
    Answers have the blocks' columns, block after block, names in the order of the model.
    """

    parameters: Parameters
    loss: str
    x: Host
    y: npt.NDArray
    weights: Host | None = None
    penalty: Mapping[str, float] | None = None

    def curvature(self, mode: str = "hessian") -> Host:
        """`C`, `(p, p)`, with the penalty; `mode` is a plain string of `SecondOrderMode`."""
        bare = CURVATURES[mode](self.parameters, self.loss, self.x, self.y, self.weights)
        penalty = self.penalty or {}
        diagonal = [np.full(a.size, penalty.get(name, 0.0)) for name, a in self.parameters.items()]
        return bare + np.diag(np.concatenate(diagonal))

    def blocks(self, blocks: Mapping[str, Sequence[str]] | None = None) -> dict[str, npt.NDArray]:
        """Block name -> its columns among the `p`."""
        blocks = {"": list(self.parameters)} if blocks is None else blocks
        return {
            block: columns(self.parameters, [name for name in self.parameters if name in members])
            for block, members in blocks.items()
        }

    def block_diagonal(
        self, matrix: Host, blocks: Mapping[str, Sequence[str]] | None = None
    ) -> Host:
        """`matrix` on the covered columns, with zeros across blocks."""
        places = list(self.blocks(blocks).values())
        covered = np.concatenate(places)
        owner = np.repeat(np.arange(len(places)), [len(place) for place in places])
        return np.where(owner[:, None] == owner, matrix[np.ix_(covered, covered)], 0.0)

    def damped(
        self,
        mode: str = "hessian",
        regularization: Regularization = 0.0,
        blocks: Mapping[str, Sequence[str]] | None = None,
    ) -> Host:
        """`C + λI` on the covered columns."""
        return self.block_diagonal(self.curvature(mode), blocks) + np.diag(
            np.concatenate(
                [
                    np.full(place.size, _lambda(regularization, block))
                    for block, place in self.blocks(blocks).items()
                ]
            )
        )

    def influence_factors(
        self,
        x: Host,
        y: npt.NDArray,
        *,
        mode: str = "hessian",
        regularization: Regularization = 0.0,
        blocks: Mapping[str, Sequence[str]] | None = None,
    ) -> Host:
        """Rows `(C + λI)⁻¹ ∇ℓ(xⱼ, yⱼ)`, `(n, p)`."""
        rows = gradients(self.parameters, self.loss, x, y)[:, self._covered(blocks)]
        return np.linalg.solve(self.damped(mode, regularization, blocks), rows.T).T

    def influences(
        self,
        x_test: Host,
        y_test: npt.NDArray,
        x: Host | None = None,
        y: npt.NDArray | None = None,
        influence: str = "up",
        *,
        mode: str = "hessian",
        regularization: Regularization = 0.0,
        blocks: Mapping[str, Sequence[str]] | None = None,
    ) -> Host:
        """`(m, n)`, or `(m, n, *x.shape[1:])` for ``influence="perturbation"``."""
        by_block = self.influences_by_block(
            x_test, y_test, x, y, influence, mode=mode, regularization=regularization, blocks=blocks
        )
        return sum(by_block.values())

    def influences_by_block(
        self,
        x_test: Host,
        y_test: npt.NDArray,
        x: Host | None = None,
        y: npt.NDArray | None = None,
        influence: str = "up",
        *,
        mode: str = "hessian",
        regularization: Regularization = 0.0,
        blocks: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Host]:
        """Block name -> its share of `influences`."""
        x, y = (x_test, y_test) if x is None else (x, y)
        derivative = {"up": gradients, "perturbation": mixed}[influence]
        right = derivative(self.parameters, self.loss, x, y)
        left = gradients(self.parameters, self.loss, x_test, y_test)
        curvature = self.curvature(mode)
        answer = {}
        for block, place in self.blocks(blocks).items():
            matrix = curvature[np.ix_(place, place)]
            matrix = matrix + _lambda(regularization, block) * np.eye(place.size)
            factors = np.linalg.solve(matrix, left[:, place].T)
            answer[block] = np.moveaxis(right[..., place] @ factors, -1, 0)
        return answer

    def _covered(self, blocks: Mapping[str, Sequence[str]] | None) -> npt.NDArray:
        return np.concatenate(list(self.blocks(blocks).values()))


def flatten(parameters: Parameters) -> Host:
    """All parameters, `(p,)`."""
    return np.concatenate([np.ravel(a) for a in parameters.values()]).astype(np.float64)


def unflatten(parameters: Parameters, theta: npt.NDArray) -> dict[str, npt.NDArray]:
    """The entries of `theta` by name, with the shapes of `parameters`."""
    answer, start = {}, 0
    for name, a in parameters.items():
        answer[name] = theta[start : start + a.size].reshape(a.shape)
        start += a.size
    return answer


def _lambda(regularization: Regularization, block: str) -> float:
    if isinstance(regularization, Mapping):
        return regularization.get(block, 0.0)
    return regularization


def _derivative(fn: Callable[[npt.NDArray], npt.NDArray], at: Host) -> Host:
    """`∂fn/∂at_j` as row `j`."""
    steps = 1j * STEP * np.eye(at.size)
    return np.stack([np.imag(fn(at + step)) / STEP for step in steps])


def _layers(parameters: Mapping[str, npt.NDArray]) -> list[tuple[str, str]]:
    weights = [name for name in parameters if name.endswith("weight")]
    return [(name, name.removesuffix("weight") + "bias") for name in weights]


def _forward(parameters: Mapping[str, npt.NDArray], x: npt.NDArray) -> list[npt.NDArray]:
    """The inputs of the layers of one point, and last the outputs."""
    values = [x.ravel()]
    layers = _layers(parameters)
    for weight, bias in layers:
        s = parameters[weight] @ values[-1] + parameters.get(bias, 0.0)
        values.append(s if weight == layers[-1][0] else np.tanh(s))
    return values


def _loss(parameters: Parameters, loss: str, theta: npt.NDArray, x: Host, y: npt.NDArray):
    f = _forward(unflatten(parameters, theta), x)[-1]
    if loss == "squared":
        return np.sum((f - y) * (f - y)) / 2
    shift = np.max(np.real(f))
    return np.log(np.sum(np.exp(f - shift))) + shift - f[int(y)]


def _output_gradient(loss: str, f: npt.NDArray, y: npt.NDArray) -> npt.NDArray:
    if loss == "squared":
        return f - y
    powers = np.exp(f - np.max(np.real(f)))
    return powers / np.sum(powers) - np.eye(f.size)[int(y)]


def _gradient(
    parameters: Parameters, loss: str, theta: npt.NDArray, x: npt.NDArray, y: npt.NDArray
) -> npt.NDArray:
    """`∇ℓ` of one point, `(p,)`, analytic in `theta` and `x`."""
    named = unflatten(parameters, theta)
    *inputs, f = _forward(named, x)
    back = _output_gradient(loss, f, y)
    answer = {}
    for (weight, bias), a in reversed(list(zip(_layers(named), inputs, strict=True))):
        answer[weight], answer[bias] = np.outer(back, a), back
        back = (named[weight].T @ back) * (1 - a * a)
    return np.concatenate([answer[name].ravel() for name in parameters])


def factored_fisher(
    parameters: Parameters,
    loss: str,
    x: Host,
    y: npt.NDArray,
    names: Sequence[str],
    *,
    labels: str = "expected",
    update_diagonal: bool = False,
    weights: Host | None = None,
    penalty: Mapping[str, float] | None = None,
) -> Host:
    """The Kronecker-factored Fisher matrix of the parameters `names`, dense, `(d, d)`.

    Point by point, label by label, with `np.outer` and `np.kron`. Columns are the parameters
    `names` in the order of `parameters`; `labels` is ``"expected"`` or ``"given"``.
    """
    names = [name for name in parameters if name in names]
    places = columns(parameters, names)
    answer = np.zeros((places.size, places.size))
    seen = [_seen_by_layers(parameters, loss, a, b, labels) for a, b in zip(x, y, strict=True)]
    share = np.full(len(x), 1 / len(x)) if weights is None else weights / np.sum(weights)
    for number, (weight, bias) in enumerate(_layers(parameters)):
        own = [name for name in (weight, bias) if name in names]
        if not own:
            continue
        points = [(_homogeneous(a[number], weight in own, bias in own), g) for a, g in seen]
        layer = _factored_layer([(a, [row[number] for row in g]) for a, g in points], share)
        matrix = layer(update_diagonal, _penalty_matrix(parameters, own, weight, bias, penalty))
        within = _matrix_order(parameters, names, weight, bias)
        answer[np.ix_(within, within)] = matrix
    return answer


def _homogeneous(a: Host, weight: bool, bias: bool) -> Host:
    return np.concatenate([a if weight else a[:0], np.ones(int(bias))])


def _penalty_matrix(
    parameters: Parameters,
    own: Sequence[str],
    weight: str,
    bias: str,
    penalty: Mapping[str, float] | None,
) -> Host:
    """The penalty of every entry of `[W, b]`, as far as they are among `own`."""
    penalty = penalty or {}
    outputs, inputs = parameters[weight].shape
    parts = []
    if weight in own:
        parts.append(np.full((outputs, inputs), penalty.get(weight, 0.0)))
    if bias in own:
        parts.append(np.full((outputs, 1), penalty.get(bias, 0.0)))
    return np.concatenate(parts, axis=1)


def _matrix_order(
    parameters: Parameters, names: Sequence[str], weight: str, bias: str
) -> npt.NDArray[np.intp]:
    """The columns, among those of `names`, of the entries of `[W, b]` read row by row."""
    start, parts = 0, {}
    for name in names:
        size = parameters[name].size
        parts[name] = np.arange(start, start + size).reshape(len(parameters[name]), -1)
        start += size
    own = [parts[name] for name in (weight, bias) if name in parts]
    return np.concatenate(own, axis=1).ravel()


def _factored_layer(
    points: Sequence[tuple[Host, Sequence[Host]]], share: Host
) -> Callable[[bool, Host], Host]:
    """The matrix of one layer, from its inputs and output gradients at every point."""
    a = sum(w * np.outer(a, a) for w, (a, _) in zip(share, points, strict=True))
    s = sum(w * np.outer(g, g) for w, (_, each) in zip(share, points, strict=True) for g in each)

    def matrix(update_diagonal: bool, penalty: Host) -> Host:
        basis = np.kron(np.linalg.eigh(s)[1], np.linalg.eigh(a)[1])
        diagonal = np.diag(basis.T @ np.diag(penalty.ravel()) @ basis)
        if not update_diagonal:
            return np.kron(s, a) + basis @ np.diag(diagonal) @ basis.T
        for w, (inputs, each) in zip(share, points, strict=True):
            for g in each:
                diagonal = diagonal + w * (basis.T @ np.kron(g, inputs)) ** 2
        return basis @ np.diag(diagonal) @ basis.T

    return matrix


def _seen_by_layers(
    parameters: Parameters, loss: str, x: Host, y: npt.NDArray, labels: str
) -> tuple[list[Host], list[list[Host]]]:
    """The inputs of the layers at one point, and a row of their output gradients for each label."""
    *inputs, f = _forward(parameters, x)
    if labels == "given":
        slopes = [_output_gradient(loss, f, y)]
    elif loss == "squared":
        slopes = list(np.eye(f.size))
    else:
        chances = np.exp(f - np.max(f)) / np.sum(np.exp(f - np.max(f)))
        slopes = [np.sqrt(p) * _output_gradient(loss, f, c) for c, p in enumerate(chances)]
    return inputs, [_backward(parameters, inputs, slope) for slope in slopes]


def _backward(parameters: Parameters, inputs: Sequence[Host], slope: Host) -> list[Host]:
    """The output gradients of the layers, first to last, from that of the last."""
    answer = [slope]
    for (weight, _), a in list(zip(_layers(parameters), inputs, strict=True))[:0:-1]:
        answer.insert(0, (parameters[weight].T @ answer[0]) * (1 - a * a))
    return answer


@dataclass(frozen=True)
class FactoredOracle(Oracle):
    """Influence functions by dense solves with the Kronecker-factored Fisher matrix.

    Attributes:
        labels: ``"expected"`` or ``"given"``.
        update_diagonal: whether eigenvalues are mean squares in the eigenbasis.
        structure: block name -> names of its parameters; None for one block of all. Pass the same
            as `blocks` to the methods.
    """

    labels: str = "expected"
    update_diagonal: bool = False
    structure: Mapping[str, Sequence[str]] | None = None

    def curvature(self, mode: str = "") -> Host:
        """The matrix, `(p, p)`, with zeros across blocks and for what no block covers."""
        matrix = np.zeros((flatten(self.parameters).size,) * 2)
        structure = {"": list(self.parameters)} if self.structure is None else self.structure
        for names, place in zip(
            structure.values(), self.blocks(self.structure).values(), strict=True
        ):
            matrix[np.ix_(place, place)] = factored_fisher(
                self.parameters,
                self.loss,
                self.x,
                self.y,
                names,
                labels=self.labels,
                update_diagonal=self.update_diagonal,
                weights=self.weights,
                penalty=self.penalty,
            )
        return matrix
