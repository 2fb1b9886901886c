"""Models and data that the benchmarks share: scikit-learn's digits and networks trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TRAIN, BATCH = 1437, 479


@dataclass(frozen=True)
class Workload:
    """A trained model, its loss and regularisation, and the digits."""

    model: nn.Module
    loss: nn.Module
    regularization: float
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def loader(self) -> DataLoader:
        """The training data in batches of 479."""
        return DataLoader(TensorDataset(self.x, self.y), batch_size=BATCH)

    def double(self) -> Workload:
        """Return the same parameters and data in float64."""
        model = nn.Sequential(*self.model)
        model = _mlp(_sizes(model)).double()
        model.load_state_dict(self.model.state_dict())
        return Workload(
            model.eval(), self.loss, self.regularization,
            self.x.double(), self.y, self.x_test.double(), self.y_test,
        )  # fmt: skip


def digits_mlp(sizes: tuple[int, ...] = (64, 32, 10), regularization: float = 1e-2) -> Workload:
    """Return an MLP with tanh, trained to the optimum of `mean ℓ + λ/2 ‖θ‖²`, in float32."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(images / 16), torch.as_tensor(labels)
    model = _mlp(sizes).double()
    _train(model, x[:TRAIN], y[:TRAIN], regularization)
    x = x.float()
    return Workload(
        model.float().eval(), nn.CrossEntropyLoss(), regularization,
        x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:],
    )  # fmt: skip


def _mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _sizes(model: nn.Sequential) -> tuple[int, ...]:
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    return (linear[0].in_features, *(layer.out_features for layer in linear))


def _train(model: nn.Module, x: Tensor, y: Tensor, regularization: float) -> None:
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, history_size=100, tolerance_grad=1e-7,
        tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        penalty = sum((p**2).sum() for p in model.parameters())
        value = nn.functional.cross_entropy(model(x), y) + regularization / 2 * penalty
        value.backward()
        return value

    optimizer.step(objective)
