"""The base of all influence function models of JAX functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from influence_core import Influence
from influence_core.errors import ModelError
from influence_core.facade import Settings
from influence_core.layer_calls import LayerCalls
from influence_core.memory import check_memory
from influence_core.plugins import BackendSpec
from influence_jax.likelihoods import cross_entropy
from influence_jax.losses import Loss, check_loss
from influence_jax.model import Apply, Model
from influence_jax.plugin import influence_backends
from influence_jax.snapshot import device_at, find_device, place_of


class JaxInfluence(Influence):
    """A method of the core on a JAX function: what the documented classes share.

    The parameters are read when `fit` is entered. An instance pickles where `apply` and `loss` do:
    functions of modules, and methods of objects that pickle, but no lambdas.

    Args:
        apply: `apply(params, x)`, a pure function that JAX can trace; the points stand along the
            first axis of `x` and of the outputs.
        params: the trained parameters, any tree of JAX arrays. All floating-point arrays in it are
            parameters; integers, booleans and what is no number are constants.
        loss: `loss(outputs, y)` of a batch: the mean, the sum or the vector over its points.
        settings: method, regularisation, blocks, curvature and the library of the solver.
        max_memory: bytes that one product may hold; None allows 1 GiB.
    """

    def __init__(
        self, apply: Apply, params: Any, loss: Loss, settings: Settings, *, max_memory: int | None
    ) -> None:
        """Check the settings; nothing is computed before `fit`."""
        model = Model(apply, params)
        check_loss(loss)
        check_memory(max_memory)
        self.apply, self.params, self.loss = apply, params, loss
        super().__init__(
            model,
            loss,
            settings.method,
            regularization=settings.regularization,
            block_structure=settings.block_structure,
            second_order_mode=settings.second_order_mode,
            backend=influence_backends(),
            array_backend=settings.array_backend,
            max_memory=max_memory,
        )

    @classmethod
    def _unfitted(
        cls,
        model: Model,
        loss: Loss | None,
        *,
        backend: BackendSpec,
        options: Mapping[str, Any],
        **settings: Any,
    ) -> Self:
        del backend  # the class knows its own
        if not isinstance(model, Model):
            raise ModelError(
                "`load` takes the function and the parameters of JAX as one; got "
                f"{type(model).__name__}. Pass `influence_jax.Model(apply, params)`."
            )
        instance = cls.__new__(cls)
        if loss is None and issubclass(cls, LayerCalls):
            loss = cross_entropy  # what these classes take where they are given none
        JaxInfluence.__init__(
            instance, model.apply, model.params, loss, Settings(**settings), **options
        )
        return instance

    def to(self, device: Any) -> Self:
        """Move the snapshot and everything fitted to `device`; a later `fit` works there too.

        Args:
            device: one of `jax.devices()`, or a name such as ``"cpu"`` or ``"gpu:1"``.

        Raises:
            DeviceError: JAX has no such device here.
        """
        return super().to(find_device(device))

    def __getstate__(self) -> dict[str, Any]:
        """Name the device that `to` was called with: it belongs to this process."""
        place = None if self._device is None else place_of(self._device)
        return {**self.__dict__, "_device": place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the device again, or take the one that there is."""
        place = state["_device"]
        self.__dict__.update(state, _device=None if place is None else device_at(place))
