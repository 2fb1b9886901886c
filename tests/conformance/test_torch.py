"""The torch backend conforms: several modules, in both precisions, with trees as inputs."""

import numpy as np
import pytest
from subjects import cross_entropy, differences, make_data, squared

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


class TwoInputs(nn.Module):
    """Takes a dict of floating-point numbers and of labels."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)
        self.output = nn.Linear(2, 2)

    def forward(self, x):
        return self.output(torch.tanh(self.table(x["kind"]) * x["size"]))


def two_inputs(p, x):
    a = np.tanh(p["table.weight"][x["kind"]] * x["size"])
    return a @ p["output.weight"].T + p["output.bias"]


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


def subject_of(model, loss, data, oracle):
    return Subject(model, loss, data, lambda: dict(model.named_parameters()), oracle)


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


def tree():
    """Inputs in a dict, one leaf of which has no derivative."""
    x, y = tensors("squared")
    x = {"kind": torch.arange(7) % 3, "size": x[:, :2]}
    oracle = FiniteDifferences(lambda p, x, y: squared(two_inputs(p, x), y), two_inputs, squared)
    return subject_of(seeded(TwoInputs()), mean_squared, (x, y), oracle)


@pytest.fixture(
    scope="module",
    params=[perceptron, lambda: perceptron("labels"), closed_perceptron, linear, tree],
    ids=["squared", "cross-entropy", "float32-closed-form", "linear", "tree"],
)
def subject(request):
    return request.param()


class TestConformance(BackendConformance):
    pass
