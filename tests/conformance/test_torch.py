"""The torch backend conforms: several modules, in both precisions, with trees as inputs."""

import numpy as np
import pytest
from subjects import cross_entropy, differences, make_data, squared

from influence_core.plugins import BackendSpec
from influence_core.testing import (
    BackendConformance,
    ClosedForm,
    FiniteDifferences,
    Logistic,
    Subject,
    TanhNetwork,
)

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_mutants import MUTANTS  # noqa: E402

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class TwoInputs(nn.Module):
    """Takes a dict of floating-point numbers and of labels."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.norm.bias.requires_grad_(False)
        self.norm.running_mean.fill_(0.2)
        self.norm.running_var.fill_(1.7)
        self.output = nn.Linear(2, 2)

    def forward(self, x):
        return self.output(self.norm(torch.tanh(self.table(x["kind"]) * x["size"])))


def two_inputs(norm):
    """The outputs in NumPy, with the frozen parameter and the buffers of a normalisation."""
    shift, mean, variance = (t.numpy() for t in (norm.bias, norm.running_mean, norm.running_var))

    def outputs(p, x):
        a = np.tanh(p["table.weight"][x["kind"]] * x["size"])
        a = (a - mean) / np.sqrt(variance + norm.eps) * p["norm.weight"] + shift
        return a @ p["output.weight"].T + p["output.bias"]

    return outputs


def mean_squared(outputs, y):
    """As `squared` for every point, and its mean over the batch."""
    return 0.5 * ((outputs - y) ** 2).sum(dim=1).mean()


def seeded(model, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def tensors(loss, dtype=torch.float64):
    x, y = (torch.tensor(a) for a in make_data(loss))
    return x.to(dtype), y if y.dtype == torch.int64 else y.to(dtype)


def parameters_of(model):
    """Detached, so that they can be written into."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def state_of(model):
    """What else of a model, and of torch, a backend could change."""
    modules, parameters = list(model.modules()), list(model.parameters())
    return {
        "mode": [module.training for module in modules],
        "buffers": dict(model.named_buffers()),
        "requires_grad": [p.requires_grad for p in parameters],
        "frozen parameters": [p for p in parameters if not p.requires_grad],
        "grad": [p.grad for p in parameters],
        "hooks": [len(getattr(module, kind)) for module in modules for kind in HOOKS],
        "random generator": torch.get_rng_state(),
    }


def subject_of(model, loss, data, oracle, **fields):
    return Subject(
        model,
        data,
        oracle,
        loss=loss,
        parameters=lambda: parameters_of(model),
        state=lambda: state_of(model),
        **fields,
    )


def perceptron(loss="squared"):
    """Held against finite differences."""
    model = seeded(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)))
    if loss == "squared":
        return subject_of(model, mean_squared, tensors("squared"), differences(squared))
    entropy = nn.functional.cross_entropy
    return subject_of(model, entropy, tensors("labels"), differences(cross_entropy))


def closed_perceptron():
    """Held against a closed form, in float32; the loss is a sum."""
    model = seeded(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), torch.float32)
    names = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")

    def twin(parameters):
        return TanhNetwork(dict(zip(names, parameters.values(), strict=True)), "cross_entropy")

    loss = nn.CrossEntropyLoss(reduction="sum")
    return subject_of(model, loss, tensors("labels", torch.float32), ClosedForm(twin))


def linear():
    """Bare, without a bias; the loss comes as a vector."""
    model = seeded(nn.Linear(3, 2, bias=False))
    loss = nn.CrossEntropyLoss(reduction="none")
    return subject_of(model, loss, tensors("labels"), ClosedForm(lambda p: Logistic(dict(p))))


def tree(**fields):
    """Inputs in a dict, one leaf of which has no derivative; a normalisation in part frozen."""
    x, y = tensors("squared")
    x = {"kind": torch.arange(7) % 3, "size": x[:, :2]}
    model = seeded(TwoInputs())
    outputs = two_inputs(model.norm)
    oracle = FiniteDifferences(lambda p, x, y: squared(outputs(p, x), y), outputs, squared)
    return subject_of(model, mean_squared, (x, y), oracle, **fields)


class TestConformance(BackendConformance):
    @pytest.fixture(
        scope="class",
        params=[perceptron, lambda: perceptron("labels"), closed_perceptron, linear, tree],
        ids=["squared", "cross-entropy", "float32-closed-form", "linear", "tree"],
    )
    @staticmethod
    def subject(request):
        return request.param()


@pytest.mark.parametrize(("mutant", "what"), MUTANTS.items())
def test_a_trace_in_the_model_is_noticed(mutant, what):
    factory = f"{mutant.__module__}:{mutant.__name__}"
    types = ("torch.nn.modules.module.Module",)
    with torch.random.fork_rng(devices=[]):
        subject = tree(backend=BackendSpec("mutant", factory, types))
        with pytest.raises(AssertionError, match=f"the user's model as it is; '{what}' was"):
            TestConformance().test_the_model_is_left_alone(subject)
