"""Layers of every kind and option: what they see, against gradients by autograd."""

from functools import partial

import pytest
import torch
from dense import Dense
from seen import EXPECTED, GIVEN, SAMPLED, fixed, labels, slices, statistics
from textbook import Textbook
from torch import nn
from zoo import batches, classes, close, normal, seeded

from influence_core.problem import FreeParameters, Layer
from influence_torch import TorchProblem
from influence_torch.layers import find_parts
from influence_torch.likelihoods import cross_entropy
from influence_torch.snapshot import Snapshot

N, T, C = 7, 3, 3


class Pooled(nn.Module):
    """A body, its outputs in the order of torch's images, and a linear head on their mean."""

    def __init__(self, body, features):
        super().__init__()
        self.body, self.head = body, nn.Linear(features, C)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).flatten(2).mean(-1))


class Averaged(Pooled):
    """The same for sequences, features last."""

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).flatten(1, -2).mean(1))


def drawn(body):
    """Every parameter, zeros and ones of a normalisation too, and every buffer are random."""
    for tensor in (*body.parameters(), *body.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data + 0.3 * torch.rand_like(tensor)
    return body


def convolution(kind, *arguments, features=4, **options):
    return lambda: Pooled(kind(2, features, *arguments, **options), features)


def normalized(make, features, pooled=Pooled):
    return lambda: drawn(pooled(make(), features))


def frozen(make, *names):
    def build():
        model = make()
        for name in names:
            model.get_parameter(name).requires_grad_(False)
        return model

    return build


class Attended(nn.Module):
    def __init__(self, size=4, cross=False, masks=None, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 2, **options)
        self.head = nn.Linear(size, C)
        self.first = options.get("batch_first", False)
        self.cross, self.masks = cross, masks or {}

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        keys, values = x, x
        if self.cross:
            keys = torch.cat([x, x.flip(-1)], int(self.first))[..., : self.attention.kdim]
            values = torch.sin(keys)[..., : self.attention.vdim]
        masks = {
            k: v.to(x) if k == "attn_mask" and v.is_floating_point() else v
            for k, v in self.masks.items()
        }
        z, _ = self.attention(x, keys, values, **masks)
        return self.head(torch.tanh(z).mean(int(self.first)))


class Tokens(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4, **options), nn.Linear(4, C)

    def forward(self, x):
        return self.head(torch.tanh(self.table(x)).sum(1))


class Positions(nn.Module):
    """A table that does not see the points, as position embeddings do."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis
        self.words, self.places = nn.Embedding(6, 4), nn.Embedding(T, 4)
        self.scale = nn.Linear(4, 4)
        self.head = nn.Linear(4, C)

    def forward(self, x):
        places = torch.arange(x.shape[1])
        places = self.scale(self.places(places[None] if self.axis else places))
        return self.head(torch.tanh(self.words(x) + places).sum(1))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))
        self.inner = nn.ParameterList([nn.Parameter(torch.rand(3, 4))])
        self.head = nn.Linear(4, C)

    def forward(self, x):
        return self.head(torch.tanh((x + self.shift) @ self.inner[0]))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 2, batch_first=True), nn.Linear(2, C)

    def forward(self, x):
        return self.head(self.cell(x)[1][0])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(torch.tanh(self.table(x)).sum(1))


class Adapted(nn.Module):
    """A frozen layer and a low-rank correction of it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(3, 4).requires_grad_(False)
        self.down, self.up = nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False)
        self.head = nn.Linear(4, C)

    def forward(self, x):
        return self.head(torch.tanh(self.base(x) + 0.5 * self.up(self.down(x))))


IMAGES, SERIES, VOLUMES = normal(N, 2, 5, 6), normal(N, 2, 7), normal(N, 2, 3, 4, 3)
VECTORS, SEQUENCES, LABELS = normal(N, 3), normal(N, T, 4), classes(N)
WORDS = torch.randint(6, (N, T), generator=torch.Generator().manual_seed(3))
WORDS[:, 1] = WORDS[:, 0]  # a word twice in a point
WORDS[0] = 0
PADDED = torch.zeros(N, T, dtype=torch.bool)
PADDED[2, 1:] = True
CAUSAL = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)

conv1, conv2, conv3 = (partial(convolution, kind) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
attended = partial(partial, Attended)
MODELS = {
    "convolution": (conv2(3), IMAGES),
    "stride": (conv2(3, stride=2), IMAGES),
    "two strides": (conv2((3, 2), stride=(1, 2), padding=(0, 1)), IMAGES),
    "padding": (conv2(3, padding=2), IMAGES),
    "same": (conv2((2, 3), padding="same"), IMAGES),
    "same, dilated": (conv2((2, 3), padding="same", dilation=2), IMAGES),
    "valid": (conv2(2, padding="valid"), IMAGES),
    "dilation": (conv2(2, dilation=(2, 3)), IMAGES),
    "groups": (conv2(2, groups=2), IMAGES),
    "depthwise": (conv2(3, groups=2, features=2, padding=1, stride=2), IMAGES),
    "reflect": (conv2(3, padding=(1, 2), padding_mode="reflect"), IMAGES),
    "replicate": (conv2(3, padding=1, padding_mode="replicate", stride=2), IMAGES),
    "circular": (conv2(3, padding=1, padding_mode="circular", groups=2), IMAGES),
    "same, reflect": (conv2((2, 3), padding="same", padding_mode="reflect"), IMAGES),
    "no bias": (conv2(2, bias=False), IMAGES),
    "frozen weight": (frozen(conv2(2, groups=2), "body.weight"), IMAGES),
    "1d": (conv1(3, stride=2, padding=1), SERIES),
    "1d, same": (conv1(2, padding="same", dilation=3, groups=2), SERIES),
    "3d": (conv3(2, padding=(1, 0, 1), stride=(2, 1, 1)), VOLUMES),
    "3d, groups": (
        conv3((1, 2, 3), groups=2, padding_mode="circular", padding=1, stride=(1, 1, 2)), VOLUMES,
    ),
    "layer norm": (normalized(lambda: nn.LayerNorm(4), 4, Averaged), SEQUENCES),
    "layer norm, two axes": (normalized(lambda: nn.LayerNorm((T, 4)), 4, Averaged), SEQUENCES),
    "layer norm, no bias": (
        normalized(lambda: nn.LayerNorm(4, bias=False), 4, Averaged), SEQUENCES,
    ),
    "layer norm, eps": (normalized(lambda: nn.LayerNorm(4, eps=0.5), 4, Averaged), SEQUENCES),
    "rms norm": (normalized(lambda: nn.RMSNorm(4), 4, Averaged), SEQUENCES),
    "rms norm, eps": (normalized(lambda: nn.RMSNorm((T, 4), eps=0.1), 4, Averaged), SEQUENCES),
    "group norm": (normalized(lambda: nn.GroupNorm(2, 2, eps=0.1), 2), IMAGES),
    "batch norm 1d": (normalized(lambda: nn.BatchNorm1d(2), 2), SERIES),
    "batch norm 2d": (normalized(lambda: nn.BatchNorm2d(2, eps=0.1), 2), IMAGES),
    "batch norm 3d": (normalized(lambda: nn.BatchNorm3d(2), 2), VOLUMES),
    "instance norm": (normalized(lambda: nn.InstanceNorm2d(2, affine=True), 2), IMAGES),
    "instance norm, tracked": (
        normalized(lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True), 2), SERIES,
    ),
    "frozen scale": (
        frozen(normalized(lambda: nn.GroupNorm(1, 2), 2), "body.weight"), IMAGES,
    ),
    "embedding": (Tokens, WORDS),
    "embedding, padding": (partial(Tokens, padding_idx=0), WORDS),
    "positions": (partial(Positions, 0), WORDS),
    "positions, axis": (partial(Positions, 1), WORDS),
    "attention": (attended(), SEQUENCES),
    "attention, points first": (attended(batch_first=True), SEQUENCES),
    "attention, no bias": (attended(bias=False, batch_first=True), SEQUENCES),
    "attention, more keys": (attended(add_bias_kv=True, add_zero_attn=True), SEQUENCES),
    "attention, other widths": (
        attended(cross=True, kdim=3, vdim=2, batch_first=True), SEQUENCES,
    ),
    "attention, causal": (attended(masks={"attn_mask": CAUSAL}), SEQUENCES),
    "attention, boolean": (
        attended(masks={"attn_mask": CAUSAL < 0, "need_weights": False}, batch_first=True),
        SEQUENCES,
    ),
    "encoder": (
        lambda: Averaged(
            nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True, norm_first=True), 4
        ),
        SEQUENCES,
    ),
    "bare": (Bare, VECTORS),
    "recurrent": (Recurrent, SEQUENCES[..., :3]),
    "tied": (Tied, WORDS),
    "adapted": (Adapted, VECTORS),
    "weight norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, C)
        ),
        VECTORS,
    ),
    "transposed convolution": (
        lambda: Pooled(nn.ConvTranspose2d(2, 3, 2), 3), IMAGES,
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def case(request):
    make, x = MODELS[request.param]
    return seeded(make), x


def test_given_labels(case):
    model, x = case
    rows = slices(TorchProblem(model, cross_entropy), x, LABELS, labels(GIVEN))
    want = Dense(model, cross_entropy, x, LABELS).gradients(x, LABELS)
    close(rows[0], want, 1e-12)


def test_expected_labels_make_the_fisher_matrix(case):
    model, x = case
    rows = slices(TorchProblem(model, cross_entropy), x, LABELS, labels(EXPECTED))
    want = Textbook(model, cross_entropy, x, LABELS).fisher()
    close(torch.einsum("cnd,cne->de", rows, rows) / N, want)


@pytest.mark.parametrize("memory", [1, 40_000, None])
def test_memory_and_batches(case, memory):
    model, x = case
    problem = TorchProblem(model, cross_entropy, max_memory=memory)
    draws = fixed(2, N)
    whole = slices(TorchProblem(model, cross_entropy), x, LABELS, labels(SAMPLED, draws))
    close(slices(problem, x, LABELS, labels(SAMPLED, draws)), whole, 1e-12)
    parts = []
    for start, (a, b) in zip(range(0, N, 3), batches(x, LABELS, 3), strict=True):
        points = slice(start, start + len(b))
        own = labels(SAMPLED, lambda t, points=points: draws(t)[:, points])
        parts.append(slices(problem, a, b, own))
    close(torch.cat(parts, 1), whole, 1e-12)


def test_watching_changes_no_output_and_leaves_nothing(case):
    model, x = case
    problem = TorchProblem(model, cross_entropy)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    statistics(problem, x, LABELS, labels(EXPECTED))
    close(problem._snapshot({}, x), model(x), 1e-12)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    for part in problem._snapshot.module.modules():
        assert "forward" not in vars(part)
        assert not part._forward_hooks


def test_float32(case):
    model, x = case
    want = slices(TorchProblem(model, cross_entropy), x, LABELS, labels(GIVEN))
    short = x.float() if x.is_floating_point() else x
    problem = TorchProblem(model.float(), cross_entropy)
    got = slices(problem, short, LABELS, labels(GIVEN))
    assert got.dtype == torch.float32
    close(got.double(), want, 1e-5)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": PADDED},
        {"key_padding_mask": PADDED, "attn_mask": CAUSAL < 0},
        {"key_padding_mask": torch.rand(N, T).double(), "attn_mask": CAUSAL},
        {"attn_mask": torch.rand(2 * N, T, T).double()},
        {"attn_mask": CAUSAL, "is_causal": True},
    ],
)
def test_attention_returns_what_torch_returns(first, more, options):
    module = seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=first, **more))
    q, k, v = (normal(N, T, 4, seed=seed) for seed in range(3))
    if not first:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    _both(module, (q, k, v), options)


def test_attention_of_one_sequence():
    module = seeded(lambda: nn.MultiheadAttention(4, 2))
    _both(module, (SEQUENCES[0], SEQUENCES[1], SEQUENCES[2]), {})
    _both(module, (SEQUENCES[0], SEQUENCES[1], SEQUENCES[2]), {"attn_mask": CAUSAL})


@torch.no_grad()
def _both(module, inputs, options):
    (part,) = find_parts(Snapshot(module, None, None)).watched
    want = module(*inputs, **options)
    sites = []
    with part.watched(module, lambda site, a, z: sites.append(site) or z):
        got = module(*inputs, **options)
    assert sites == ["q", "k", "v", "out_proj"]
    close(got[0], want[0], 1e-12)
    assert (got[1] is None) == (want[1] is None)
    if want[1] is not None:
        close(got[1], want[1], 1e-12)


def test_padding_is_not_counted():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, C)
            self.other = nn.Linear(T, 4)

        def forward(self, x):
            mask = x["attention_mask"].double()
            z = (torch.tanh(self.table(x["words"])) * mask[..., None]).sum(1)
            return self.head(z + self.other(mask))

    mask = (~PADDED).long()
    problem = TorchProblem(seeded(Masked), cross_entropy)
    found = statistics(problem, {"words": WORDS, "attention_mask": mask}, LABELS, labels(EXPECTED))
    assert torch.equal(found["table"].counted, mask.double())
    assert found["head"].counted is None
    assert found["other"].counted is None


class TestFinding:
    def layers(self, model):
        return TorchProblem(model, cross_entropy).layers()

    def test_groups_are_layers(self):
        assert self.layers(nn.Conv2d(4, 6, 3, groups=2)) == {
            "[0]": Layer("weight", "bias", 18, 3),
            "[1]": Layer("weight", "bias", 18, 3, first=3),
        }

    def test_projections_are_layers(self):
        own = {
            f"0.{site}": Layer("0.in_proj_weight", "0.in_proj_bias", 4, 4, first=4 * index)
            for index, site in enumerate("qkv")
        }
        out = Layer("0.out_proj.weight", "0.out_proj.bias", 4, 4)
        assert self.layers(nn.Sequential(nn.MultiheadAttention(4, 2))) == {
            **own, "0.out_proj": out,
        }  # fmt: skip

    def test_embeddings_are_lookups(self):
        want = Layer("weight", None, 5, 2, transposed=True, lookup=True)
        assert self.layers(nn.Embedding(5, 2)) == {"": want}

    @pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
    def test_embeddings_that_change_their_gradients(self, options):
        (free,) = self.layers(nn.Embedding(5, 2, **options)).values()
        assert free == FreeParameters(
            ("weight",), 10, "Embedding (root) is no layer that can be factored"
        )

    def test_shared_parameters_have_a_fault(self):
        found = self.layers(Tied())
        assert found["table.weight"].fault == "the modules 'table' and 'head' share it"
        assert found["head"] == Layer(None, "head.bias", 4, 6)
        assert list(found) == ["head", "table.weight"]

    def test_layers_of_torch_without_a_rule_have_a_fault(self):
        faults = {layer.fault for layer in self.layers(nn.GRU(2, 3)).values()}
        assert faults == {"GRU (root) is no layer that can be factored"}

    def test_parameters_of_a_users_module_are_free(self):
        found = self.layers(Bare())
        assert found["shift"] == FreeParameters(("shift",), 3)
        assert found["inner"] == FreeParameters(("inner.0",), 12)
        assert found["head"] == Layer("head.weight", "head.bias", 4, C)
