"""Which training digits, and which layers, made a convolutional network read a digit that way?

Trains a small convolutional network on scikit-learn's digits and asks EK-FAC, whose factors are
learnt in three passes over the data, which training digits helped and harmed on test digits that it
gets wrong, layer by layer. Then it checks the scores the hard way: it trains the network again on
random halves of the data, and compares what the scores predict for each half with what the network
does (the linear datamodelling score). Prints the findings and saves a picture.

    python examples/cnn.py [PICTURE]
"""

from __future__ import annotations

import sys
from collections import OrderedDict

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import trange

from influence_torch import EkfacInfluence

EPOCHS, BATCH, PENALTY = 25, 128, 1e-3
HALVES = 30  # random halves of the training data, each trained on anew
SHOWN_DIGITS, SHOWN = 4, 4
REGULARIZATION = 1e-3

HELPFUL, HARMFUL = "#1b7837", "#b2182b"


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 1,437 training and 360 test digits, `(n, 1, 8, 8)`, and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)
    return x, y, x_test, y_test


def make_model() -> nn.Sequential:
    """Return the network, always with the same initial parameters."""
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(1, 8, 3, padding=1),
        "norm": nn.GroupNorm(2, 8),
        "tanh1": nn.Tanh(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(8, 16, 3, padding=1),
        "tanh2": nn.Tanh(),
        "pool2": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "linear": nn.Linear(64, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def train(x: Tensor, y: Tensor) -> nn.Sequential:
    """Return a trained network; the same data give the same network."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x), generator=generator).split(BATCH):
            penalty = sum((p**2).sum() for p in model.parameters())
            loss = nn.functional.cross_entropy(model(x[part]), y[part]) + PENALTY / 2 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of every point, `(n,)`."""
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def datamodelling(scores: Tensor, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor]) -> list[float]:
    """Return, for every test point, the rank correlation of predicted and actual losses.

    A half of the data is predicted to have the loss `-Σ score` over its points, up to a constant:
    every point of it lowers the loss by its score.
    """
    generator = torch.Generator().manual_seed(1)
    predicted, actual = [], []
    for _ in trange(HALVES, desc="training on halves", unit=" models"):
        half = torch.randperm(len(x), generator=generator)[: len(x) // 2]
        predicted.append(-scores[:, half].sum(dim=1))
        actual.append(losses(train(x[half], y[half]), *test))
    pairs = zip(torch.stack(predicted).T, torch.stack(actual).T, strict=True)
    return [float(spearmanr(guess, truth).statistic) for guess, truth in pairs]


def draw(
    path: str,
    x: Tensor,
    y: Tensor,
    test: tuple[Tensor, Tensor, Tensor],
    shares: dict[str, Tensor],
    correlations: list[float],
) -> None:
    """Save the test digits beside their strongest training digits, and the layers' shares."""
    figure, axes = plt.subplots(
        len(test[0]),
        2 * SHOWN + 2,
        figsize=(15, 1.75 * len(test[0]) + 0.6),
        gridspec_kw={"width_ratios": [1] * (2 * SHOWN + 1) + [2.4]},
        facecolor="white",
    )
    scores = sum(shares.values())
    order = scores.argsort(dim=1)
    for i, row in enumerate(axes):
        digit, label, guess = (part[i] for part in test)
        _digit(row[0], digit, f"a {int(label)}, read as {int(guess)}", "black")
        best, worst = order[i, -SHOWN:].flip(0), order[i, :SHOWN]
        for axis, j, color in zip(
            row[1:-1], [*best, *worst], [HELPFUL] * SHOWN + [HARMFUL] * SHOWN, strict=True
        ):
            _digit(axis, x[j], f"a {int(y[j])}  {float(scores[i, j]):+.0f}", color)
        _layers(row[-1], shares, i, int(worst[0]))
    share = f"rank correlation with training on {HALVES} halves: {np.mean(correlations):.2f}"
    figure.suptitle(f"Most helpful (green) and most harmful (red) training digits; {share}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _digit(axis: plt.Axes, pixels: Tensor, title: str, color: str) -> None:
    axis.imshow(pixels[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9, color=color)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=color)


def _layers(axis: plt.Axes, shares: dict[str, Tensor], i: int, j: int) -> None:
    values = [float(share[i, j]) for share in shares.values()]
    axis.barh(list(shares), values, color=[HELPFUL if v > 0 else HARMFUL for v in values])
    axis.invert_yaxis()
    axis.set_title("share of each layer in the most harmful", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def main(path: str) -> None:
    """Train, ask, check, draw."""
    x, y, x_test, y_test = load()
    model = train(x, y)
    guesses = model(x_test).argmax(dim=1)
    print(f"{(guesses == y_test).float().mean():.1%} of the test digits are right")

    influence = EkfacInfluence(
        model, update_diagonal=True, hessian_regularization=REGULARIZATION, progress=True
    )
    influence.fit(DataLoader(TensorDataset(x, y), batch_size=512))
    print(influence.layer_summary())

    hardest = losses(model, x_test, y_test).argsort(descending=True)
    many = x_test[hardest[:40]], y_test[hardest[:40]]
    correlations = datamodelling(influence.influences(*many, x, y), x, y, many)
    print(
        f"rank correlation of predicted and actual losses over {HALVES} halves of the data, mean "
        f"over {len(many[0])} test digits: {np.mean(correlations):.3f}"
    )

    chosen = hardest[:SHOWN_DIGITS]
    test = x_test[chosen], y_test[chosen], guesses[chosen]
    shares = influence.influences_by_layer(*test[:2], x, y)
    draw(path, x, y, test, shares, correlations)
    print(f"picture: {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cnn.png")
