"""dtypes and devices: answers in the parameters' dtype and on their device, the same numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from solvers import NAMED, ROUTES, SOLVERS
from torch import nn
from zoo import MODES, Case, classes, close, convex_case, mlp_case, normal, seeded

from influence_core.errors import DeviceError, ModelError
from influence_torch import CgInfluence, DirectInfluence, NystroemPreconditioner

CASE = convex_case()
TEST = CASE.part(0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_answers_have_the_dtype_of_the_parameters(solver, dtype):
    case = convex_case(dtype=dtype)
    model = solver(case.model, case.loss, 0.5, **solver.known(rtol=1e-5))
    assert model.dtype == dtype
    assert model.device == torch.device("cpu")
    assert model.n_parameters == 15
    assert model.block_names == [""]
    assert not model.is_fitted
    model.fit(solver.loader(case))
    test = case.part(0, 4)
    answers = [
        model.influence_factors(*test),
        model.influences(*test),
        model.influences(*test, mode="perturbation"),
        model.self_influences(solver.loader(case)),
        model.influences_over([1.0, 2.0], *test),
        *model.influences_by_block(*test).values(),
    ]
    for answer in answers:
        assert answer.dtype == dtype
        assert answer.device == torch.device("cpu")
        assert not answer.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("data", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_is_computed_in_float32(solver, dtype, data):
    # few steps of LiSSA are enough where λ is no small part of the curvature
    regularization = 0.5 if solver is NAMED["LissaInfluence"] else 1e-2
    model = convex_case().model.to(dtype)
    x = normal(23, 4).bfloat16().half()  # numbers that every dtype here has
    case = Case(model, F.cross_entropy, x.to(data), CASE.y)
    keywords = solver.known(rtol=1e-5)
    fitted = solver(model, case.loss, regularization, **keywords).fit(solver.loader(case))
    assert fitted.dtype == dtype
    got = fitted.influences(*case.part(0, 4), case.x, case.y)
    assert got.dtype == dtype
    how = {"regularization": regularization}
    want = solver.dense(case).influences(*case.part(0, 4), case.x, case.y, **how)
    # the rounding of the answer itself; a computation in half precision is off by far more
    close(got, want, 2 * torch.finfo(dtype).eps)
    assert {p.dtype for p in model.parameters()} == {dtype}
    perturbed = fitted.influences(*case.part(0, 4), mode="perturbation")
    assert perturbed.dtype == dtype
    factors = fitted.influence_factors(*case.part(0, 4))
    assert fitted.influences_from_factors(factors, case.x, case.y).dtype == dtype


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_mixed_precision(short):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))).float()
    model[0].to(short)
    case = Case(model, F.cross_entropy, normal(11, 4, dtype=torch.float32), classes(11))
    fitted = DirectInfluence(model, case.loss, 0.5, second_order_mode=MODES[1]).fit(case.loader(4))
    assert fitted.dtype == torch.float32
    want = case.dense().influences(case.x, case.y, mode=MODES[1], regularization=0.5)
    close(fitted.influences(case.x, case.y), want, 1e-5)


def test_frozen_parameters_may_have_another_dtype():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)))
    model[0].float().requires_grad_(False)

    def forward(m, x):
        return m[2](m[1](m[0](x.float())).double())

    case = Case(model, F.cross_entropy, normal(11, 4), classes(11), forward)
    fitted = DirectInfluence(model, case.loss, 0.5, forward=forward).fit(case.loader(4))
    assert fitted.dtype == torch.float64

    def exact(m, x):
        return m[2](m[1](m[0](x)))

    want = (
        Case(model, case.loss, case.x, case.y, exact)
        .dense()
        .influences(case.x, case.y, regularization=0.5)
    )
    close(fitted.influences(case.x, case.y), want, 1e-5)


def test_float32_and_float64_do_not_go_together():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).double())
    with pytest.raises(ModelError, match=r"model\.double\(\)"):
        DirectInfluence(model, F.cross_entropy, 1.0).fit([TEST])


def test_data_of_another_dtype():
    model = DirectInfluence(convex_case(dtype=torch.float32).model, F.cross_entropy, 1.0)
    with pytest.raises(
        ModelError, match=r"parameters are torch.float32, x is \(7, 4\) torch.float64"
    ):
        model.fit(CASE.loader(7))
    assert not model.is_fitted


def test_meta():
    with pytest.raises(DeviceError, match="meta"):
        DirectInfluence(nn.Linear(4, 3, device="meta"), F.cross_entropy, 1.0).fit([TEST])
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, device="meta"))
    with pytest.raises(ValueError, match="meta"):
        DirectInfluence(model, F.cross_entropy, 1.0).fit([TEST])


@pytest.mark.parametrize("solver", SOLVERS)
def test_to_cpu(solver):
    model = solver(CASE.model, CASE.loss, 0.5).to("cpu")
    assert not model.is_fitted
    want = model.fit(solver.loader(CASE)).influences(*TEST)
    assert model.to(torch.device("cpu")) is model
    assert torch.equal(model.influences(*TEST), want)
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_to_nowhere(solver, fit, monkeypatch):
    model = solver(CASE.model, CASE.loss, 0.5)
    if fit:
        model.fit(CASE.loader())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices = ["nonsense", None] if torch.cuda.device_count() else ["nonsense", None, "cuda"]
    for device in devices:
        with pytest.raises(DeviceError, match="needs a device that torch can use"):
            model.to(device)
    assert model.fit(CASE.loader()).device == torch.device("cpu")


@pytest.mark.parametrize(("solver", "mode"), ROUTES)
def test_autocast_of_the_caller_changes_nothing(solver, mode):
    case = (convex_case if mode == "hessian" else mlp_case)(dtype=torch.float32)
    model = solver(case.model, case.loss, 5.0, **solver.known(second_order_mode=mode, rtol=1e-5))
    calls = [
        lambda: model.fit(solver.loader(case)).influences(*case.part(0, 3), case.x, case.y),
        lambda: model.influences(*case.part(0, 3), mode="perturbation"),
        lambda: model.influence_factors(*case.part(0, 3)),
        lambda: model.self_influences(case.loader()),
        lambda: model.influences_over([1.0, 2.0], *case.part(0, 3)),
        lambda: model.removal_effects(*case.part(0, 3), case.x, case.y, leverage=True),
        lambda: torch.tensor(model.gradient_norm),
    ]
    want = [call() for call in calls]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = [call() for call in calls]
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


gpu = pytest.mark.gpu
GPU = "cuda"


VARIANTS = {
    "direct": (DirectInfluence, {}),
    "cg": (CgInfluence, {"rtol": 1e-12, "atol": 0.0}),
    "block cg": (CgInfluence, {"rtol": 1e-12, "atol": 0.0, "solve_simultaneously": True}),
    "preconditioned": (
        CgInfluence,
        {"rtol": 1e-12, "atol": 0.0, "preconditioner": NystroemPreconditioner(5)},
    ),
    "kept": (CgInfluence, {"rtol": 1e-12, "atol": 0.0, "precompute_grad": True}),
}


@gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("where", ["model on the GPU", "to before fit", "to after fit"])
def test_gpu(variant, mode, where):
    solver, keywords = VARIANTS[variant]
    case = convex_case() if mode == "hessian" else mlp_case()
    module = copy.deepcopy(case.model)
    if where == "model on the GPU":
        module.to(GPU)
    model = solver(module, case.loss, 0.1, second_order_mode=mode, **keywords)
    if where == "to before fit":
        model.to(GPU)
    model.fit(case.loader())  # the data stays on the CPU: it is moved
    if where == "to after fit":
        model.to(GPU)
    if where != "model on the GPU":
        assert {p.device.type for p in module.parameters()} == {"cpu"}
    for influence in ("up", "perturbation"):
        got = model.influences(*case.part(0, 4), case.x, case.y, influence)
        assert got.device.type == model.device.type == GPU
        want = case.dense().influences(
            *case.part(0, 4), case.x, case.y, influence, mode=mode, regularization=0.1
        )
        close(got, want)
    want = case.dense().influences(*case.part(0, 4), mode=mode, regularization=0.1)
    close(model.to("cpu").influences(*case.part(0, 4)), want)


@gpu
@pytest.mark.parametrize(("solver", "mode"), ROUTES)
@pytest.mark.parametrize("where", ["model on the GPU", "to before fit", "to after fit"])
def test_gpu_of_every_class(solver, mode, where):
    case = convex_case() if mode == "hessian" else mlp_case()
    module = copy.deepcopy(case.model).to(GPU if where == "model on the GPU" else "cpu")
    model = solver(module, case.loss, 0.5, **solver.known(second_order_mode=mode))
    if where == "to before fit":
        model.to(GPU)
    model.fit(solver.loader(case))
    if where == "to after fit":
        model.to(GPU)
    how = {"mode": mode, "regularization": 0.5}
    for influence in ("up", "perturbation"):
        got = model.influences(*case.part(0, 4), case.x, case.y, influence)
        assert got.device.type == model.device.type == GPU
        want = solver.dense(case).influences(*case.part(0, 4), case.x, case.y, influence, **how)
        close(got, want)
    norm = model.gradient_norm
    removed = model.removal_effects(*case.part(0, 4), case.x, case.y)
    close(removed, solver.dense(case).influences(*case.part(0, 4), case.x, case.y, **how) / 23)
    assert model.to("cpu").gradient_norm == pytest.approx(norm)
    close(
        model.influences(*case.part(0, 4)), solver.dense(case).influences(*case.part(0, 4), **how)
    )


@gpu
@pytest.mark.parametrize("solver", SOLVERS)
def test_gpu_float32_is_not_shortened(solver):
    case = mlp_case(dtype=torch.float32)
    keywords = solver.known(second_order_mode=MODES[2], rtol=1e-6)
    model = solver(copy.deepcopy(case.model).to(GPU), case.loss, 0.5, **keywords)
    got = model.fit(solver.loader(case)).influences(*case.part(0, 4), case.x, case.y)
    how = {"mode": MODES[2], "regularization": 0.5}
    close(got, solver.dense(case).influences(*case.part(0, 4), case.x, case.y, **how), 1e-4)


@gpu
@pytest.mark.parametrize("solver", SOLVERS)
def test_gpu_with_cupy(solver):
    pytest.importorskip("cupy")
    case = mlp_case()
    keywords = solver.known(second_order_mode=MODES[2], eigen_computation_on_gpu=True)
    model = solver(
        copy.deepcopy(case.model).to(GPU), case.loss, 0.5, array_backend="cupy", **keywords
    ).fit(solver.loader(case))
    got = model.influences(*case.part(0, 4), case.x, case.y)
    assert isinstance(got, torch.Tensor)
    how = {"mode": MODES[2], "regularization": 0.5}
    close(got, solver.dense(case).influences(*case.part(0, 4), case.x, case.y, **how))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.TransformerEncoderLayer(4, 2, 3, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.core(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.core, self.head = kind(4, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.core(x)[0][:, -1])


@gpu
@pytest.mark.filterwarnings("ignore::influence_core.errors.ConditioningWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [Attentive, lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.LSTM)])
def test_gpu_sequences(make, dtype, mode):
    case = Case(seeded(make), F.cross_entropy, normal(9, 3, 4), classes(9))
    single = seeded(make).to(GPU, dtype)
    loader = [(x.to(dtype), y) for x, y in case.loader(4)]
    model = DirectInfluence(single, case.loss, 2.0, second_order_mode=mode).fit(loader)
    want = case.dense().influences(*case.part(0, 4), mode=mode, regularization=2.0)
    got = model.influences(case.x[:4].to(dtype), case.y[:4])
    close(got, want, 1e-8 if dtype == torch.float64 else 1e-4)


@gpu
@pytest.mark.parametrize("mode", MODES)
def test_gpu_convolutions_in_float32(mode):
    def make():
        return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))

    case = Case(seeded(make), F.cross_entropy, normal(9, 1, 5, 5), classes(9))
    loader = [(x.float(), y) for x, y in case.loader(4)]
    model = DirectInfluence(seeded(make).to(GPU).float(), case.loss, 2.0, second_order_mode=mode)
    want = case.dense().influences(*case.part(0, 4), mode=mode, regularization=2.0)
    close(model.fit(loader).influences(case.x[:4].float(), case.y[:4]), want, 1e-4)


@gpu
def test_gpu_leaves_the_generators():
    before = torch.cuda.get_rng_state()
    model = DirectInfluence(copy.deepcopy(CASE.model).to(GPU), CASE.loss, 1.0).fit(CASE.loader())
    model.influences(*TEST)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@gpu
def test_parameters_on_two_devices():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).to(GPU))
    with pytest.raises(DeviceError, match="one device"):
        DirectInfluence(model, F.cross_entropy, 1.0).fit([TEST])
