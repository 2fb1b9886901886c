"""A copy of the user's module, read once: nothing that happens here reaches the original."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from influence_core.errors import DeviceError, ModelError, OptionError
from influence_torch.kernels import replace_kernels

_LOGGER = logging.getLogger(__name__)

Forward = Callable[[nn.Module, Any], Any]

_HALF = (torch.float16, torch.bfloat16)


class Snapshot:
    """The parameters, buffers and code of a module at one moment.

    Forward hooks of the module are copied with it: they run with the copy and see its tensors.
    Half-precision parameters are computed with in float32. Each thread calls a copy of the module
    of its own; all copies share the tensors.

    Attributes:
        parameters: name to value of those that want gradients, in the model's order, detached.
        dtype: the dtype of the user's parameters.
    """

    def __init__(self, model: nn.Module, forward: Forward | None, device: Any) -> None:
        """Copy `model`, to `device` if one is given.

        Raises:
            ModelError: the module cannot be copied or differentiated.
            DeviceError: its parameters lie on several devices.
            OptionError: `forward` cannot be called.
        """
        check_module(model)
        check_forward(forward)
        if device is not None:
            check_device(device)
        model = _differentiable(model)
        wanted = {name for name, p in model.named_parameters() if p.requires_grad}
        if not wanted:
            raise ModelError(
                f"`{type(model).__name__}` has no parameter with `requires_grad=True`; "
                "influence functions need at least one."
            )
        self._module = _copy(model)
        replace_kernels(self._module)
        self._forward = forward or _call
        self._threads = threading.local()
        self.dtype = _common_dtype(dict(self._module.named_parameters()), wanted)
        if any(self._module.get_parameter(name).dtype in _HALF for name in wanted):
            self._module.float()
        if device is not None:
            self._module.to(device)
        self._read(wanted)
        if any(module._forward_hooks or _pre_hooks(module) for module in self._module.modules()):
            _LOGGER.info("the forward hooks of the model run with a copy of it, in every product")

    @property
    def device(self) -> torch.device:
        """Where the snapshot lies."""
        return next(iter(self.parameters.values())).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """What is computed in: the parameters' dtype, or float32 where that is shorter."""
        return next(iter(self.parameters.values())).dtype

    @property
    def constants(self) -> dict[str, Tensor]:
        """Name to value of the frozen parameters and the buffers."""
        frozen = {n: p for n, p in self._all_parameters.items() if n not in self.parameters}
        return {**frozen, **self._buffers}

    @property
    def exact(self) -> bool:
        """Whether all parameters, frozen ones too, are float64."""
        return all(p.dtype == torch.float64 for p in self._all_parameters.values())

    @property
    def recurrent(self) -> bool:
        """Whether fused recurrent kernels, which have no second derivative, must be avoided."""
        return any(isinstance(module, nn.RNNBase) for module in self._module.modules())

    def __call__(self, parameters: Mapping[str, Tensor], x: Any) -> Any:
        """Return the model's output at `x` with some parameters replaced."""
        # clones: a forward may write into its buffers and into its input
        x = pytree.tree_map_only(Tensor, torch.clone, x)
        constants = {name: t.clone() for name, t in self._buffers.items()}
        tensors = {**constants, **self._all_parameters, **parameters}
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        return torch.func.functional_call(self._caller(), named, (x,))

    @property
    def module(self) -> nn.Module:
        """The copy of the user's module that this thread calls."""
        return self._caller().module

    def check(self) -> None:
        """Raise if the model cannot be used in its present state.

        Raises:
            ModelError: a module in train mode is random or mixes points, or a parameter is NaN.
        """
        for name, module in self._module.named_modules():
            if module.training and _depends_on_mode(module):
                raise ModelError(
                    f"the model is in train mode, where {type(module).__name__} ({name or 'root'}) "
                    "is random or mixes the points of a batch: the loss of one point has no "
                    "meaning. Call `model.eval()` before `fit`."
                )
        for name, parameter in self._all_parameters.items():
            if not torch.isfinite(parameter).all():
                raise ModelError(
                    f"the parameter {name!r} holds NaN or infinity. Train the model anew, or load "
                    "parameters that are finite."
                )

    def to(self, device: Any) -> Snapshot:
        """Return the snapshot on `device`.

        Raises:
            DeviceError: torch has no such device here.
        """
        check_device(device)
        moved = copy.copy(self)
        moved._module = copy.deepcopy(self._module).to(device)
        moved._threads = threading.local()
        moved._read(set(self.parameters))
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the copies of the threads."""
        return {k: v for k, v in self.__dict__.items() if k != "_threads"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without copies of threads."""
        self.__dict__.update(state, _threads=threading.local())

    def _read(self, wanted: set[str]) -> None:
        named = {name: p.detach() for name, p in self._module.named_parameters()}
        devices = {str(p.device) for p in named.values()}
        if "meta" in devices:
            raise DeviceError(
                "the model's parameters must hold numbers; some lie on the device 'meta'. "
                "Load them first, with `model.to_empty(device=...)` and `load_state_dict` say."
            )
        if len(devices) > 1:
            raise DeviceError(
                f"the model's parameters must lie on one device; got {sorted(devices)}. "
                "Move the model with `model.to(device)`."
            )
        self._all_parameters = named
        self._buffers = {name: b.detach() for name, b in self._module.named_buffers()}
        self.parameters = {name: p for name, p in named.items() if name in wanted}

    def _caller(self) -> _Caller:
        if not hasattr(self._threads, "caller"):
            # the tensors are in the memo: only the Python objects are copied
            tensors = [*self._module.parameters(), *self._module.buffers()]
            module = copy.deepcopy(self._module, {id(t): t for t in tensors})
            self._threads.caller = _Caller(module, self._forward)
        return self._threads.caller


class _Caller(nn.Module):
    """Calls a module through `forward=`, in a form that `functional_call` takes."""

    def __init__(self, module: nn.Module, call: Forward) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)
        for ours, theirs in zip(self.module.modules(), module.modules(), strict=True):
            ours.training = theirs.training
        self._call = call

    def forward(self, x: Any) -> Any:
        return self._call(self.module, x)


def _call(model: nn.Module, x: Any) -> Any:
    return model(x)


def check_module(model: Any) -> None:
    """Raise unless `model` is a Python module of torch.

    Raises:
        ModelError: it is not.
    """
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise ModelError(
            "a TorchScript model cannot be differentiated by torch.func. Pass the Python module "
            "that was scripted or traced, with the same parameters."
        )
    if not isinstance(model, nn.Module):
        raise ModelError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")


def check_forward(forward: Any) -> None:
    """Raise unless `forward` can be called, or is None.

    Raises:
        OptionError: it cannot.
    """
    if not callable(forward or _call):
        raise OptionError(f"`forward` must be callable as forward(model, x); got {forward!r}.")


def check_device(device: Any) -> None:
    """Raise unless tensors can be made on `device`.

    Raises:
        DeviceError: they cannot.
    """
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"`to({device!r})` needs a device that torch can use on this machine ({reason}). "
            "Pass 'cpu', or where `torch.cuda.is_available()` a device such as 'cuda:0'."
        ) from error


def _differentiable(model: nn.Module) -> nn.Module:
    if any(isinstance(hook, WeightNorm) for m in model.modules() for hook in _pre_hooks(m)):
        raise ModelError(
            "torch.nn.utils.weight_norm has no right second derivative; "
            "use torch.nn.utils.parametrizations.weight_norm."
        )
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps; vmap needs what is inside
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ModelError(f"the parameters {lazy} have no shape yet. Call the model once first.")
    return model


def _pre_hooks(module: nn.Module) -> Iterable[Any]:
    return module._forward_pre_hooks.values()


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"`{type(model).__name__}` cannot be copied ({error}). Every tensor that it holds must "
            "be a parameter or a buffer, or detached."
        ) from error


def _common_dtype(parameters: Mapping[str, Tensor], wanted: set[str]) -> torch.dtype:
    dtypes = {p.dtype for name, p in parameters.items() if name in wanted}
    if any(not dtype.is_floating_point for dtype in dtypes):
        raise ModelError(f"parameters must be real floating-point numbers; got {dtypes}.")
    if len(dtypes - set(_HALF)) > 1 or (len(dtypes) > 1 and torch.float64 in dtypes):
        raise ModelError(
            f"the parameters that want gradients must share one dtype; got {dtypes}. "
            "Convert the model with `model.float()` or `model.double()`."
        )
    return next(iter(dtypes)) if len(dtypes) == 1 else torch.float32


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.track_running_stats
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.modules.batchnorm._NormBase)
