"""A model of sequences with a layer of every kind, in closed form, and its data.

With tokens `v`, at every position on its own:

    e = E[v]                            an embedding: `embed.weight`, (V, D)
    u = γ ∘ e + β                       free parameters: `norm.scale`, `norm.shift`
    z = [W₀ u₀ + b₀, W₁ u₁ + b₁]        an affine layer in two groups: `mix.weight`, `mix.bias`
    q = K₀ᵀ tanh(z) + c₀, k = K₁ᵀ tanh(z) + c₁
                                        two layers in one transposed weight: `stack.weight`, …
    f = H tanh([q, k]) + d              `head.weight`, and a bare parameter

and the mean cross-entropy of `f` over the positions that count. A negative token is padding. Where
the model is pooled, the head sees the mean of its inputs, and there is one label a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from namespaces import NUMPY, Library

from influence_core.arrays import device, matching, move, namespace
from influence_core.layer_calls import LayerCalls
from influence_core.modes import LabelKind
from influence_core.plugins import BackendSpec
from influence_core.problem import FreeParameters, Layer, LayerStatistics

N, LONGEST = 23, 5
VOCABULARY, WIDTH, HIDDEN, PROJECTED, CLASSES = 6, 4, 3, 2, 3
SHAPES = {
    "embed.weight": (VOCABULARY, WIDTH),
    "norm.scale": (WIDTH,),
    "norm.shift": (WIDTH,),
    "mix.weight": (2 * HIDDEN, WIDTH // 2),
    "mix.bias": (2 * HIDDEN,),
    "stack.weight": (2 * HIDDEN, 2 * PROJECTED),
    "stack.bias": (2 * PROJECTED,),
    "head.weight": (CLASSES, 2 * PROJECTED),
    "bare": (CLASSES,),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


@dataclass(frozen=True)
class SequenceModel:
    """Parameters, and what is special about the model.

    Attributes:
        parameters: name to array.
        pooled: whether the head sees the mean over the positions.
        fault: of the bare parameter.
        hidden: layers that the backend does not show.
    """

    parameters: Mapping[str, Any]
    pooled: bool = False
    fault: str | None = None
    hidden: tuple[str, ...] = ()


def make_model(library: Library = NUMPY, **options: Any) -> SequenceModel:
    rng = np.random.default_rng(0)
    host = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return SequenceModel({name: library.array(a) for name, a in host.items()}, **options)


def make_data(n: int, seed: int, pooled: bool = False) -> tuple[Any, Any]:
    """Return tokens `(n, s)`, with padding behind, and labels `(n, s)`, or `(n,)` where pooled."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, n)
    lengths[0] = LONGEST
    tokens = rng.integers(0, VOCABULARY - 1, (n, LONGEST))  # the last token is never met
    tokens[np.arange(LONGEST) >= lengths[:, None]] = -1
    return tokens, rng.integers(0, CLASSES, n if pooled else (n, LONGEST))


def loader(data: tuple[Any, Any], library: Library = NUMPY, batch_size: int = 5) -> list[Any]:
    """Return batches that are padded no further than to their longest sequence."""
    tokens, labels = data
    batches = []
    for start in range(0, len(tokens), batch_size):
        x, y = tokens[start : start + batch_size], labels[start : start + batch_size]
        longest = int((x >= 0).sum(axis=1).max())
        x, y = x[:, :longest], y[:, :longest] if y.ndim == 2 else y
        batches.append((library.array(x), library.array(y)))
    return batches


def whole(data: tuple[Any, Any], library: Library) -> tuple[Any, Any]:
    return library.array(data[0]), library.array(data[1])


@dataclass(frozen=True)
class SequenceBatch:
    """Indices and labels, and which positions count, `(n, s)` each; labels `(n,)` where pooled."""

    indices: Any
    labels: Any
    counted: Any

    @property
    def size(self) -> int:
        return int(self.indices.shape[0])

    @property
    def weights(self) -> None:
        return None

    def __getitem__(self, points: slice) -> SequenceBatch:
        points = slice(*points.indices(self.size))
        return SequenceBatch(
            self.indices[points, :], self.labels[points, ...], self.counted[points, :]
        )


class SequenceProblem:
    """The model seen through derivatives, as far as EK-FAC asks for them."""

    def __init__(
        self, model: SequenceModel, loss: None = None, *, device: Any = None, max_memory: Any = None
    ) -> None:
        self.model, self.arrays = model, dict(model.parameters)
        self.max_memory = 2**30 if max_memory is None else max_memory
        self.asked: list[tuple[str, ...]] = []

    @property
    def reference(self) -> Any:
        return self.arrays["embed.weight"]

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(a.shape) for name, a in self.arrays.items()}

    def batch(self, data: Any) -> SequenceBatch:
        tokens, labels = data
        xp = namespace(tokens)
        counted = xp.astype(tokens >= 0, self.reference.dtype)
        return SequenceBatch(xp.where(tokens >= 0, tokens, xp.zeros_like(tokens)), labels, counted)

    def to(self, target: Any) -> SequenceProblem:
        moved = {name: move(a, target) for name, a in self.arrays.items()}
        return SequenceProblem(replace(self.model, parameters=moved), max_memory=self.max_memory)

    def gradients(self, batch: SequenceBatch, names: Any) -> Any:
        """By one-hot vectors and sums over the positions, apart from the statistics."""
        xp = namespace(self.reference)
        trace = self._trace(batch)
        back = self._back(trace, self._slope(trace, batch, given=True))
        outer = lambda g, a: xp.matrix_transpose(g[0, ...]) @ a  # noqa: E731
        total = lambda g: xp.sum(g[0, ...], axis=1)  # noqa: E731
        w, d, h = self.model, WIDTH // 2, HIDDEN
        one_hot = self._one_hot(batch.indices, VOCABULARY)
        first = outer(back["z"][..., :h], trace["u"][..., :d])
        second = outer(back["z"][..., h:], trace["u"][..., d:])
        head = trace["pooled"] if w.pooled else trace["t"]
        each = {
            "embed.weight": xp.matrix_transpose(outer(back["e"], one_hot)),
            "norm.scale": total(back["u"] * trace["e"]),
            "norm.shift": total(back["u"]),
            "mix.weight": xp.concat([first, second], axis=1),
            "mix.bias": total(back["z"]),
            "stack.weight": xp.matrix_transpose(outer(back["q"], trace["h"])),
            "stack.bias": total(back["q"]),
            "head.weight": outer(back["f"], head),
            "bare": total(back["f"]),
        }
        flat = [xp.reshape(each[name], (batch.size, -1)) for name in names]
        return xp.concat(flat, axis=1)

    def gradient_products(self, batch: SequenceBatch, v: Any, names: Any) -> Any:
        return v @ namespace(v).matrix_transpose(self.gradients(batch, names))

    def gradient_combinations(self, batch: SequenceBatch, w: Any, names: Any) -> Any:
        return w @ self.gradients(batch, names)

    def hessian_product(self, batch: SequenceBatch, v: Any, names: Any) -> Any:
        raise NotImplementedError

    def mixed_gradient_products(self, batch: SequenceBatch, v: Any, names: Any) -> Any:
        raise NotImplementedError

    def layers(self) -> dict[str, Layer | FreeParameters]:
        every = {
            "embed": Layer("embed.weight", None, VOCABULARY, WIDTH, transposed=True, lookup=True),
            "norm": FreeParameters(("norm.scale", "norm.shift"), 2 * WIDTH),
            "mix.0": Layer("mix.weight", "mix.bias", WIDTH // 2, HIDDEN),
            "mix.1": Layer("mix.weight", "mix.bias", WIDTH // 2, HIDDEN, first=HIDDEN),
            "stack.k": Layer(
                "stack.weight",
                "stack.bias",
                2 * HIDDEN,
                PROJECTED,
                transposed=True,
                first=PROJECTED,
            ),
            "stack.q": Layer("stack.weight", "stack.bias", 2 * HIDDEN, PROJECTED, transposed=True),
            "head": Layer("head.weight", None, 2 * PROJECTED, CLASSES),
            "bare": FreeParameters(("bare",), CLASSES, self.model.fault),
        }
        return {name: layer for name, layer in every.items() if name not in self.model.hidden}

    def layer_statistics(self, batch: SequenceBatch, layers: Any, labels: Any) -> Any:
        self.asked.append(tuple(layers))
        xp = namespace(self.reference)
        trace = self._trace(batch)
        kind = labels.kind
        if kind is LabelKind.SAMPLED:
            slopes = self._sampled(trace, batch, labels)
        else:
            slopes = self._slope(trace, batch, given=kind is LabelKind.GIVEN)
        back, d, h, p = self._back(trace, slopes), WIDTH // 2, HIDDEN, PROJECTED
        nothing = trace["u"][..., :0]
        head = trace["pooled"] if self.model.pooled else trace["t"]
        counted = batch.counted
        every = {
            "embed": (batch.indices, back["e"]),
            "norm": (nothing, xp.concat([back["u"] * trace["e"], back["u"]], axis=-1)),
            "mix.0": (trace["u"][..., :d], back["z"][..., :h]),
            "mix.1": (trace["u"][..., d:], back["z"][..., h:]),
            "stack.q": (trace["h"], back["q"][..., :p]),
            "stack.k": (trace["h"], back["q"][..., p:]),
            "head": (head, back["f"]),
            "bare": (head[..., :0], back["f"]),
        }
        once = self.model.pooled
        return {
            name: LayerStatistics(
                *every[name], None if once and name in ("head", "bare") else counted
            )
            for name in layers
        }

    def _trace(self, batch: SequenceBatch) -> dict[str, Any]:
        xp, v = namespace(self.reference), self.arrays
        n, s = batch.indices.shape
        d, h = WIDTH // 2, HIDDEN
        rows = xp.take(v["embed.weight"], xp.reshape(batch.indices, (-1,)), axis=0)
        e = xp.reshape(rows, (n, s, WIDTH))
        u = v["norm.scale"] * e + v["norm.shift"]
        mix = xp.matrix_transpose(v["mix.weight"])
        z = xp.concat([u[..., :d] @ mix[:, :h], u[..., d:] @ mix[:, h:]], axis=-1)
        hidden = xp.tanh(z + v["mix.bias"])
        t = xp.tanh(hidden @ v["stack.weight"] + v["stack.bias"])
        pooled = xp.sum(t * self._means(batch)[..., None], axis=1, keepdims=True)
        seen = pooled if self.model.pooled else t
        f = seen @ xp.matrix_transpose(v["head.weight"]) + v["bare"]
        powers = xp.exp(f - xp.max(f, axis=-1, keepdims=True))
        chances = powers / xp.sum(powers, axis=-1, keepdims=True)
        means = self._means(batch)
        own = {"e": e, "u": u, "h": hidden, "t": t, "pooled": pooled}
        return {**own, "chances": chances, "means": means}

    def _means(self, batch: SequenceBatch) -> Any:
        xp = namespace(self.reference)
        return batch.counted / xp.sum(batch.counted, axis=1, keepdims=True)

    def _shares(self, trace: Mapping[str, Any]) -> Any:
        means = trace["means"]
        return namespace(means).ones_like(means[:, :1]) if self.model.pooled else means

    def _slope(self, trace: Mapping[str, Any], batch: SequenceBatch, given: bool) -> Any:
        """Return `∂ℓ/∂f`, `(c, n, s, o)`: at the labels, or a slice a position and class."""
        xp, chances, shares = namespace(self.reference), trace["chances"], self._shares(trace)
        s = int(chances.shape[1])
        if given:
            labels = batch.labels[:, None] if self.model.pooled else batch.labels
            slope = chances - self._one_hot(labels, CLASSES)
            return (slope * shares[..., None])[None, ...]
        slices = []
        at = xp.arange(s, device=device(self.reference))
        for position in range(s):
            here = xp.astype(at == position, self.reference.dtype) * shares
            for c in range(CLASSES):
                label = xp.zeros_like(batch.indices[:, :1]) + c
                slope = xp.sqrt(chances[..., c : c + 1]) * (chances - self._one_hot(label, CLASSES))
                slices.append(slope * here[..., None])
        return xp.stack(slices)

    def _sampled(self, trace: Mapping[str, Any], batch: SequenceBatch, labels: Any) -> Any:
        xp, chances, shares = namespace(self.reference), trace["chances"], self._shares(trace)
        numbers = labels.uniforms(chances.shape[1])
        slices = []
        for row in numbers:
            below = xp.cumulative_sum(chances, axis=-1)[..., : CLASSES - 1]
            passed = below <= matching(row, self.reference)[..., None]
            drawn = xp.sum(xp.astype(passed, xp.int64), axis=-1)
            slope = (chances - self._one_hot(drawn, CLASSES)) / float(np.sqrt(len(numbers)))
            slices.append(slope * shares[..., None])
        return xp.stack(slices)

    def _back(self, trace: Mapping[str, Any], slope: Any) -> dict[str, Any]:
        xp, v, h = namespace(slope), self.arrays, HIDDEN
        t = slope @ v["head.weight"]
        if self.model.pooled:
            t = t * trace["means"][..., None]
        q = t * (1 - trace["t"] ** 2)
        z = (q @ xp.matrix_transpose(v["stack.weight"])) * (1 - trace["h"] ** 2)
        mix = v["mix.weight"]
        u = xp.concat([z[..., :h] @ mix[:h, :], z[..., h:] @ mix[h:, :]], axis=-1)
        return {"f": slope, "q": q, "z": z, "u": u, "e": u * v["norm.scale"]}

    def _one_hot(self, indices: Any, size: int) -> Any:
        xp = namespace(indices)
        classes = xp.arange(size, dtype=indices.dtype, device=device(indices))
        return xp.astype(indices[..., None] == classes, self.reference.dtype)


BACKEND = BackendSpec(
    "SequenceProblem", f"{__name__}:SequenceProblem", (f"{__name__}.SequenceModel",)
)


def influence(model: SequenceModel, method: Any, **options: Any) -> LayerCalls:
    """Return an influence function model of the sequences, not fitted yet; a block is a layer."""
    options = {"block_structure": "layer_wise", "backend": BACKEND, **options}
    return LayerCalls(model, None, method, **options)
