"""What linear layers see: held against gradients by autograd, point by point."""

import logging
import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from seen import EXPECTED, GIVEN, SAMPLED, fixed, labels, slices, statistics
from textbook import Textbook
from torch import nn
from zoo import batches, classes, close, normal, seeded

from influence_core.errors import (
    CapabilityError,
    LossError,
    ModelError,
    NotImplementedLayerRepresentationException,
)
from influence_core.problem import (
    FreeParameters,
    HasLayers,
    HasValues,
    Labels,
    Layer,
    Shelters,
)
from influence_torch import TorchProblem
from influence_torch.likelihoods import cross_entropy

N, T = 11, 2


def mlp(bias=True):
    return nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3, bias=bias))


class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(*mlp())
        self[0].bias.requires_grad_(False)
        self[2].weight.requires_grad_(False)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))})
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(input=self.body["inner"](x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.again = self.layer

    def forward(self, x):
        return self.head(torch.tanh(self.again(torch.tanh(self.layer(x)))))


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = torch.tanh(self.layer(x.reshape(-1, 3)))
        return self.head(z.reshape(len(x), -1, 4).sum(1))


class Overwriting(nn.Module):
    """Writes into what its layers gave."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x + self.layer(x).mul_(2.0).relu_()).neg_()


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.spare = nn.Linear(3, 3), nn.Linear(2, 5)

    def forward(self, x):
        return self.layer(x)


class ClassesFirst(nn.Sequential):
    def forward(self, x):
        return super().forward(x).movedim(-1, 1)


class Sub(nn.Linear):
    pass


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


VECTORS, SEQUENCES = normal(N, 3), normal(N, T, 3)
LABELS, TOKENS = classes(N), classes(N * T).reshape(N, T)
MODELS = {
    "mlp": (mlp, VECTORS, LABELS),
    "no bias": (partial(mlp, False), VECTORS, LABELS),
    "frozen": (Frozen, VECTORS, LABELS),
    "root": (lambda: nn.Linear(3, 3), VECTORS, LABELS),
    "subclass": (lambda: nn.Sequential(Sub(3, 3)), VECTORS, LABELS),
    "nested": (Nested, VECTORS, LABELS),
    "twice": (Twice, VECTORS, LABELS),
    "flattened": (Flattened, SEQUENCES, LABELS),
    "overwriting": (Overwriting, VECTORS, LABELS),
    "unused": (Unused, VECTORS, LABELS),
    "sequences, classes last": (mlp, SEQUENCES, TOKENS),
    "sequences, classes first": (lambda: ClassesFirst(*mlp()), SEQUENCES, TOKENS),
    "images": (mlp, normal(N, 2, 2, 3), classes(4 * N).reshape(N, 2, 2)),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, x, y = MODELS[request.param]
    return seeded(make), x, y


def test_protocols():
    problem = TorchProblem(seeded(mlp), cross_entropy)
    assert isinstance(problem, HasLayers)
    assert isinstance(problem, HasValues)
    assert isinstance(problem, Shelters)


def test_given_labels(case):
    model, x, y = case
    problem = TorchProblem(model, cross_entropy)
    want = Dense(model, cross_entropy, x, y).gradients(x, y)
    close(slices(problem, x, y, labels(GIVEN))[0], want, 1e-12)


def test_shapes(case):
    model, x, y = case
    problem = TorchProblem(model, cross_entropy)
    found = statistics(problem, x, y, labels(GIVEN))
    for name, layer in problem.layers().items():
        a, g = found[name].inputs, found[name].output_gradients
        assert a.shape == (N, a.shape[1], layer.inputs)
        assert g.shape == (1, *a.shape[:2], layer.outputs)
        assert not a.requires_grad
        assert not g.requires_grad


def test_positions():
    shapes = {"twice": ("layer", 2), "flattened": ("layer", T), "images": ("0", 4)}
    for key, (layer, positions) in shapes.items():
        make, x, y = MODELS[key]
        problem = TorchProblem(seeded(make), cross_entropy)
        found = statistics(problem, x, y, labels(GIVEN), [layer])
        assert list(found) == [layer]
        assert found[layer].inputs.shape[1] == positions


@pytest.mark.parametrize("memory", [1, 3000, None])
def test_memory_and_batches(case, memory):
    model, x, y = case
    problem = TorchProblem(model, cross_entropy, max_memory=memory)
    plain = TorchProblem(model, cross_entropy)
    draws = fixed(3, N)
    for wanted in (labels(GIVEN), labels(EXPECTED), labels(SAMPLED, draws)):
        whole = slices(plain, x, y, wanted)
        close(slices(problem, x, y, wanted), whole, 1e-12)
        parts = []
        for start, (a, b) in zip(range(0, N, 4), batches(x, y, 4), strict=True):
            stop = start + len(b)
            of_part = Labels(wanted.kind, lambda t, start=start, stop=stop: draws(t)[:, start:stop])
            parts.append(slices(problem, a, b, of_part))
        close(torch.cat(parts, 1), whole, 1e-12)


def test_a_batch_of_one_first():
    x, y = SEQUENCES, TOKENS
    for kind in (GIVEN, EXPECTED):
        problem = TorchProblem(seeded(mlp), cross_entropy)
        got = [slices(problem, *pair, labels(kind)) for pair in batches(x, y, 1)]
        close(torch.cat(got, 1), slices(problem, x, y, labels(kind)), 1e-12)


@pytest.mark.parametrize("key", ["mlp", "no bias", "frozen", "sequences, classes last"])
def test_expected_labels_make_the_fisher_matrix(key):
    make, x, y = MODELS[key]
    model = seeded(make)
    rows = slices(TorchProblem(model, cross_entropy), x, y, labels(EXPECTED))
    close(
        torch.einsum("cnd,cne->de", rows, rows) / N, Textbook(model, cross_entropy, x, y).fisher()
    )


def test_expected_labels_are_those_of_the_loss():
    make, x, y = MODELS["sequences, classes last"]
    last, first = seeded(make), seeded(lambda: ClassesFirst(*make()))
    want = slices(TorchProblem(last, cross_entropy), x, y, labels(EXPECTED))
    for loss in (cross_entropy, F.cross_entropy, nn.CrossEntropyLoss()):
        close(slices(TorchProblem(first, loss), x, y, labels(EXPECTED)), want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction):
    model, loss = seeded(mlp), nn.CrossEntropyLoss(reduction=reduction)
    plain = TorchProblem(model, cross_entropy)
    for kind in (GIVEN, EXPECTED):
        want = slices(plain, VECTORS, LABELS, labels(kind))
        close(slices(TorchProblem(model, loss), VECTORS, LABELS, labels(kind)), want, 1e-12)


def test_the_loss_of_a_sequence_may_be_a_sum():
    model = seeded(lambda: ClassesFirst(*mlp()))
    mean, total = (
        TorchProblem(model, nn.CrossEntropyLoss(reduction=reduction))
        for reduction in ("mean", "sum")
    )
    for wanted in (labels(GIVEN), labels(EXPECTED), labels(SAMPLED, fixed(1, N))):
        want = T * slices(mean, SEQUENCES, TOKENS, wanted)
        close(slices(total, SEQUENCES, TOKENS, wanted), want, 1e-12)


@pytest.mark.parametrize("loss", [cross_entropy, nn.CrossEntropyLoss(ignore_index=-1)])
def test_positions_without_a_loss(loss):
    """They are in no slice, and the others have their share."""
    ignored = -100 if loss is cross_entropy else -1
    model = seeded(mlp if loss is cross_entropy else lambda: ClassesFirst(*mlp()))
    y = torch.cat([TOKENS, torch.full((N, 2), ignored)], 1)
    x = torch.cat([SEQUENCES, normal(N, 2, 3, seed=5)], 1)
    problem = TorchProblem(model, loss)
    rows = slices(problem, x, y, labels(EXPECTED))
    want = Textbook(seeded(mlp), cross_entropy, SEQUENCES, TOKENS).fisher()
    close(torch.einsum("cnd,cne->de", rows, rows) / N, want)
    close(slices(problem, x, y, labels(GIVEN))[0], Dense(model, loss, x, y).gradients(x, y))
    sampled = statistics(problem, x, y, labels(SAMPLED, fixed(2, N)))["0"].output_gradients
    assert not sampled[:, :, T:].any()
    assert sampled[:, :, :T].any(-1).all()


def test_labels_that_are_probabilities():
    soft = normal(N, 3, seed=7).softmax(1)
    problem = TorchProblem(seeded(mlp), cross_entropy)
    want = Dense(seeded(mlp), cross_entropy, VECTORS, soft).gradients(VECTORS, soft)
    close(slices(problem, VECTORS, soft, labels(GIVEN))[0], want)
    hard = slices(problem, VECTORS, LABELS, labels(EXPECTED))
    close(slices(problem, VECTORS, soft, labels(EXPECTED)), hard)


def outcomes(problem, x, y, draws, uniforms):
    """Labels that were drawn, `(draws, n, t)`, read off the gradients in the logits."""
    found = statistics(problem, x, y, labels(SAMPLED, uniforms))[""].output_gradients
    return (found * draws**0.5).argmin(-1)


def test_sampled_labels_have_the_probabilities_of_the_model():
    model, draws = seeded(lambda: nn.Linear(3, 3)), 20000
    uniforms = np.random.default_rng(0).random((draws, N, T))
    problem = TorchProblem(model, cross_entropy)
    drawn = outcomes(problem, SEQUENCES, TOKENS, draws, lambda positions: uniforms)
    with torch.no_grad():
        p = model(SEQUENCES).softmax(-1)
    frequencies = torch.stack([(drawn == c).double().mean(0) for c in range(3)], -1)
    assert ((frequencies - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()


def test_sampled_labels_invert_the_distribution_function():
    model = seeded(lambda: nn.Linear(3, 3))
    numbers = np.linspace(0, 1, 301)[:300]
    with torch.no_grad():
        p = model(VECTORS).softmax(-1).numpy()
    uniforms = np.broadcast_to(numbers[:, None, None], (300, N, 1))
    problem = TorchProblem(model, cross_entropy)
    drawn = outcomes(problem, VECTORS, LABELS, 300, lambda positions: uniforms)
    for i in range(N):
        want = [next(c for c in range(3) if p[i, : c + 1].sum() > u) for u in numbers]
        assert drawn[:, i, 0].tolist() == want


def test_the_largest_uniform_in_float32():
    """It rounds to one, above every sum of probabilities."""
    problem = TorchProblem(seeded(lambda: nn.Linear(3, 3)).float(), cross_entropy)
    uniforms = np.full((1, N, 1), np.nextafter(1.0, 0.0))
    drawn = outcomes(problem, VECTORS.float(), LABELS, 1, lambda positions: uniforms)
    assert (drawn == 2).all()


def test_sampled_slices():
    model, draws = seeded(mlp), 4
    problem = TorchProblem(model, cross_entropy)
    wanted = labels(SAMPLED, fixed(draws, N))
    rows = slices(problem, VECTORS, LABELS, wanted)
    assert torch.equal(rows, slices(problem, VECTORS, LABELS, wanted))
    with torch.no_grad():
        sums = model(VECTORS).softmax(-1).cumsum(-1)
    for row, uniforms in zip(rows, fixed(draws, N)(1), strict=True):
        drawn = (torch.as_tensor(uniforms) >= sums).sum(-1)
        want = Dense(model, cross_entropy, VECTORS, drawn).gradients(VECTORS, drawn)
        close(row, want / draws**0.5)


def test_the_kind_that_is_chosen():
    def kind(model, x, y):
        problem = TorchProblem(seeded(model), cross_entropy)
        uniforms = fixed(2, len(x))
        (found,) = statistics(problem, x, y, labels(None, uniforms)).values()
        kinds = []
        for known in (EXPECTED, SAMPLED):
            (want,) = statistics(problem, x, y, labels(known, uniforms)).values()
            if torch.equal(found.output_gradients, want.output_gradients):
                kinds.append(known)
        return kinds

    assert kind(lambda: nn.Linear(3, 32), VECTORS, LABELS) == [EXPECTED]
    assert kind(lambda: nn.Linear(3, 33), VECTORS, LABELS) == [SAMPLED]
    assert kind(lambda: nn.Linear(3, 3), SEQUENCES, TOKENS) == [SAMPLED]


UNKNOWN = {
    "another": lambda outputs, y: F.cross_entropy(outputs, y),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "weighted": nn.CrossEntropyLoss(weight=torch.ones(3).double(), reduction="none"),
    "ignoring a class": nn.CrossEntropyLoss(ignore_index=0, reduction="none"),
}


@pytest.mark.parametrize("loss", UNKNOWN.values(), ids=UNKNOWN)
def test_losses_without_a_known_distribution(loss):
    problem = TorchProblem(seeded(mlp), loss)
    want = Dense(seeded(mlp), loss, VECTORS, LABELS).gradients(VECTORS, LABELS)
    close(slices(problem, VECTORS, LABELS, labels(GIVEN))[0], want)
    for kind in (None, EXPECTED, SAMPLED):
        with pytest.raises(CapabilityError, match=r"cross_entropy.*CrossEntropyLoss.*'given'"):
            slices(problem, VECTORS, LABELS, labels(kind, fixed(1, N)))


def test_a_loss_over_two_outputs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return {"a": self.left(x), "b": (self.right(x), None)}

    def loss(outputs, y):
        return ((outputs["a"] - y).square() * outputs["b"][0].exp()).sum(1).mean()

    model, y = seeded(Pair), normal(N, 2, seed=3)
    problem = TorchProblem(model, loss)
    want = Dense(model, loss, VECTORS, y).gradients(VECTORS, y)
    close(slices(problem, VECTORS, y, labels(GIVEN))[0], want)


class TestCrossEntropy:
    def test_against_torch(self):
        logits = normal(N, T, 4)
        y = classes(N * T, 4).reshape(N, T)
        want = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        for outputs in (logits, logits.movedim(-1, 1)):
            close(cross_entropy(outputs, y), want, 1e-14)
            each = torch.func.vmap(lambda f, c: cross_entropy(f[None], c[None]))(outputs, y)
            close(each.mean(), want, 1e-14)
        close(cross_entropy(logits[:, 0], y[:, 0]), F.cross_entropy(logits[:, 0], y[:, 0]), 1e-14)
        soft = normal(N, 4, T, seed=2).softmax(1)
        close(
            cross_entropy(logits.movedim(-1, 1), soft),
            F.cross_entropy(logits.movedim(-1, 1), soft),
            1e-14,
        )

    def test_every_point_has_the_mean_of_its_positions(self):
        logits = normal(2, 3, 4)
        y = torch.tensor([[1, -100, -100], [0, 2, 3]])
        each = F.cross_entropy(logits.movedim(-1, 1), y, reduction="none")
        close(cross_entropy(logits, y), (each[0, 0] + each[1].mean()) / 2, 1e-14)
        assert cross_entropy(logits, torch.full((2, 3), -100)) == 0

    def test_a_well_formed_loss(self):
        """Points with different numbers of positions are what torch's own loss is refused for."""
        y = TOKENS.clone()
        y[::2, 0] = -100
        model = seeded(mlp)
        TorchProblem(model, cross_entropy).gradients(
            TorchProblem(model, cross_entropy).batch((SEQUENCES, y)), ["0.weight"]
        )
        with pytest.raises(LossError, match="ignore_index"):
            slices(
                TorchProblem(seeded(lambda: ClassesFirst(*mlp())), F.cross_entropy),
                SEQUENCES,
                y,
                labels(GIVEN),
            )

    def test_axes_that_cannot_be_told_apart(self):
        square = normal(N, 3, 3)
        with pytest.raises(LossError, match=r"axis 1 and with the last.*movedim"):
            cross_entropy(square, classes(3 * N).reshape(N, 3))
        with pytest.raises(ModelError, match="cannot tell which axis"):
            slices(
                TorchProblem(seeded(mlp), cross_entropy),
                square,
                classes(3 * N).reshape(N, 3),
                labels(EXPECTED),
            )

    def test_shapes_that_do_not_go_together(self):
        for outputs, y in ((normal(N), LABELS), (normal(N, 3), TOKENS)):
            with pytest.raises(LossError, match=r"needs outputs \(n, classes, …\)"):
                cross_entropy(outputs, y)


class TestLayers:
    def test_names_and_shapes(self):
        assert TorchProblem(seeded(Frozen), cross_entropy).layers() == {
            "0": Layer("0.weight", None, 3, 4),
            "2": Layer(None, "2.bias", 4, 3),
        }
        assert TorchProblem(seeded(Nested), cross_entropy).layers() == {
            "body.inner.0": Layer("body.inner.0.weight", "body.inner.0.bias", 3, 4),
            "head": Layer("head.weight", "head.bias", 4, 3),
        }
        assert TorchProblem(nn.Linear(3, 2, bias=False), cross_entropy).layers() == {
            "": Layer("weight", None, 3, 2)
        }
        assert list(TorchProblem(seeded(Twice), cross_entropy).layers()) == ["layer", "head"]

    def test_frozen_layers_are_left_out(self):
        model = seeded(mlp)
        model[0].requires_grad_(False)
        assert list(TorchProblem(model, cross_entropy).layers()) == ["2"]

    def test_what_is_no_plain_linear(self):
        parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        patched = nn.Linear(3, 3)
        patched.forward = lambda x: x
        model = nn.Sequential(Doubling(3, 3), parametrized, patched)
        own = "1.parametrizations.weight.original"
        assert TorchProblem(model, cross_entropy).layers() == {
            "0": FreeParameters(("0.weight", "0.bias"), 12),
            "1": Layer(None, "1.bias", 3, 3),
            "1.parametrizations.weight": FreeParameters((f"{own}0", f"{own}1"), 12),
            "2.weight": FreeParameters(
                ("2.weight",), 9, "Linear (2) is no layer that can be factored"
            ),
            "2.bias": FreeParameters(("2.bias",), 3, "Linear (2) is no layer that can be factored"),
        }

    def test_parameters_of_several_modules(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        assert TorchProblem(model, cross_entropy).layers() == {
            "0": Layer(None, "0.bias", 3, 3),
            "1": Layer(None, "1.bias", 3, 3),
            "0.weight": FreeParameters(("0.weight",), 9, "the modules '0' and '1' share it"),
        }

    def test_unused(self):
        problem = TorchProblem(seeded(Unused), cross_entropy)
        found = statistics(problem, VECTORS, LABELS, labels(EXPECTED))["spare"]
        assert found.inputs.shape == (N, 1, 2)
        assert found.output_gradients.shape == (3, N, 1, 5)
        assert not found.inputs.any()
        assert not found.output_gradients.any()
        alone = statistics(problem, VECTORS, LABELS, labels(EXPECTED), ["spare"])["spare"]
        assert torch.equal(alone.output_gradients, found.output_gradients)

    @pytest.mark.parametrize("how", ["one vector", "one row", "positions first"])
    def test_points_that_are_not_in_front(self, how):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
                self.again = nn.Linear(3, 3)
                self.register_buffer("vector", torch.arange(3.0))

            def forward(self, x):
                if how == "positions first":
                    return self.head(self.layer(x.movedim(0, 1)).sum(0)) + self.again(x[:, 1])
                vector = self.vector if how == "one vector" else self.vector[None]
                return self.head(x[:, 0]) + self.again(torch.tanh(self.layer(vector)))

        model = seeded(Odd)
        problem = TorchProblem(model, cross_entropy)
        want = Dense(model, cross_entropy, SEQUENCES, LABELS).gradients(SEQUENCES, LABELS)
        parts = batches(SEQUENCES, LABELS, 1) + batches(SEQUENCES, LABELS, 4)
        got = [slices(problem, *part, labels(GIVEN))[0] for part in parts]
        close(torch.cat(got), torch.cat([want, want]), 1e-12)

    def test_points_in_several_places(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, x):
                return self.layer(x).sum(1) + self.layer(x.movedim(0, 1)).sum(0)

        problem = TorchProblem(seeded(Odd), cross_entropy)
        with pytest.raises(NotImplementedLayerRepresentationException, match=r"'layer'.*along 1"):
            statistics(problem, SEQUENCES, LABELS, labels(EXPECTED))

    def test_hooks_of_the_user(self):
        """They come after what the layer itself computes, and count."""
        model = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
        model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1.0,))
        model[0].register_forward_hook(lambda module, inputs, output: output * inputs[0])
        problem = TorchProblem(model, cross_entropy)
        want = Dense(model, cross_entropy, VECTORS, LABELS).gradients(VECTORS, LABELS)
        close(slices(problem, VECTORS, LABELS, labels(GIVEN))[0], want)


def test_without_vmap(caplog):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    class Custom(nn.Sequential):
        def forward(self, x):
            return Double.apply(super().forward(x)) / 2

    want = slices(TorchProblem(seeded(mlp), cross_entropy), VECTORS, LABELS, labels(EXPECTED))
    problem = TorchProblem(seeded(lambda: Custom(*mlp())), cross_entropy)
    with caplog.at_level(logging.INFO):
        close(slices(problem, VECTORS, LABELS, labels(EXPECTED)), want)
    assert "layer_statistics runs in a loop" in caplog.text


def test_the_model_is_left_alone():
    model = seeded(Nested)
    model.head.register_forward_hook(lambda module, inputs, output: None)
    F.cross_entropy(model(VECTORS), LABELS).backward()
    problem = TorchProblem(model, cross_entropy)

    def state():
        copies = problem._snapshot._caller().module
        modules = [*model.modules(), *copies.modules()]
        tensors = [t for p in model.parameters() for t in (p, p.grad)]
        return (
            [(id(t), t.detach().numpy().tobytes(), t.requires_grad) for t in tensors],
            [
                (list(m._forward_hooks), list(m._forward_pre_hooks), sorted(vars(m)))
                for m in modules
            ],
            torch.get_rng_state().numpy().tobytes(),
        )

    before = state()
    for wanted in (labels(GIVEN), labels(EXPECTED), labels(SAMPLED, fixed(2, N))):
        statistics(problem, VECTORS, LABELS, wanted)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        statistics(problem, normal(N, 5), LABELS, labels(EXPECTED))
    assert state() == before


def test_threads():
    problem = TorchProblem(seeded(Nested), cross_entropy)
    parts = [tuple(pair) for pair in batches(VECTORS, LABELS, 3)] * 4
    want = [slices(problem, *pair, labels(EXPECTED)) for pair in parts]
    got = [None] * len(parts)

    def work(index):
        got[index] = slices(problem, *parts[index], labels(EXPECTED))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-12)


def test_contexts_of_the_caller():
    model = seeded(mlp).float()
    x = VECTORS.float()
    want = slices(TorchProblem(model, cross_entropy), x, LABELS, labels(EXPECTED))
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            got = slices(TorchProblem(model, cross_entropy), x, LABELS, labels(EXPECTED))
        assert torch.equal(got, want)


def test_shelter():
    problem = TorchProblem(seeded(mlp), cross_entropy)
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with problem.shelter():
            assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_dtypes(dtype):
    model, x = seeded(mlp).to(dtype), VECTORS.to(dtype)
    problem = TorchProblem(model, cross_entropy)
    rows = slices(problem, x, LABELS, labels(GIVEN))
    assert rows.dtype == torch.float32
    close(rows[0], Dense(model, cross_entropy, x, LABELS).gradients(x, LABELS), 1e-5)


def test_values():
    model = seeded(mlp)
    problem = TorchProblem(model, cross_entropy)
    want = torch.cat([model[0].bias, model[2].weight.flatten()]).detach()
    got = problem.values(["0.bias", "2.weight"])
    assert torch.equal(got, want)
    for names in (["0.bias", "2.weight"], ["0.bias"]):
        problem.values(names).zero_()
    assert torch.equal(problem.values(["0.bias", "2.weight"]), want)
    assert not got.requires_grad
