"""Models and data that the benchmarks share: scikit-learn's digits and networks trained on them.

A workload is trained once and saved; every library reads the same file, in a process and an
environment of its own. So only what trains imports scikit-learn.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TRAIN = 1437


@dataclass(frozen=True)
class Workload:
    """A trained model, its loss and regularisation, and the digits.

    Attributes:
        sizes: of the model, see `build`.
        model: in eval mode.
        regularization: λ.
        batch: points of a batch.
        x: training inputs that are scored, `(n, …)`.
        y: their labels, `(n,)`.
        x_test: test inputs, `(m, …)`.
        y_test: their labels, `(m,)`.
        x_fit: inputs of `fit`; the same as `x` for the small models.
        y_fit: their labels.
    """

    sizes: tuple[int, ...]
    model: nn.Module
    regularization: float
    batch: int
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    x_fit: Tensor
    y_fit: Tensor

    @property
    def loss(self) -> nn.Module:
        """The mean cross-entropy."""
        return nn.CrossEntropyLoss()

    @property
    def loader(self) -> DataLoader:
        """The data of `fit` in batches."""
        return DataLoader(TensorDataset(self.x_fit, self.y_fit), batch_size=self.batch)

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The test points."""
        return self.x_test, self.y_test

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The training points that are scored."""
        return self.x, self.y

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def double(self) -> Workload:
        """Return the same parameters and data in float64."""
        model = build(self.sizes).double()
        model.load_state_dict(self.model.state_dict())
        return replace(
            self, model=model.eval(), x=self.x.double(), x_test=self.x_test.double(),
            x_fit=self.x_fit.double(),
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        settings = {
            "sizes": self.sizes,
            "regularization": self.regularization,
            "batch": self.batch,
        }
        data = {name: getattr(self, name) for name in DATA}
        arrays = {name: value.numpy() for name, value in (state | data).items()}
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, settings=json.dumps(settings), **arrays)
        partial.replace(path)


DATA = ("x", "y", "x_test", "y_test", "x_fit", "y_fit")


def load(path: Path | str) -> Workload:
    """Read what `Workload.save` wrote."""
    with np.load(path) as file:
        settings = json.loads(str(file["settings"]))
        data = {name: torch.as_tensor(file[name]) for name in DATA}
        model = build(settings["sizes"])
        state = {name: torch.as_tensor(file[f"model.{name}"]) for name in model.state_dict()}
    model.load_state_dict(state)
    return Workload(
        tuple(settings["sizes"]), model.eval(), settings["regularization"], settings["batch"],
        **data,
    )  # fmt: skip


def build(sizes: tuple[int, ...]) -> nn.Sequential:
    """Return an untrained model.

    `(i, h, …, o)` is an MLP with tanh. `(-side, c, c', h, o)` is a CNN for square images: two 3×3
    convolutions of `c` and `c'` channels with pooling, and two linear layers.
    """
    if sizes[0] < 0:
        return _cnn(-sizes[0], *sizes[1:])
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _cnn(side: int, first: int, second: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * (side // 4) ** 2, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a workload is made.

    Attributes:
        sizes: of the model, see `build`.
        side: of the images.
        copies: of the training data in what `fit` reads, all but the first with noise.
        train: training points.
        test: test points.
        batch: points of a batch of `fit`.
        epochs: of Adam at 1e-3 in batches of 64, with a weight decay of 1e-4.
        regularization: λ of the workload.
    """

    sizes: tuple[int, ...]
    side: int = 8
    copies: int = 1
    train: int = TRAIN
    test: int = 100
    batch: int = 479
    epochs: int = 20
    regularization: float = 1e-2

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in build(self.sizes).parameters())

    def make(self) -> Workload:
        """Train, in float32."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        x = torch.as_tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        y = torch.as_tensor(labels)
        if self.side != 8:
            x = nn.functional.interpolate(x, (self.side, self.side), mode="bilinear")
        if self.sizes[0] > 0:
            x = x.flatten(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build(self.sizes)
            self._train(model, x[: self.train], y[: self.train])
            parts = [x[: self.train]]
            parts += [parts[0] + 0.05 * torch.randn_like(parts[0]) for _ in range(self.copies - 1)]
        held_out = slice(TRAIN, TRAIN + self.test)
        return Workload(
            self.sizes, model.eval(), self.regularization, self.batch, x[: self.train],
            y[: self.train], x[held_out], y[held_out], torch.cat(parts),
            y[: self.train].repeat(self.copies),
        )  # fmt: skip

    def _train(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
        for _ in range(self.epochs):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()

    def saved(self, folder: Path) -> Path:
        """Return the file of the workload in `folder`; it is made where it is missing."""
        key = hashlib.sha256(repr(self).encode()).hexdigest()[:12]
        path = folder / f"workload-{key}.npz"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.make().save(path)
        return path


RECIPES = {
    "S": Recipe((64, 32, 10), epochs=60),  # fewer, and its Hessian has eigenvalues below -1e-2
    "M": Recipe((64, 256, 256, 10)),
    "L": Recipe((784, 512, 256, 10), side=28, copies=4),
    "C": Recipe((-28, 16, 32, 64, 10), side=28, copies=4),
}
_TINY = partial(Recipe, train=96, test=5, batch=40, epochs=5, regularization=1.0)
SMOKE = {
    "S": _TINY((64, 4, 10)),
    "M": _TINY((64, 6, 6, 10)),
    "L": _TINY((64, 8, 6, 10), copies=2),
    "C": _TINY((-8, 4, 6, 12, 10), copies=2),
}


def digits_mlp(sizes: tuple[int, ...] = (64, 32, 10), regularization: float = 1e-2) -> Workload:
    """Return an MLP with tanh, trained on the digits, in float32."""
    epochs = next((r.epochs for r in RECIPES.values() if r.sizes == sizes), Recipe.epochs)
    return Recipe(sizes, epochs=epochs, regularization=regularization).make()
