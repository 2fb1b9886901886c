"""Which training digits made the model get these test digits wrong, and what without them?

Trains a small network on scikit-learn's digits, asks `CgInfluence` which training digits help and
harm on test digits that it gets wrong, then checks the answer the hard way: it removes the
strongest training digits one at a time, trains again, and compares the predicted change of the test
loss with the actual one. Prints the findings and saves a picture.

    python examples/quickstart.py [PICTURE]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from influence_torch import CgInfluence

REGULARIZATION = 1e-2
TEST_DIGITS = 5
SHOWN = 4  # most helpful and most harmful digits of each test digit in the picture
REMOVED = 3  # of each kind and test digit that are removed: 2 · 3 · 5 = 30 retrainings

HELPFUL, HARMFUL = "#1b7837", "#b2182b"


@dataclass(frozen=True)
class Digits:
    """Inputs, `(n, 64)`, between 0 and 1, and labels, `(n,)`."""

    x: Tensor
    y: Tensor


def load() -> tuple[Digits, Digits]:
    """Return 1,437 training and 360 test digits."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=360, random_state=0, stratify=labels)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)
    return Digits(x, y), Digits(x_test, y_test)


def train(
    model: nn.Module,
    data: Digits,
    without: int | None = None,
    tolerance: float = 1e-7,
    progress: bool = False,
) -> float:
    """Train to the optimum of `mean ℓ + λ/2 ‖θ‖²` and return the norm of the gradient there.

    A point that is left out leaves the mean over all N: only its own term goes, and the weight of
    the penalty against the other points stays as it is. That is the change that a score predicts.
    """
    weights = torch.ones(len(data.x), dtype=data.x.dtype)
    if without is not None:
        weights[without] = 0
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=1000,
        history_size=100,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    with tqdm(desc="training", unit=" steps", disable=not progress) as bar:

        def objective() -> Tensor:
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(data.x), data.y, reduction="none")
            penalty = sum((p**2).sum() for p in model.parameters())
            value = (weights * losses).mean() + REGULARIZATION / 2 * penalty
            value.backward()
            bar.update()
            return value

        optimizer.step(objective)
        objective()
    return float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())


def losses(model: nn.Module, data: Digits) -> Tensor:
    """Return the loss of every point, `(n,)`."""
    with torch.no_grad():
        return nn.functional.cross_entropy(model(data.x), data.y, reduction="none")


def strongest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` most helpful (largest) and most harmful training points of each row."""
    order = scores.argsort(dim=1)
    return order[:, -count:].flip(1), order[:, :count]


def retrain(model: nn.Module, data: Digits, test: Digits, removed: list[int]) -> Tensor:
    """Return the actual change of every test loss without each point, `(removed, m)`."""
    before = losses(model, test)
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    changes = []
    for point in tqdm(removed, desc="retraining without one digit", unit=" models"):
        model.load_state_dict(parameters)
        train(model, data, without=point, tolerance=1e-6)
        changes.append(losses(model, test) - before)
    model.load_state_dict(parameters)
    return torch.stack(changes)


def print_findings(test: Digits, guesses: Tensor, train_labels: Tensor, scores: Tensor) -> None:
    """Print the most helpful and harmful training digits of each test digit."""
    helpful, harmful = strongest(scores, SHOWN)
    for i in range(len(test.x)):
        print(f"\nA test digit {int(test.y[i])} that the model reads as {int(guesses[i])}:")
        for title, points in (("helpful", helpful[i]), ("harmful", harmful[i])):
            shown = ", ".join(
                f"#{int(j)} (a {int(train_labels[j])}, {scores[i, j]:+.0f})" for j in points
            )
            print(f"  most {title}: {shown}")


def draw(
    path: str,
    data: Digits,
    test: Digits,
    guesses: Tensor,
    scores: Tensor,
    predicted: np.ndarray,
    actual: np.ndarray,
    correlation: float,
) -> None:
    """Save each test digit beside its strongest training digits, and predicted against actual."""
    helpful, harmful = strongest(scores, SHOWN)
    figure = plt.figure(figsize=(14.5, 6.6), facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
    axes = left.subplots(
        len(test.x),
        2 * SHOWN + 2,
        gridspec_kw={"width_ratios": [1.15, *[1] * SHOWN, 0.25, *[1] * SHOWN], "hspace": 0.5},
    )
    left.subplots_adjust(left=0.02, right=0.99, top=0.83, bottom=0.06, wspace=0.12)
    for i, row in enumerate(axes):
        title = f"a {int(test.y[i])}, read as {int(guesses[i])}"
        _digit(row[0], test.x[i], title, "black")
        row[SHOWN + 1].axis("off")
        for axis, j in zip(row[1 : SHOWN + 1], helpful[i], strict=True):
            _digit(axis, data.x[j], f"{int(data.y[j])}   {scores[i, j]:+.0f}", HELPFUL)
        for axis, j in zip(row[SHOWN + 2 :], harmful[i], strict=True):
            _digit(axis, data.x[j], f"{int(data.y[j])}   {scores[i, j]:+.0f}", HARMFUL)
    _heading(left, axes[0, 0], axes[0, 0], "test digit", "black")
    _heading(left, axes[0, 1], axes[0, SHOWN], "most helpful training digits", HELPFUL)
    _heading(left, axes[0, SHOWN + 2], axes[0, -1], "most harmful training digits", HARMFUL)
    left.text(
        0.01, 0.97, "Which training digits made the model say this?", fontsize=15, weight="bold",
        va="top",
    )  # fmt: skip
    left.text(0.01, 0.015, "label and score; removing the digit changes the test loss by score / N",
              fontsize=9, color="0.4")  # fmt: skip
    _scatter(right, predicted, actual, correlation)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _digit(axis: plt.Axes, pixels: Tensor, title: str, color: str) -> None:
    axis.imshow(pixels.reshape(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9, color=color, pad=3)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=1.2)


def _heading(figure: plt.Figure, first: plt.Axes, last: plt.Axes, text: str, color: str) -> None:
    x = (first.get_position().x0 + last.get_position().x1) / 2
    figure.text(x, 0.895, text, color=color, fontsize=11, weight="bold", ha="center")


def _scatter(
    figure: plt.Figure, predicted: np.ndarray, actual: np.ndarray, correlation: float
) -> None:
    axis = figure.subplots()
    figure.subplots_adjust(left=0.16, right=0.97, top=0.83, bottom=0.13)
    _points(axis, predicted, actual, _limits(predicted, actual))
    axis.set(
        xlabel="predicted change of the test loss (score / N)",
        ylabel="actual change after retraining without the digit",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{len(predicted)} removals, correlation {correlation:.3f}", fontsize=12)
    # a few digits carry far more than the others, which would shrink to one spot
    inset = axis.inset_axes((0.54, 0.09, 0.44, 0.44))
    most = np.quantile(abs(predicted), 0.85)
    near = abs(predicted) <= most
    _points(inset, predicted, actual, _limits(predicted[near], actual[near]))
    inset.tick_params(labelsize=7, color="0.6")
    axis.indicate_inset_zoom(inset, edgecolor="0.5")


def _limits(predicted: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    low, high = min(predicted.min(), actual.min()), max(predicted.max(), actual.max())
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _points(
    axis: plt.Axes, predicted: np.ndarray, actual: np.ndarray, limits: tuple[float, float]
) -> None:
    axis.axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0)
    axis.axhline(0, color="0.9", linewidth=1, zorder=0)
    axis.axvline(0, color="0.9", linewidth=1, zorder=0)
    colors = np.where(predicted > 0, HELPFUL, HARMFUL)
    axis.scatter(predicted, actual, c=colors, s=42, alpha=0.8, edgecolor="white", linewidth=0.6)
    axis.set(xlim=limits, ylim=limits)
    axis.set_aspect("equal")


def main(path: str) -> None:
    """Train, ask, check, draw."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # matrices this small lose more to a second thread than they gain
    data, test = load()
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    gradient = train(model, data, progress=True)
    guesses = model(test.x).argmax(dim=1)
    print(
        f"trained on {len(data.x)} digits: {(guesses == test.y).double().mean():.1%} of the test "
        f"digits are right, norm of the gradient at the optimum {gradient:.0e}"
    )

    wrong = (guesses != test.y).nonzero()[:TEST_DIGITS, 0]
    test, guesses = Digits(test.x[wrong], test.y[wrong]), guesses[wrong]
    influence = CgInfluence(
        model.eval(),
        nn.CrossEntropyLoss(),
        regularization=REGULARIZATION,
        rtol=1e-6,
        progress=True,
    )
    influence.fit(DataLoader(TensorDataset(data.x, data.y), batch_size=512))
    scores = influence.influences(test.x, test.y, data.x, data.y)
    print(f"CG: {influence.report}")
    print_findings(test, guesses, data.y, scores)

    helpful, harmful = strongest(scores, REMOVED)
    pairs = [(i, int(j)) for i in range(len(wrong)) for j in (*helpful[i], *harmful[i])]
    removed = sorted({j for _, j in pairs})
    print()
    changes = retrain(model, data, test, removed)
    rows = {point: row for row, point in enumerate(removed)}
    predicted = np.array([float(scores[i, j]) / len(data.x) for i, j in pairs])
    actual = np.array([float(changes[rows[j], i]) for i, j in pairs])
    correlation = float(np.corrcoef(predicted, actual)[0, 1])

    print("\n  test digit   removed   predicted change   actual change")
    for (i, j), guess, truth in zip(pairs, predicted, actual, strict=True):
        print(f"  {int(wrong[i]):10d}   {j:7d}   {guess:+16.5f}   {truth:+13.5f}")
    print(f"\ncorrelation of predicted and actual change: {correlation:.4f}")
    draw(path, data, test, guesses, scores, predicted, actual, correlation)
    print(f"picture: {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "quickstart.png")
