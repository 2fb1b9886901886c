"""The problem of a JAX function: every product is jitted, once for its parameters and shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from influence_core.arrays import concatenate_trees
from influence_core.errors import (
    CapabilityError,
    DataTypeError,
    InfluenceError,
    ModelError,
    OptionError,
)
from influence_core.memory import check_memory
from influence_core.modes import LabelKind
from influence_core.problem import Labels, Layer, LayerStatistics
from influence_jax.data import JaxBatch, check_finite, make_batch, shown, without_none
from influence_jax.layers import Layers, find_layers
from influence_jax.likelihoods import check_known, kind_or_default, positions_of
from influence_jax.losses import (
    Comparison,
    Contract,
    Loss,
    PointLosses,
    check_loss,
    check_shapes,
)
from influence_jax.model import Model
from influence_jax.precision import check_precision
from influence_jax.products import Products
from influence_jax.reading import read_untouched
from influence_jax.snapshot import Snapshot, split_floats
from influence_jax.statistics import Observer, joined
from influence_jax.tracing import Trace, trace
from influence_jax.vectors import Layout

# keywords that reach the backend through `Influence(..., **options)`
_OPTIONS = ("max_memory",)
# arrays of the size of a forward pass that one row of a second-order product holds
_ARRAYS_PER_ROW = 4


class JaxProblem:
    """A function `apply(params, x)` and a loss, at the parameters that the model has now.

    Args:
        model: the function and its parameters; they are copied.
        loss: `loss(outputs, y)` for a batch: mean, sum or vector over its points.
        device: where to compute; None is where the parameters lie.
        max_memory: bytes that a product may hold; None allows 1 GiB.
        **unknown: refused, with a message that lists the options.

    Raises:
        ModelError: the parameters cannot be differentiated.
        DataTypeError: they are float64 and JAX is set up without.
        DeviceError: they lie on several devices.
        LossError: `loss` cannot be called.
        OptionError: `max_memory` is no positive integer, or an option is unknown.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        *,
        device: Any = None,
        max_memory: int | None = None,
        **unknown: Any,
    ) -> None:
        """Copy the parameters."""
        if unknown:
            raise OptionError(
                f"the JAX backend knows the options {', '.join(map(repr, _OPTIONS))}; got "
                f"{', '.join(map(repr, unknown))}. Correct the name, or leave it out."
            )
        check_loss(loss)
        self._snapshot = Snapshot(model, device)
        self._losses = PointLosses(self._snapshot, loss)
        self._memory = check_memory(max_memory)
        self._contract = Contract()
        self._checked = False
        self._example: Any = None
        self.__dict__.update(self._found_out())

    @property
    def reference(self) -> Array:
        """A parameter of the snapshot, in the dtype of the computation."""
        return next(iter(self._snapshot.parameters.values()))

    @property
    def max_memory(self) -> int:
        """Bytes that a product may hold."""
        return self._memory

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of every parameter, in the order of the tree."""
        return {name: tuple(p.shape) for name, p in self._snapshot.parameters.items()}

    def batch(self, data: Any) -> JaxBatch:
        """Check an `(x, y)` pair and bring it to the device of the snapshot."""
        own, ours = self._snapshot.dtype, self._snapshot.compute_dtype
        batch = make_batch(data, self._snapshot.device, ours if own != ours else None)
        if self._example is None:
            self._example = _point_shapes(batch.x)
        return batch

    def batches(self, data: Any) -> Iterator[JaxBatch]:
        """Return the batches of a loader; no random generator is changed by reading them."""
        return (self.batch(pair) for pair in read_untouched(data))

    def indexed(self, data: Any) -> Sequence[Any] | None:
        """Return a list or tuple of pairs itself; other data can only be read in its order."""
        return data if isinstance(data, Sequence) else None

    def validate(self, batch: JaxBatch, where: str) -> None:
        """Check the parameters, the values of the batch and the contract of the loss."""
        with self.shelter():
            if not self._checked:
                self._snapshot.check()
                self._checked = True
            check_finite(batch, where)
            self._check_shapes(batch, where)
            for _, part in self._parts(batch):
                self._compare(part, where)

    def to(self, device: Any) -> JaxProblem:
        """Return the same problem on `device`."""
        moved = copy.copy(self)
        moved._snapshot = self._snapshot.to(device)
        moved._losses = PointLosses(moved._snapshot, self._losses.loss)
        moved.__dict__.update(self._found_out())
        return moved

    def hand_over(self, answer: Array) -> Array:
        """Return an answer in the dtype of the user's parameters."""
        return answer.astype(self._snapshot.dtype)

    def gradients(self, batch: JaxBatch, names: Sequence[str]) -> Array:
        """Return the per-sample gradients, `(n, d)`."""
        run = self._compiled("gradients", names, self._products(names).gradients)
        return run(batch.x, batch.y)

    def gradient_combinations(self, batch: JaxBatch, w: Array, names: Sequence[str]) -> Array:
        """Return `w · gradients`, `(k, d)`: one backward pass a row."""
        run = self._compiled("gradient_combinations", names, self._products(names).combinations)
        terms = [run(part.x, part.y, w[:, points]) for points, part in self._parts(batch)]
        return sum(terms[1:], start=terms[0])

    def gradient_products(self, batch: JaxBatch, v: Array, names: Sequence[str]) -> Array:
        """Return `v · gradientsᵀ`, `(k, n)`: one forward pass a row."""
        run = self._compiled("gradient_products", names, self._products(names).products)
        return self._joined(lambda part: run(part.x, part.y, v), batch)

    def hessian_product(self, batch: JaxBatch, v: Array, names: Sequence[str]) -> Array:
        """Return `v · ∇²(mean ℓ)`, `(k, d)`, all rows in one vmapped pass."""
        run = self._compiled("hessian_product", names, self._products(names).hessian_product)
        return self._averaged(lambda part: run(part.x, part.y, v), batch)

    def linearize(self, batch: JaxBatch, names: Sequence[str]) -> Callable[[Array], Array]:
        """Return `v ↦ hessian_product(batch, v, names)`, whose forward work is done."""
        products = self._products(names)
        push = self._compiled("linearize", names, products.hessian)(batch.x, batch.y)
        run = self._compiled("linearized", names, lambda _, push, x, v: products.pushed(push, x, v))
        return lambda v: run(push, batch.x, v)

    def generalized_gauss_newton_product(
        self, batch: JaxBatch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return `v · (1/n Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ)`, `(k, d)`: forward, then back."""
        call = "generalized_gauss_newton_product"
        run = self._compiled(call, names, self._products(names).gauss_newton_product)
        return self._averaged(lambda part: run(part.x, part.y, v), batch)

    def hessian_quadratics(self, batch: JaxBatch, v: Array, names: Sequence[str]) -> Array:
        """Return `vᵢ · ∇²ℓᵢ · vᵢᵀ`, `(n,)`: forward over forward."""
        run = self._compiled("hessian_quadratics", names, self._products(names).hessian_quadratics)
        return run(batch.x, batch.y, v)

    def generalized_gauss_newton_quadratics(
        self, batch: JaxBatch, v: Array, names: Sequence[str]
    ) -> Array:
        """Return `vᵢ · Jᵢᵀ (∇²_f ℓᵢ) Jᵢ · vᵢᵀ`, `(n,)`."""
        call = "generalized_gauss_newton_quadratics"
        run = self._compiled(call, names, self._products(names).gauss_newton_quadratics)
        return run(batch.x, batch.y, v)

    def mixed_gradient_products(self, batch: JaxBatch, v: Array, names: Sequence[str]) -> Any:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, *x.shape[1:])`, for the floating-point leaves of `x`.

        In a dict the other leaves are left out, in a tuple None stands in their places.

        Raises:
            DataTypeError: `x` holds integers only.
        """
        if not split_floats(batch.x)[0]:
            raise DataTypeError(
                "mode 'perturbation' needs floating-point inputs `x` to differentiate in; got "
                f"{shown(batch.x)}. Convert them, or pass embeddings and let `apply` take them."
            )
        run = self._compiled("mixed_gradient_products", names, self._products(names).mixed)
        return self._joined(lambda part: without_none(run(part.x, part.y, v)), batch)

    def layers(self) -> Mapping[str, Layer]:
        """Return name to layer of every dense layer in the traced model.

        The trace is the one for the first point that was read.

        Raises:
            CapabilityError: no data was read yet.
        """
        if self._example is None:
            raise CapabilityError(
                "`layers()` of a JAX function needs the shape of its inputs: layers are found in "
                "the traced program. Read a batch first."
            )
        return self._layers(self._example).found

    def layer_statistics(
        self, batch: JaxBatch, layers: Sequence[str], labels: Labels
    ) -> Mapping[str, LayerStatistics]:
        """Return what the layers see of the points: a forward pass, and a backward pass a slice.

        The distribution of the labels is known for `cross_entropy` of this package and for the
        like of optax.

        Raises:
            CapabilityError: another loss, and labels that are not the given ones.
            ModelError: at these points, the traced model has other layers.
        """
        names, shapes = tuple(layers), _point_shapes(batch.x)
        traced, found = self._traced(shapes), self._layers(shapes)
        if missing := set(names) - set(found.found):
            raise ModelError(
                f"the layers {sorted(missing)} are not found in the model as it is traced for x "
                f"{shown(batch.x)}: `apply` must do the same for inputs of every shape."
            )
        kind, positions, slices = LabelKind.GIVEN, 0, 1
        if labels.kind is not LabelKind.GIVEN:
            check_known(self._losses.loss, labels.kind)
            kind, positions = (
                kind_or_default(labels.kind, traced.answer),
                positions_of(traced.answer),
            )
            slices = positions * traced.answer.shape[-1] if kind is LabelKind.EXPECTED else 1
        observer = Observer(self._losses, traced, found, names, kind, self._rows)
        run = self._compiled(f"layer_statistics, {kind}", names, observer.points, shapes)
        uniforms = None
        if kind is LabelKind.SAMPLED:
            drawn = labels.uniforms(positions).swapaxes(0, 1)
            uniforms = jnp.asarray(drawn, dtype=self.reference.dtype)
        parts = [
            run(part.x, part.y, None if uniforms is None else uniforms[points])
            for points, part in self._parts(batch, slices)
        ]
        return joined(parts, self.reference.dtype)

    def values(self, names: Sequence[str]) -> Array:
        """Return the parameters of the snapshot, `(d,)`."""
        return self._layout(names).join(self._snapshot.parameters)

    def constants(self) -> Mapping[str, Any]:
        """Return name to value of the numbers in the tree that are no parameters."""
        return self._snapshot.constants

    @contextmanager
    def shelter(self) -> Iterator[None]:
        """Multiply matrices in full precision, and in 64 bits only where JAX has them.

        Raises:
            DataTypeError: the parameters are float64, and 64-bit numbers were disabled since.
        """
        check_precision(self.reference.dtype, "the parameters", "fit float32 parameters anew")
        with jax.default_matmul_precision("float32"):
            yield

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was traced and compiled."""
        return {k: v for k, v in self.__dict__.items() if k not in self._found_out()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with nothing compiled."""
        self.__dict__.update(state, **self._found_out())

    @staticmethod
    def _found_out() -> dict[str, dict[Any, Any]]:
        """Return empty places for what is made once for each shape."""
        return {"_programs": {}, "_traces": {}, "_found": {}, "_known": {}}

    def _layout(self, names: Sequence[str]) -> Layout:
        return Layout.of(self._snapshot.parameters, names)

    def _products(self, names: Sequence[str]) -> Products:
        layout = self._layout(names)
        numbers = layout.size * self.reference.dtype.itemsize
        return Products(self._losses, layout, lambda x, points: self._rows(x, points, numbers))

    def _compiled(
        self, call: str, names: Sequence[str], compute: Callable[..., Any], *more: Any
    ) -> Callable[..., Any]:
        """Return `compute`, called with all parameters before its other arguments, jitted once."""
        key = (call, *names, *map(_key, more))
        if key not in self._programs:
            self._programs[key] = jax.jit(compute)
        program = self._programs[key]

        def run(*arguments: Any) -> Any:
            with self.shelter(), _failing(call):
                return program(self._snapshot.parameters, *arguments)

        return run

    def _traced(self, shapes: Any) -> Trace:
        """Return the trace of the model at one point."""
        key = _key(shapes)
        if key not in self._traces:
            names = list(self._snapshot.parameters)

            def outputs(values: Sequence[Array], batch: Any) -> Any:
                return self._snapshot(dict(zip(names, values, strict=True)), batch)

            values = list(self._snapshot.parameters.values())
            one = jax.tree.map(lambda t: jax.ShapeDtypeStruct((1, *t.shape), t.dtype), shapes)
            with self.shelter(), _failing("apply"):
                self._traces[key] = trace(outputs, values, one)
        return self._traces[key]

    def _layers(self, shapes: Any) -> Layers:
        """Return the dense layers of the model at one point."""
        key = _key(shapes)
        if key not in self._found:
            self._found[key] = find_layers(self._traced(shapes), self.parameters)
        return self._found[key]

    def _check_shapes(self, batch: JaxBatch, where: str) -> None:
        key = (_key(batch.x), _key(batch.y))
        if key not in self._known:
            check_shapes(self._losses, batch.x, batch.y, batch.size, where)
            self._known[key] = None

    def _compare(self, batch: JaxBatch, where: str) -> None:
        run = self._compiled("loss", (), self._losses.comparison)
        floats = split_floats(batch.x)[0]

        def compare(factor: float) -> Comparison:
            value, points, size = run(batch.x, batch.y, jnp.asarray(factor, jnp.float32))
            dtypes = {t.dtype for t in (self.reference, value, *floats)}
            exact = dtypes == {jnp.dtype("float64")}
            return Comparison.of(value, points, size, jnp.float64 if exact else jnp.float32)

        self._contract.check(compare, where)

    def _joined(self, of_part: Callable[[JaxBatch], Any], batch: JaxBatch) -> Any:
        """Return what `of_part` says about the points, `(k, n, …)`, for all points of `batch`."""
        return concatenate_trees([of_part(part) for _, part in self._parts(batch)], axis=1)

    def _averaged(self, of_part: Callable[[JaxBatch], Array], batch: JaxBatch) -> Array:
        """Return the mean over the points of `batch` of means over parts of them."""
        terms = [of_part(part) * (part.size / batch.size) for _, part in self._parts(batch)]
        return sum(terms[1:], start=terms[0])

    def _parts(self, batch: JaxBatch, passes: int = 1) -> Iterator[tuple[slice, JaxBatch]]:
        """Yield the batch in slices for which so many passes, of one row, fit into memory."""
        size = _ARRAYS_PER_ROW * passes * self._traced(_point_shapes(batch.x)).bytes
        fitting = max(self._memory // max(size, 1), 1)
        if fitting >= batch.size:
            yield slice(None), batch
            return
        for start in range(0, batch.size, fitting):
            points = slice(start, start + fitting)
            yield points, batch[points]

    def _rows(self, x: Any, points: int, numbers: int = 0) -> int:
        """Return how many rows fit into memory, each with some points and bytes of its own."""
        forward = points * self._traced(_point_shapes(x)).bytes
        return max(self._memory // max(_ARRAYS_PER_ROW * (forward + numbers), 1), 1)


def _point_shapes(x: Any) -> Any:
    """Return the shapes of the arrays of one point."""
    return jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), x)


def _key(shapes: Any) -> Any:
    """Return something to look up by."""
    leaves, structure = jax.tree.flatten(shapes)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


@contextmanager
def _failing(call: str) -> Iterator[None]:
    """Say which derivative it was that JAX could not take."""
    try:
        yield
    except (InfluenceError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # whatever the user's code raises, or JAX cannot differentiate
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"`{call}` of the model and loss fails: {type(error).__name__}: {reason} Every "
            "operation needs a first and a second derivative, forward and backward; replace the "
            "one that has none (a `while_loop`, a `custom_vjp`)."
        ) from error
