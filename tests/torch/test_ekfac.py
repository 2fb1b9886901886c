"""`EkfacInfluence` against K-FAC and EK-FAC by hand, and as a preconditioner on the digits."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import Dense
from textbook import Textbook
from torch import nn
from zoo import batches, classes, close, normal, seeded

from influence_core.errors import CapabilityError, RegularizationError
from influence_torch import (
    BlockMode,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    EkfacPreconditioner,
    NotFittedException,
    NotImplementedLayerRepresentationException,
    NystroemPreconditioner,
)
from influence_torch.likelihoods import cross_entropy

N, M, T = 23, 5, 2
LAMBDAS = [1e-3, 1e-2, 1e-1]
UPDATES = pytest.mark.parametrize("update", [False, True], ids=["kfac", "ekfac"])
MODES = pytest.mark.parametrize("mode", ["up", "perturbation"])


def mlp(bias=True):
    return nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3, bias=bias))


class Frozen(nn.Sequential):
    """The first layer has a bias only, the second nothing, the third a weight only."""

    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        self[0].weight.requires_grad_(False)
        self[2].requires_grad_(False)
        self[4].bias.requires_grad_(False)


VECTORS, SEQUENCES = normal(N, 3), normal(N, T, 3)
LABELS, TOKENS = classes(N), classes(N * T).reshape(N, T)
CASES = {
    "mlp": (mlp, VECTORS, LABELS),
    "no bias": (lambda: mlp(False), VECTORS, LABELS),
    "frozen": (Frozen, VECTORS, LABELS),
    "one layer": (lambda: nn.Sequential(nn.Linear(3, 3)), VECTORS, LABELS),
    "sequences": (mlp, SEQUENCES, TOKENS),
}


@functools.cache
def textbook(name, labels="expected"):
    make, x, y = CASES[name]
    return Textbook(seeded(make), cross_entropy, x, y, labels)


@functools.cache
def fitted(name, update=False, regularization=1e-2, batch_size=7, **keywords):
    make, x, y = CASES[name]
    model = EkfacInfluence(seeded(make), update, regularization, labels="expected", **keywords)
    return model.fit(batches(x, y, batch_size))


def points(name):
    """Test points that are no training points, and training points; (x_test, y_test, x, y)."""
    _, x, y = CASES[name]
    return normal(M, *x.shape[1:], seed=8), y[:M].flip(0), x[2:9], y[2:9]


def key(update):
    return "ekfac" if update else "kfac"


@MODES
@UPDATES
@pytest.mark.parametrize("labels", ["expected", "given"])
@pytest.mark.parametrize("name", CASES)
def test_textbook(name, labels, update, mode):
    make, x, y = CASES[name]
    want = textbook(name, labels)
    model = EkfacInfluence(seeded(make), update, labels=labels).fit(batches(x, y, 7))
    four = points(name)
    assert model.block_names == list(want.layers)
    for regularization in LAMBDAS:
        how = {"mode": key(update), "regularization": regularization, "blocks": want.layers}
        shares = want.influences_by_block(*four, mode, **how)
        model.with_regularization(regularization)
        close(model.influences(*four, mode=mode), sum(shares.values()), 1e-9)
        for layer, share in model.influences_by_layer(*four, mode=mode).items():
            close(share, shares.pop(layer), 1e-9)
        assert not shares
        factors = model.influence_factors(*four[:2])
        close(factors, want.influence_factors(*four[:2], **how), 1e-9)


@UPDATES
@pytest.mark.parametrize("name", ["mlp", "sequences"])
def test_the_batch_size_does_not_count(name, update):
    four = points(name)
    want = fitted(name, update).influences(*four)
    for batch_size in (1, 2, 10, N):
        close(fitted(name, update, batch_size=batch_size).influences(*four), want, 1e-9)


@UPDATES
@pytest.mark.parametrize("m", [1, N])
def test_few_and_many_points(update, m):
    _, x, y = CASES["mlp"]
    want = textbook("mlp")
    how = {"mode": key(update), "regularization": 1e-2, "blocks": want.layers}
    for four in ((x[:m], y[:m], x[:3], y[:3]), (x[:m], y[:m])):
        close(fitted("mlp", update).influences(*four), want.influences(*four, **how), 1e-9)


@MODES
@UPDATES
@pytest.mark.parametrize("name", ["mlp", "frozen", "sequences"])
def test_by_layer(name, update, mode):
    model = fitted(name, update)
    four = points(name)
    whole = model.influences(*four, mode=mode)
    shares = model.influences_by_layer(*four, mode=mode)
    assert list(shares) == model.block_names
    assert all(share.shape == whole.shape for share in shares.values())
    close(sum(shares.values()), whole)
    factors = model.influence_factors_by_layer(*four[:2])
    assert list(factors) == model.block_names
    assert torch.equal(torch.cat(list(factors.values()), 1), model.influence_factors(*four[:2]))
    again = model.influences_from_factors_by_layer(factors, *four[2:], mode=mode)
    for layer in model.block_names:
        close(again[layer], shares[layer])
    alone = model.influences_by_layer(*four[:2], mode=mode)
    assert {a.shape[:2] for a in alone.values()} == {(M, M)}


def test_layers_are_the_blocks_of_the_other_classes():
    """Where the curvature of a layer is a Kronecker product, it is the exact one."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 3)))
    x, y = normal(1, 3), classes(1)
    four = (x, y, normal(M, 3, seed=5), classes(M))
    for update in (False, True):
        got = EkfacInfluence(model, update, 1e-2).fit([(x, y)])
        exact = DirectInfluence(
            model,
            F.cross_entropy,
            1e-2,
            BlockMode.LAYER_WISE,
            second_order_mode="generalized_gauss_newton",
        ).fit([(x, y)])
        assert got.block_names == exact.block_names
        close(got.influences(*four), exact.influences(*four))


CALLS = {
    "influences": points("mlp"),
    "influences_by_layer": points("mlp"),
    "influences_by_block": points("mlp"),
    "influence_factors": points("mlp")[:2],
    "influence_factors_by_layer": points("mlp")[:2],
    "influences_from_factors": (normal(1, 31), *points("mlp")[2:]),
    "influences_from_factors_by_layer": ({}, *points("mlp")[2:]),
    "explore_hessian_regularization": (*points("mlp")[:2], [1.0]),
    "self_influences": ([points("mlp")[:2]],),
}


@pytest.mark.parametrize("call", CALLS)
def test_before_fit(call):
    model = EkfacInfluence(seeded(mlp))
    with pytest.raises(NotFittedException, match=rf"EkfacInfluence\.{call}"):
        getattr(model, call)(*CALLS[call])


class TestRegularization:
    def test_explore(self):
        x, y = points("mlp")[:2]
        for update in (False, True):
            model = EkfacInfluence(seeded(mlp), update, 0.5).fit(batches(VECTORS, LABELS, 7))
            before = model.influences(x, y)
            found = model.explore_hessian_regularization(x, y, LAMBDAS)
            assert list(found) == LAMBDAS
            for regularization, layers in found.items():
                want = fitted("mlp", update, regularization).influences_by_layer(x, y)
                assert layers.keys() == want.keys()
                for layer, share in layers.items():
                    assert share.shape == (M, M)
                    close(share, want[layer])
            assert torch.equal(model.influences(x, y), before)

    def test_by_layer(self):
        four = points("mlp")
        each = {"0": 1e-3, "2": 1e-1}
        want = textbook("mlp")
        how = {"mode": "kfac", "regularization": each, "blocks": want.layers}
        want = want.influences(*four, **how)
        data = batches(VECTORS, LABELS, 7)
        close(EkfacInfluence(seeded(mlp), False, each).fit(data).influences(*four), want)
        before = EkfacInfluence(seeded(mlp)).with_regularization(each)
        close(before.fit(data).influences(*four), want)
        after = EkfacInfluence(seeded(mlp), False, 7.0).fit(data)
        close(after.with_regularization(each).influences(*four), want)

    def test_back_and_forth(self):
        model = EkfacInfluence(seeded(mlp), True, 1e-3).fit(batches(VECTORS, LABELS, 7))
        four = points("mlp")
        first = model.influences(*four)
        model.with_regularization(1e7).influences(*four)
        assert torch.equal(model.with_regularization(1e-3).influences(*four), first)

    def test_unknown_layers(self):
        with pytest.raises(RegularizationError, match=r"\['0', '2'\]"):
            EkfacInfluence(seeded(mlp), False, {"1": 1.0})


class Around(nn.Module):
    """Two linear layers around something else."""

    def __init__(self, inner):
        super().__init__()
        self.before, self.inner, self.head = nn.Linear(3, 4), inner, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.inner(self.before(x)))


class Outside(nn.Module):
    """A weight that is used outside of its layer as well."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) @ self.linear.weight


class Transposed(nn.Module):
    """A layer of torch that has no factors."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.ConvTranspose2d(1, 1, 1)

    def forward(self, x):
        return self.kernel(x.reshape(-1, 1, 2, 2)).reshape(-1, 4)


UNSUPPORTED = {
    "transposed convolution": (Transposed, "'inner.kernel.weight'.*ConvTranspose2d"),
    "outside": (Outside, "'inner.linear.weight'"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_parameters_of_no_linear_layer(name):
    make, match = UNSUPPORTED[name]
    model = seeded(lambda: Around(make()))
    data = batches(VECTORS, LABELS, 7)
    ekfac = EkfacInfluence(model, labels="expected")
    with pytest.raises(NotImplementedLayerRepresentationException, match=match) as caught:
        ekfac.fit(data)
    assert isinstance(caught.value, NotImplementedError)
    assert isinstance(caught.value, ValueError)
    assert not ekfac.is_fitted
    model.inner.requires_grad_(False)
    assert EkfacInfluence(model, labels="expected").fit(data).block_names == ["before", "head"]


def test_tied_weights():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)))
    model[2].weight = model[0].weight
    data = batches(VECTORS, LABELS, 7)
    with pytest.raises(NotImplementedLayerRepresentationException, match=r"'0\.weight'.*'2' share"):
        EkfacInfluence(model).fit(data)
    given = {"hessian_regularization": 0.1, "labels": "given"}
    ekfac = EkfacInfluence(model, unsupported="diagonal", **given).fit(data)
    rows = Dense(model, cross_entropy, VECTORS, LABELS).gradients(VECTORS, LABELS)[:, :9]
    factors = ekfac.influence_factors_by_layer(VECTORS, LABELS)["0"][:, :9]
    close(factors, rows / ((rows**2).mean(0) + 0.1))
    skipped = EkfacInfluence(model, unsupported="skip", **given).fit(data)
    assert not skipped.influence_factors_by_layer(VECTORS, LABELS)["0"][:, :9].any()


class TestLabels:
    def test_the_default(self):
        four, data = points("mlp"), batches(VECTORS, LABELS, 7)
        got = EkfacInfluence(seeded(mlp), False, 1e-2).fit(data).influences(*four)
        close(got, fitted("mlp").influences(*four))

    def test_sampled_labels_become_expected_ones(self):
        """The error falls as the root of the number of draws."""
        four, data = points("sequences"), batches(SEQUENCES, TOKENS, 7)
        want = fitted("sequences", True, 1e-1).influences(*four)

        def error(draws):
            errors = []
            for seed in range(4):
                model = EkfacInfluence(
                    seeded(mlp), True, 1e-1, labels="sampled", draws=draws, seed=seed
                )
                errors.append((model.fit(data).influences(*four) - want).norm() / want.norm())
            return float(torch.stack(errors).square().mean().sqrt())

        few, many = error(4), error(400)
        assert 0.005 < many < few / 5

    def test_sampled_labels_are_reproducible(self):
        four = points("sequences")

        def scores(batch_size, seed=0):
            model = EkfacInfluence(seeded(mlp), True, 1e-2, labels="sampled", draws=2, seed=seed)
            return model.fit(batches(SEQUENCES, TOKENS, batch_size)).influences(*four)

        want = scores(7)
        assert torch.equal(scores(7), want)
        for batch_size in (1, 5, N):
            close(scores(batch_size), want)
        assert not torch.allclose(scores(7, seed=1), want)

    def test_an_unknown_loss(self):
        def loss(outputs, y):
            return F.cross_entropy(outputs, y, label_smoothing=0.2)

        data = batches(VECTORS, LABELS, 7)
        for labels in (None, "expected", "sampled"):
            with pytest.raises(CapabilityError, match=r"'given'"):
                EkfacInfluence(seeded(mlp), loss=loss, labels=labels).fit(data)
        got = EkfacInfluence(seeded(mlp), True, 1e-2, loss=loss, labels="given").fit(data)
        assert torch.isfinite(got.influences(*points("mlp"))).all()


@UPDATES
def test_float32(update):
    make, x, y = CASES["mlp"]
    model = EkfacInfluence(seeded(make).float(), update).fit(batches(x.float(), y, 7))
    four = [t.float() if t.is_floating_point() else t for t in points("mlp")]
    for regularization, tolerance in ((1e-3, 1e-3), (1e-2, 1e-4), (1e-1, 1e-4)):
        got = model.with_regularization(regularization).influences(*four)
        assert got.dtype == torch.float32
        close(got, fitted("mlp", update, regularization).influences(*points("mlp")), tolerance)


def test_to_and_self_influences():
    model = EkfacInfluence(seeded(mlp), True, 1e-2).fit(batches(VECTORS, LABELS, 7)).to("cpu")
    scores = model.influences(VECTORS, LABELS)
    close(model.self_influences(batches(VECTORS, LABELS, 4)), scores.diagonal())


def test_forward():
    four = points("mlp")
    model = EkfacInfluence(seeded(mlp), True, 1e-2, forward=lambda m, x: 2.0 * m(x))
    doubled = seeded(mlp)
    with torch.no_grad():
        doubled[2].weight.mul_(2.0)
        doubled[2].bias.mul_(2.0)
    data = batches(VECTORS, LABELS, 7)
    got = model.fit(data).influence_factors_by_layer(*four[:2])["0"]
    want = EkfacInfluence(doubled, True, 1e-2).fit(data).influence_factors_by_layer(*four[:2])["0"]
    close(got, want)


def test_autocast_of_the_caller():
    four = points("mlp")
    model, data = seeded(mlp).float(), batches(VECTORS.float(), LABELS, 7)
    four = [t.float() if t.is_floating_point() else t for t in four]
    want = EkfacInfluence(model, True, 1e-2).fit(data).influences(*four)
    with torch.autocast("cpu", torch.bfloat16):
        got = EkfacInfluence(model, True, 1e-2).fit(data).influences(*four)
    assert torch.equal(got, want)


class TestDigits:
    """An MLP with 2,410 parameters, trained on 1,437 digits with a penalty of its parameters."""

    REGULARIZATION = 1e-3

    @pytest.fixture(scope="class")
    @staticmethod
    def digits():
        datasets = pytest.importorskip("sklearn.datasets")
        images, labels = datasets.load_digits(return_X_y=True)
        x, y = torch.as_tensor(images / 16), torch.as_tensor(labels)
        model = seeded(lambda: nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)))
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=100, history_size=20, line_search_fn="strong_wolfe"
        )

        def objective():
            optimizer.zero_grad()
            penalty = sum((p**2).sum() for p in model.parameters())
            value = F.cross_entropy(model(x[:1437]), y[:1437]) + 0.01 / 2 * penalty
            value.backward()
            return value

        optimizer.step(objective)
        model.zero_grad()
        return model, x, y

    def solver(self, digits, kind=CgInfluence, **keywords):
        model, x, y = digits
        return kind(
            model,
            F.cross_entropy,
            self.REGULARIZATION,
            second_order_mode="generalized_gauss_newton",
            **keywords,
        ).fit([(x[:1437], y[:1437])])

    def test_ekfac_helps_early(self, digits):
        _, x, y = digits
        four = (x[1437:1487], y[1437:1487], x[:1437:4], y[:1437:4])
        want = self.solver(digits, DirectInfluence).influences(*four)

        def error(**keywords):
            got = self.solver(
                digits, maxiter=5, rtol=1e-12, atol=0.0, warn_on_max_iteration=False, **keywords
            ).influences(*four)
            return float((got - want).norm() / want.norm())

        assert error(preconditioner=EkfacPreconditioner()) <= 0.4 * error()

    def test_nystroem_helps_late(self, digits):
        _, x, y = digits
        rows = (x[1437:1447], y[1437:1447])

        def iterations(**keywords):
            solver = self.solver(digits, rtol=1e-3, atol=0.0, **keywords)
            solver.influence_factors(*rows)
            assert solver.report.converged.all()
            return int(np.max(solver.report.iterations))

        assert iterations(preconditioner=NystroemPreconditioner(100)) <= iterations() / 3


@pytest.mark.gpu
@UPDATES
@pytest.mark.parametrize("labels", ["expected", "sampled", "given"])
@pytest.mark.parametrize("where", ["model on the GPU", "to before fit", "to after fit"])
def test_gpu(where, labels, update):
    _, x, y = CASES["sequences"]
    four, data = points("sequences"), batches(x, y, 7)
    on_cpu = EkfacInfluence(seeded(mlp), update, 1e-2, labels=labels).fit(data)
    module = seeded(mlp)
    if where == "model on the GPU":
        module.to("cuda")
    model = EkfacInfluence(module, update, 1e-2, labels=labels)
    if where == "to before fit":
        model.to("cuda")
    model.fit(data)
    if where == "to after fit":
        model.to("cuda")
    for mode in ("up", "perturbation"):
        got = model.influences(*four, mode=mode)
        assert got.device.type == "cuda"
        close(got, on_cpu.influences(*four, mode=mode))
    close(model.to("cpu").influences(*four), on_cpu.influences(*four))
