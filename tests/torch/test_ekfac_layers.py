"""EK-FAC of networks with layers of every kind, through the documented class."""

import pytest
import torch
from dense import Dense
from test_layer_kinds import IMAGES, LABELS, MODELS, SEQUENCES, N, Pooled
from textbook import Textbook
from torch import nn
from zoo import batches, close, seeded

from influence_torch import EkfacInfluence, cross_entropy

REGULARIZATION = 0.1


@pytest.fixture(params=MODELS)
def case(request):
    make, x = MODELS[request.param]
    return seeded(make), x


def fitted(model, x, size=3, **options):
    settings = {"labels": "expected", "unsupported": "diagonal", **options}
    ekfac = EkfacInfluence(model, True, REGULARIZATION, loss=cross_entropy, **settings)
    return ekfac.fit(batches(x, LABELS, size))


def test_two_ways_to_the_scores(case):
    model, x = case
    ekfac = fitted(model, x)
    scores = ekfac.influences(x, LABELS)
    factors = ekfac.influence_factors(x, LABELS)
    rows = Dense(model, cross_entropy, x, LABELS).gradients(x, LABELS)
    close(factors @ rows.T, scores, 1e-8)
    close(ekfac.influences_from_factors(factors, x, LABELS), scores, 1e-8)
    close(sum(ekfac.influences_by_layer(x, LABELS).values()), scores, 1e-8)
    close(ekfac.self_influences(batches(x, LABELS, 2)), scores.diagonal(), 1e-8)
    close(ekfac.influences(x[:2], LABELS[:2], x, LABELS), scores[:2], 1e-8)


def test_eigenvalues_sum_to_those_of_the_fisher_matrix(case):
    """The corrected ones are its diagonal in another basis."""
    model, x = case
    ekfac = fitted(model, x)
    matrix = ekfac.with_regularization(1e4)  # (C + λI)⁻¹ ≈ 1/λ - C/λ²
    p = ekfac.n_parameters
    rows = torch.eye(p, dtype=torch.float64)
    trace = (1e4 * p - 1e8 * matrix.apply_inverse(rows).trace()).item()
    want = Textbook(model, cross_entropy, x, LABELS).fisher().trace().item()
    assert trace == pytest.approx(want, rel=1e-3)


def test_the_batch_size_does_not_count(case):
    model, x = case
    want = fitted(model, x, N).influences(x, LABELS)
    for size in (1, 4):
        close(fitted(model, x, size).influences(x, LABELS), want, 1e-8)


def test_a_normalisation_has_its_exact_block():
    model = seeded(MODELS["group norm"][0])
    ekfac = fitted(model, IMAGES)
    fisher = Textbook(model, cross_entropy, IMAGES, LABELS).fisher()[:4, :4]
    rows = Dense(model, cross_entropy, IMAGES, LABELS).gradients(IMAGES, LABELS)[:, :4]
    damped = fisher + REGULARIZATION * torch.eye(4, dtype=torch.float64)
    got = ekfac.influence_factors_by_layer(IMAGES, LABELS)["body"]
    close(got, torch.linalg.solve(damped, rows.T).T, 1e-8)


def test_positions_sum_to_the_scores():
    model = seeded(
        lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    )
    tokens = torch.arange(N * 2).reshape(N, 2) % 3
    short = SEQUENCES[:, :2]  # not as long as there are classes: the axes can be told apart
    ekfac = EkfacInfluence(model, True, 0.1, labels="sampled").fit(batches(short, tokens, 3))
    by_position = ekfac.influences_by_position(short[:2], tokens[:2], short, tokens)
    assert by_position.shape == (2, N, 2)
    close(by_position.sum(2), ekfac.influences(short[:2], tokens[:2], short, tokens))


def test_the_summary_says_how_every_layer_is_taken():
    model = seeded(lambda: Pooled(nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), 4))
    printed = str(fitted(model, IMAGES).layer_summary())
    for name in ("body.0", "body.1", "head"):
        assert name in printed
    assert "exact" in printed
