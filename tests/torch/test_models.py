"""Models of every kind against the dense reference, and what happens where `vmap` cannot go."""

import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F
from solvers import NAMED, WITH_BLOCKS
from torch import nn
from zoo import MODES, Case, classes, close, leaves, normal, seeded

from influence_core.errors import ModelError
from influence_torch import CgInfluence, DirectInfluence

pytestmark = pytest.mark.filterwarnings("ignore::influence_core.errors.ConditioningWarning")

N = 7
LABELS = classes(N)
VECTORS, SEQUENCES, IMAGES = normal(N, 4), normal(N, 3, 4), normal(N, 1, 5, 5)
TOKENS = torch.randint(6, (N, 3), generator=torch.Generator().manual_seed(4))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.decode = nn.Linear(3, 6, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(torch.tanh(self.embed(tokens).mean(1)))


class RootParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(3))
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return torch.tanh(self.inner(x)) * self.scale + self.shift


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for _ in range(2):
            x = x + torch.tanh(self.again(self.layer(x)))
        return self.head(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 6)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, -1])


class MultiHead(nn.Module):
    def __init__(self, need_weights=False):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.need_weights = need_weights

    def forward(self, x):
        out, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return self.head(out.mean(1))


class Transformer(nn.Module):
    def __init__(self, layers=None, **keywords):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 2, batch_first=True, **keywords)
        self.core = (
            nn.TransformerEncoder(layer, layers, enable_nested_tensor=True) if layers else layer
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.core(x)[:, 0])


class Padded(Transformer):
    def __init__(self):
        super().__init__(layers=1)

    def forward(self, x):
        padding = (x["tokens"] == 0) & (torch.arange(3) > 0)
        return self.head(self.core(x["values"], src_key_padding_mask=padding)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind, **keywords):
        super().__init__()
        self.core = kind(4, 2, batch_first=True, **keywords)
        self.head = nn.Linear(2 * (1 + self.core.bidirectional), 3)

    def forward(self, x):
        return self.head(self.core(x)[0][:, -1])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.left, self.right = nn.Embedding(6, 2), nn.Linear(4, 2), nn.Linear(4, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        mixed = self.left(x["a"]) * self.right(x["b"].mean(1)) + self.embed(x["tokens"]).sum(1)
        return self.head(torch.tanh(mixed))


class OfTuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        a, (b,) = x
        return self.left(a) * torch.tanh(self.right(b))


class TupleOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.heads = nn.Linear(4, 3), nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2)])

    def forward(self, x):
        z = torch.tanh(self.body(x))
        return {"logits": self.heads[0](z), "rest": (self.heads[1](z), torch.argmax(z, -1))}


def two_losses(out, y):
    return F.cross_entropy(out["logits"], y) + out["rest"][0].square().mean()


class Cube(torch.autograd.Function):
    """In the old style, which `torch.func` does not take."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.head = nn.Linear(4, 2), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(Cube.apply(0.5 * self.linear(x)))


class NewStyle(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class CustomNewStyle(Custom):
    def forward(self, x):
        return self.head(NewStyle.apply(0.5 * self.linear(x)))


class Branching(nn.Module):
    """Decides by numbers, point by point."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        rows = [self.one(a) if a.sum().item() > 0 else torch.tanh(self.two(a)) for a in x]
        return torch.stack(rows)


class Layered(nn.Module):
    """Hands out a state whose first axis are the layers, not the points."""

    def __init__(self):
        super().__init__()
        self.core, self.head = nn.GRU(4, 2, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        out, h = self.core(x)
        return self.head(out[:, -1]), h


def with_state(out, y):
    return F.cross_entropy(out[0], y) + out[1].square().mean()


def points_last():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh())


def normed():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3))


def frozen():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def weight_norm():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3))


def orthogonal():
    return nn.Sequential(
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4), use_trivialization=False)
    )


def spectral_norm():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), nn.Tanh())


def recurrent(kind, **keywords):
    return lambda: Recurrent(kind, **keywords)


def case(make, x=VECTORS, loss=F.cross_entropy, y=LABELS, forward=None):
    model = seeded(make)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(normal(3, seed=7))
            module.running_var.copy_(normal(3, seed=8).abs() + 0.5)
    return Case(model, loss, x, y, forward)


class WeightNormCase(Case):
    """The fused kernel of torch has a wrong second derivative: the reference has none of it."""

    def dense(self):
        dense = super().dense()
        (part,) = dense.model[0].parametrizations.weight
        part.forward = lambda g, v: g * v / v.square().sum(1, keepdim=True).sqrt()
        return dense


DICT = {"a": VECTORS, "b": SEQUENCES, "tokens": TOKENS}
CASES = {
    "bare linear": lambda: case(lambda: nn.Linear(4, 3)),
    "frozen": lambda: case(frozen),
    "tied": lambda: case(Tied, TOKENS),
    "root parameters": lambda: case(RootParameters),
    "shared and residual": lambda: case(Shared),
    "batch norm": lambda: case(normed),
    "layer norm": lambda: case(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 3))
    ),
    "embedding": lambda: case(
        lambda: nn.Sequential(nn.Embedding(6, 2), nn.Flatten(), nn.Linear(6, 3)), TOKENS
    ),
    "sdpa": lambda: case(Attention, SEQUENCES),
    "multihead": lambda: case(MultiHead, SEQUENCES),
    "multihead with weights": lambda: case(lambda: MultiHead(True), SEQUENCES),
    "transformer layer": lambda: case(Transformer, SEQUENCES),
    "transformer": lambda: case(
        lambda: Transformer(layers=1, norm_first=False, activation="gelu"), SEQUENCES
    ),
    "padded transformer": lambda: case(Padded, {"values": SEQUENCES, "tokens": TOKENS}),
    "gru": lambda: case(recurrent(nn.GRU), SEQUENCES),
    "lstm": lambda: case(recurrent(nn.LSTM), SEQUENCES),
    "rnn": lambda: case(recurrent(nn.RNN), SEQUENCES),
    "two-way gru": lambda: case(recurrent(nn.GRU, bidirectional=True), SEQUENCES),
    "lstm with projection": lambda: case(
        lambda: nn.Sequential(nn.LSTM(4, 3, proj_size=2, batch_first=True)),
        SEQUENCES,
        lambda out, y: F.cross_entropy(out[0].sum(1), y % 2),
    ),
    "convolution": lambda: case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(8, 3),
        ),
        IMAGES,
    ),
    "average pooling": lambda: case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2, stride=2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(2, 3),
        ),
        IMAGES,
    ),
    "dict input": lambda: case(TwoInputs, DICT),
    "tuple input": lambda: case(OfTuple, (VECTORS, (normal(N, 4, seed=3),))),
    "tuple output": lambda: case(TupleOutput, loss=two_losses),
    "state output": lambda: case(Layered, SEQUENCES, with_state),
    "targets in a dict": lambda: case(
        lambda: nn.Linear(4, 3),
        loss=lambda f, y: F.cross_entropy(f, y["label"]) + (f - y["value"]).square().mean(),
        y={"label": LABELS, "value": normal(N, 3, seed=12)},
    ),
    "points on the last axis": lambda: case(
        points_last,
        loss=lambda f, y: F.cross_entropy(f.T, y),
        forward=lambda m, x: m(x).T,
    ),
    "forward": lambda: case(
        lambda: nn.Linear(4, 3), forward=lambda m, x: m(torch.sin(x)) + m.bias.square()
    ),
    "old-style function": lambda: case(Custom),
    "new-style function": lambda: case(CustomNewStyle),
    "branching": lambda: case(Branching),
    "weight norm": lambda: WeightNormCase(**vars(case(weight_norm))),
    "spectral norm": lambda: case(spectral_norm),
    "in-place": lambda: case(
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.SiLU(inplace=True))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_models(name, mode):
    one = CASES[name]()
    dense, test = one.dense(), one.part(0, 3)
    options = {"mode": mode, "regularization": 0.5}
    model = DirectInfluence(one.model, one.loss, 0.5, second_order_mode=mode, **one.keywords()).fit(
        one.loader(4)
    )
    close(model.influences(*test, one.x, one.y), dense.influences(*test, one.x, one.y, **options))
    if mode == "hessian" and any(leaf.is_floating_point() for leaf in leaves(one.x)):
        got = leaves(model.influences(*test, mode="perturbation"))
        want = dense.influences(*test, None, None, "perturbation", **options)
        for a, b in zip(got, want if isinstance(want, list) else [want], strict=True):
            close(a, b)


@pytest.mark.parametrize("name", CASES)
def test_models_under_cg(name):
    # the products that `Direct` does not need: those without rows
    one = CASES[name]()
    settings = {"rtol": 1e-12, "atol": 0.0, "second_order_mode": "gauss_newton"}
    want = one.dense().influences(
        *one.part(0, 2), one.x, one.y, mode="gauss_newton", regularization=1.0
    )
    model = CgInfluence(one.model, one.loss, 1.0, **settings, **one.keywords()).fit(one.loader(4))
    close(model.influences(*one.part(0, 2), one.x, one.y), want)


VARIED = ["frozen", "tied", "root parameters", "sdpa", "gru", "dict input", "branching"]
OTHERS = [(name, solver) for name in VARIED for solver in WITH_BLOCKS]
# layers that can be factored
OTHERS += [(name, NAMED["EkfacInfluence"]) for name in ("frozen", "bare linear")]


@pytest.mark.parametrize(("name", "solver"), OTHERS)
def test_models_under_every_class(name, solver):
    one = CASES[name]()
    keywords = solver.known(second_order_mode="gauss_newton")
    model = solver(one.model, one.loss, 1.0, **keywords, **one.keywords()).fit(solver.loader(one))
    how = {"mode": "gauss_newton", "regularization": 1.0}
    want = solver.dense(one).influences(*one.part(0, 2), one.x, one.y, **how)
    close(model.influences(*one.part(0, 2), one.x, one.y), want)


@pytest.mark.parametrize("name", ["sdpa", "gru", "branching", "old-style function", "batch norm"])
def test_kept_work(name):
    one = CASES[name]()
    big = 1.0 + 2 * abs(min(one.dense().smallest_eigenvalue(), 0.0))
    settings = {"rtol": 1e-12, "atol": 0.0, "precompute_grad": True}
    model = CgInfluence(one.model, one.loss, big, **settings).fit(one.loader(4))
    want = one.dense().influences(*one.part(0, 2), one.x, one.y, regularization=big)
    close(model.influences(*one.part(0, 2), one.x, one.y), want)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("tied", ["embed"]),
        ("frozen", ["2"]),
        ("root parameters", ["", "inner"]),
        ("shared and residual", ["layer", "head"]),
        ("bare linear", [""]),
        ("weight norm", ["0", "0.parametrizations.weight", "2"]),
    ],
)
def test_layers(name, names):
    one = CASES[name]()
    model = DirectInfluence(one.model, one.loss, 0.5, "layer_wise").fit(one.loader(4))
    assert model.block_names == names
    expected = [n for n, p in one.model.named_parameters() if p.requires_grad]
    by_parameter = DirectInfluence(one.model, one.loss, 0.5, "parameter_wise")
    assert by_parameter.block_names == expected
    blocks = {block: [n for n in expected if n.rpartition(".")[0] == block] for block in names}
    want = one.dense().influences(*one.part(0, 3), one.x, one.y, regularization=0.5, blocks=blocks)
    close(model.influences(*one.part(0, 3), one.x, one.y), want)


def test_half_of_the_layers_in_the_first_batch():
    # two points and two layers: the state looks as if its first axis were the points
    one = CASES["state output"]()
    model = DirectInfluence(one.model, one.loss, 0.5, second_order_mode="gauss_newton")
    model.fit([one.part(0, 2), one.part(2, None)])
    want = one.dense().influences(*one.part(0, 3), mode="gauss_newton", regularization=0.5)
    close(model.influences(*one.part(0, 3)), want)


def test_a_state_that_is_not_looked_at():
    one = CASES["state output"]()
    one = dataclasses.replace(one, loss=lambda out, y: F.cross_entropy(out[0], y))
    model = DirectInfluence(one.model, one.loss, 0.5, second_order_mode="gauss_newton")
    model.fit([one.part(0, 2), one.part(2, None)])
    want = one.dense().influences(*one.part(0, 3), mode="gauss_newton", regularization=0.5)
    close(model.influences(*one.part(0, 3)), want)


def test_the_loop_is_said_once(caplog):
    one = CASES["branching"]()
    with caplog.at_level(logging.DEBUG, "influence_torch"):
        model = DirectInfluence(one.model, one.loss, 0.5).fit(one.loader(4))
        for _ in range(2):
            model.influences(*one.part(0, 3), one.x, one.y)
            model.influences(*one.part(0, 3), one.x, one.y, mode="perturbation")
    said = [record.getMessage() for record in caplog.records if "in a loop" in record.getMessage()]
    assert said
    assert len(set(said)) == len(said)
    assert all(record.levelno == logging.INFO for record in caplog.records)


@pytest.mark.parametrize("name", ["bare linear", "branching"])
@pytest.mark.parametrize("mode", ["hessian", "generalized_gauss_newton"])
def test_a_curvature_of_zero(name, mode):
    one = CASES[name]()
    one = dataclasses.replace(one, loss=lambda f, y: f[:, 0].mean(), x=one.x.abs())
    model = DirectInfluence(one.model, one.loss, 1.0, second_order_mode=mode).fit(one.loader(4))
    gradients = one.dense().gradients(one.x, one.y)
    close(model.influences(one.x, one.y), gradients @ gradients.T)


def test_nothing_is_said_where_vmap_goes(caplog):
    one = CASES["bare linear"]()
    with caplog.at_level(logging.INFO, "influence_torch"):
        DirectInfluence(one.model, one.loss, 0.5).fit(one.loader(4)).influences(*one.part(0, 3))
    assert not caplog.records


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


class DataclassOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return Output(self.linear(x))


def test_outputs_that_torch_cannot_look_into():
    one = case(DataclassOutput, loss=lambda out, y: F.cross_entropy(out.logits, y))
    model = DirectInfluence(one.model, one.loss, 0.5).fit(one.loader(4))
    plain = Case(one.model, F.cross_entropy, one.x, one.y, lambda m, x: m.linear(x))
    want = plain.dense().influences(*one.part(0, 3), regularization=0.5)
    close(model.influences(*one.part(0, 3)), want)
    model = DirectInfluence(one.model, one.loss, 0.5, second_order_mode=MODES[2])
    with pytest.raises(ModelError, match="forward="):
        model.fit(one.loader(4))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["script", "trace"])
def test_torchscript(kind):
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    compiled = (
        torch.jit.script(model) if kind == "script" else torch.jit.trace(model, torch.ones(1, 4))
    )
    with pytest.raises(ModelError, match="TorchScript"):
        DirectInfluence(compiled, F.cross_entropy, 1.0).fit([(VECTORS.float(), LABELS)])


# the compiler trips over a warning of its own
@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("how", ["wrapped", "in place", "submodule"])
def test_torch_compile(how):
    one = CASES["shared and residual"]()
    want = one.dense().influences(*one.part(0, 3), regularization=0.5)
    model = seeded(Shared)
    if how == "wrapped":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model.head = torch.compile(model.head, backend="eager")
    got = DirectInfluence(model, one.loss, 0.5).fit(one.loader(4)).influences(*one.part(0, 3))
    close(got, want)


def test_old_weight_norm_says_what_to_use():
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(4, 3)).double().eval()
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            model(VECTORS)
        with pytest.raises(ModelError, match=r"parametrizations\.weight_norm"):
            DirectInfluence(model, F.cross_entropy, 1.0).fit([(VECTORS, LABELS)])


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.doubled = 2 * self.linear.weight

    def forward(self, x):
        return self.linear(x)


def test_a_tensor_with_a_history():
    with pytest.raises(ModelError, match="cannot be copied"):
        DirectInfluence(Holding(), F.cross_entropy, 1.0).fit([(VECTORS.float(), LABELS)])


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x):
        return -torch.cdist(x, self.centres)


def test_no_second_derivative():
    one = case(Distances)
    with pytest.raises(ModelError, match="_cdist_backward"):
        DirectInfluence(one.model, one.loss, 0.5).fit(one.loader(4))
    model = DirectInfluence(one.model, one.loss, 0.5, second_order_mode="gauss_newton")
    factors = model.fit(one.loader(4)).influence_factors(*one.part(0, 3))
    close(
        factors, one.dense().influence_factors(*one.part(0, 3), mode=MODES[1], regularization=0.5)
    )


BAD = {
    "no module": (lambda x: x, "torch.nn.Module"),
    "frozen": (nn.Linear(4, 3).requires_grad_(False), "requires_grad"),
    "no parameters": (nn.Tanh(), "requires_grad"),
    "lazy": (nn.LazyLinear(3), "no shape yet"),
    "complex": (nn.Linear(4, 3, dtype=torch.complex64), "real floating-point"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("kind", BAD)
def test_models_that_cannot_be_used(kind):
    model, message = BAD[kind]
    with pytest.raises(ModelError, match=message) as caught:
        DirectInfluence(model, F.cross_entropy, 1.0).fit([(VECTORS.float(), LABELS)])
    assert isinstance(caught.value, ValueError)


def test_switches_of_torch_are_set_back():
    def switches():
        return (
            torch.backends.mkldnn.enabled,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.conv.fp32_precision,
            torch.backends.cudnn.allow_tf32,
        )

    before = switches()
    for name in ("gru", "transformer layer", "branching"):
        one = CASES[name]()
        DirectInfluence(one.model, one.loss, 0.5).fit(one.loader(4)).influences(*one.part(0, 3))
        with pytest.raises(ModelError):
            DirectInfluence(one.model, one.loss, 0.5).fit([(one.x[..., :1], one.y)])
    assert switches() == before


def test_float32_recurrent_kernels():
    # fused float32 kernels have no second derivative, and none that vmap could use
    one = CASES["gru"]()
    single = seeded(recurrent(nn.GRU)).float()
    model = DirectInfluence(single, one.loss, 0.5).fit([(one.x.float(), one.y)])
    want = one.dense().influences(*one.part(0, 3), one.x, one.y, regularization=0.5)
    close(model.influences(one.x[:3].float(), one.y[:3], one.x.float(), one.y), want, 1e-4)
