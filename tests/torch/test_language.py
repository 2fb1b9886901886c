"""Batches and losses as language models have them."""

import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from seen import EXPECTED, GIVEN, SAMPLED, fixed, labels, slices
from torch import nn
from zoo import batches, close, seeded

from influence_core import DataTypeError, LossError
from influence_torch import (
    CgInfluence,
    EkfacInfluence,
    TorchProblem,
    cross_entropy,
    next_token_cross_entropy,
)

N, T, WORDS = 9, 4, 5


class Causal(nn.Module):
    """The mean of what came before, in two layers."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden = nn.Embedding(WORDS, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, WORDS)

    def forward(self, ids, mask):
        mask = mask[..., None].to(self.head.weight)
        z = torch.tanh(self.table(ids)) * mask
        z = z.cumsum(1) / mask.cumsum(1).clamp(min=1)
        return self.head(torch.tanh(self.hidden(z)))


def forward(model, x):
    return model(x["input_ids"], x["attention_mask"])


GENERATOR = torch.Generator().manual_seed(1)
IDS = torch.randint(WORDS, (N, T), generator=GENERATOR)
MASK = torch.ones(N, T, dtype=torch.long)
MASK[2, 2:] = 0
MASK[5, 3:] = 0
TOKENS = IDS.masked_fill(MASK == 0, -100)
X = {"input_ids": IDS, "attention_mask": MASK}
MODEL = seeded(Causal)
SETTINGS = {"forward": forward, "max_memory": None}


def collated(size):
    """Mappings with labels, as a collator of transformers yields them."""
    return [{**x, "labels": y} for x, y in batches(X, TOKENS, size)]


def by_hand(outputs, y):
    """The mean over the points of the mean over the tokens that count, in loops."""
    points = []
    for logits, tokens in zip(outputs, y, strict=True):
        losses = [
            -logits[place].log_softmax(-1)[token]
            for place, token in enumerate(tokens[1:])
            if token != -100
        ]
        points.append(sum(losses) / len(losses))
    return sum(points) / len(points)


def test_the_loss_of_the_next_token():
    outputs = forward(MODEL, X)
    close(next_token_cross_entropy(outputs, TOKENS).detach(), by_hand(outputs, TOKENS).detach())
    shifted = cross_entropy(outputs[:, :-1], TOKENS[:, 1:])
    close(next_token_cross_entropy(outputs, TOKENS).detach(), shifted.detach())


@pytest.mark.parametrize("wanted", [labels(GIVEN), labels(EXPECTED), labels(SAMPLED, fixed(2, N))])
def test_slices_of_the_next_token(wanted):
    """Those of the cross-entropy of outputs and labels that were shifted beforehand."""
    problem = TorchProblem(MODEL, next_token_cross_entropy, forward=forward)
    rows = slices(problem, X, TOKENS, wanted)
    shifted = TorchProblem(MODEL, cross_entropy, forward=lambda m, x: forward(m, x)[:, :-1])
    want = slices(shifted, X, TOKENS[:, 1:], wanted)
    fisher, expected = (torch.einsum("cnd,cne->de", r, r) for r in (rows, want))
    if wanted.kind is not SAMPLED:  # whose draws belong to T positions, and to T - 1
        close(fisher, expected)
    if wanted.kind is GIVEN:
        dense = Dense(MODEL, by_hand, X, TOKENS, forward)
        close(rows[0], dense.gradients(X, TOKENS))


@pytest.mark.parametrize("make", [CgInfluence, EkfacInfluence])
def test_mappings_are_batches(make):
    if make is EkfacInfluence:
        model = make(MODEL, loss=next_token_cross_entropy, hessian_regularization=3.0, **SETTINGS)
    else:
        model = make(MODEL, next_token_cross_entropy, 3.0, **SETTINGS)
    pairs = model.fit(batches(X, TOKENS, 4)).influences(X, TOKENS)
    mappings = model.fit(collated(4)).influences(X, TOKENS)
    assert torch.equal(pairs, mappings)
    assert torch.equal(model.self_influences(collated(3)), model.self_influences(collated(3)))


def test_padding_does_not_count():
    """More of it, or none in the batches that need none, changes no answer."""
    longer = {key: F.pad(t, (0, 2)) for key, t in X.items()}
    labels_too = F.pad(TOKENS, (0, 2), value=-100)
    trimmed = [
        ({key: t[i : i + 1, :length] for key, t in X.items()}, TOKENS[i : i + 1, :length])
        for i, length in enumerate(MASK.sum(1).tolist())
    ]
    answers = []
    for data in (batches(X, TOKENS, 4), batches(longer, labels_too, 4), trimmed):
        model = EkfacInfluence(
            MODEL, True, 0.1, loss=next_token_cross_entropy, labels="given", forward=forward
        ).fit(data)
        answers.append(model.influences(X, TOKENS))
    close(answers[1], answers[0])
    close(answers[2], answers[0])


def test_wrong_mappings_and_shapes():
    model = CgInfluence(MODEL, next_token_cross_entropy, 1.0, forward=forward)
    with pytest.raises(DataTypeError, match=r"'labels'.*'input_ids', 'attention_mask'"):
        model.fit([X])
    with pytest.raises(LossError, match=r"\(n, t, classes\).*forward="):
        next_token_cross_entropy(torch.zeros(2, WORDS, 3), torch.zeros(2, 3, dtype=torch.long))
