"""The user's model, data and random generators are left alone."""

import copy
import pickle
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from solvers import SOLVERS, WITH_MODES
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset
from zoo import MODES, classes, close, convex_case, mlp_case, normal, rng, seeded

from influence_core.errors import ModelError
from influence_torch import (
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    InverseHarmonicMeanInfluence,
)

CASE = convex_case()


def use(model, solver, mode):
    """Everything that can be called."""
    data = solver.loader(CASE)
    x, y = CASE.part(0, 5)
    keywords = solver.known(second_order_mode=mode)
    fitted = solver(model, F.cross_entropy, 5.0, **keywords).fit(data)
    fitted.influences_from_factors(fitted.influence_factors(x, y), x, y)
    fitted.influences(x, y, mode="perturbation")
    fitted.influences(x, y)
    fitted.influences_over([5.0, 6.0], x, y)
    fitted.removal_effects(x, y, x, y, leverage=bool(keywords))
    fitted.self_influences(data)
    fitted.with_regularization(6.0).to("cpu").influences_by_block(x, y)


USES = [(solver, MODES[2]) for solver in SOLVERS]
USES += [(solver, mode) for solver in WITH_MODES[:2] for mode in MODES[:2]]


class Counting(nn.Module):
    """Writes into a buffer, into an attribute, and into its input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.register_buffer("moving", torch.zeros(4, dtype=torch.float64))
        self.linear = nn.Linear(4, 3)
        self.seen = 0

    def forward(self, x):
        self.calls += 1
        self.moving = 0.9 * self.moving
        self.seen += 1
        return self.linear(x.mul_(2.0))


def fancy():
    """A model with everything that could be changed by accident."""
    model = nn.Sequential(
        nn.Linear(4, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(5, 3)),
    ).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    model[0].bias.requires_grad_(False)
    model[1].running_mean.copy_(normal(5, seed=9))
    model.eval()
    model[4].train()  # nothing in it depends on the mode
    return model


def state(model):
    return {
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "identities": [id(p) for p in [*model.parameters(), *model.buffers()]],
        "grads": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "wants": {n: p.requires_grad for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "hooks": {
            f"{n}.{a}": list(v)
            for n, m in model.named_modules()
            for a, v in vars(m).items()
            if "hooks" in a
        },
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], dict):
            same(a[key], b[key])
        elif isinstance(a[key], torch.Tensor):
            assert torch.equal(a[key], b[key])
        else:
            assert a[key] == b[key], key


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize(("solver", "mode"), USES)
def test_the_model(solver, mode, with_grad):
    model = fancy()
    if solver.kind is EkfacInfluence:
        model[1].requires_grad_(False)  # no layer that it could factor
    if with_grad:
        F.cross_entropy(model(CASE.x), CASE.y).backward()
    hook = model[0].register_forward_hook(lambda module, inputs, output: None)
    before = state(model)
    use(model, solver, mode)
    same(before, state(model))
    hook.remove()


@pytest.mark.parametrize(("solver", "mode"), USES)
def test_a_forward_that_mutates(solver, mode):
    model = seeded(Counting)
    before, x = state(model), CASE.x.clone()
    use(model, solver, mode)
    same(before, state(model))
    assert model.seen == 0
    assert torch.equal(CASE.x, x)


def test_mutation_does_not_reach_the_numbers():
    model = seeded(Counting)
    plain = seeded(lambda: nn.Linear(4, 3))
    plain.load_state_dict(model.linear.state_dict())
    x, y = CASE.part(0, 5)
    got = DirectInfluence(model, F.cross_entropy, 0.5).fit(CASE.loader())
    want = DirectInfluence(plain, F.cross_entropy, 0.5).fit([(2 * a, b) for a, b in CASE.loader()])
    for _ in range(2):
        close(got.influences(x, y), want.influences(2 * x, y))


@pytest.mark.parametrize("solver", SOLVERS)
def test_answers_are_fresh(solver):
    model = seeded(lambda: nn.Linear(4, 3))
    fitted = solver(model, F.cross_entropy, 0.5).fit(solver.loader(CASE))
    x, y = CASE.part(0, 5)
    first = fitted.influences(x, y)
    want = first.clone()
    first.zero_()
    fitted.influence_factors(x, y).zero_()
    assert torch.equal(fitted.influences(x, y), want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_parameters_are_read_at_fit(solver):
    model = seeded(lambda: nn.Linear(4, 3))
    x, y = CASE.part(0, 5)
    fitted = solver(model, F.cross_entropy, 0.5).fit(solver.loader(CASE))
    before, norm = fitted.influences(x, y), fitted.gradient_norm
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    F.cross_entropy(model(CASE.x), CASE.y).backward()
    optimizer.step()
    model.train()
    assert torch.equal(fitted.influences(x, y), before)
    assert fitted.gradient_norm == norm
    model.eval()
    assert not torch.allclose(fitted.fit(solver.loader(CASE)).influences(x, y), before)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_modes_of_the_caller(solver):
    fitted = solver(CASE.model, F.cross_entropy, 0.5).fit(solver.loader(CASE))
    x, y = CASE.part(0, 5)
    want = fitted.influences(x, y)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            again = solver(CASE.model, F.cross_entropy, 0.5).fit(solver.loader(CASE))
            assert torch.equal(fitted.influences(x, y), want)
            assert torch.equal(again.influences(x.clone(), y.clone()), want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_inputs_that_want_gradients(solver):
    x, y = CASE.part(0, 5)
    fitted = solver(CASE.model, F.cross_entropy, 0.5).fit(solver.loader(CASE))
    watched = x.clone().requires_grad_()
    got = fitted.influences(watched, y, mode="perturbation")
    assert not got.requires_grad
    assert watched.grad is None
    assert torch.equal(got, fitted.influences(x, y, mode="perturbation"))


class Drawing(IterableDataset):
    """Draws from every generator while it is read."""

    def __iter__(self):
        for a, b in zip(CASE.x, CASE.y, strict=True):
            np.random.rand()  # noqa: NPY002
            yield a + 0.0 * torch.rand(4) * random.random(), b


def loader_of(kind):
    data = TensorDataset(CASE.x, CASE.y)
    generator = rng(3)
    return {
        "list": lambda: CASE.loader(),
        "plain": lambda: DataLoader(data, 7),
        "shuffled": lambda: DataLoader(data, 7, shuffle=True),
        "own generator": lambda: DataLoader(data, 7, shuffle=True, generator=generator),
        "sampler": lambda: DataLoader(data, 7, sampler=RandomSampler(data, generator=generator)),
        "batch sampler": lambda: DataLoader(
            data, batch_sampler=BatchSampler(RandomSampler(data, generator=generator), 7, False)
        ),
        "drawing": lambda: DataLoader(Drawing(), 7),
        "workers": lambda: DataLoader(data, 7, shuffle=True, num_workers=1),
    }[kind](), generator


def random_state():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()


KINDS = [
    "list", "plain", "shuffled", "own generator", "sampler", "batch sampler", "drawing", "workers",
]  # fmt: skip


# Python warns of a fork in a process that has threads
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_random_states(kind):
    loader, generator = loader_of(kind)
    before, own = random_state(), generator.get_state()
    fitted = CgInfluence(CASE.model, CASE.loss, 0.5, 1e-10, 0.0).fit(loader)
    got = fitted.influences(*CASE.part(0, 5))
    assert len(fitted.self_influences(loader)) == len(CASE.x)
    assert random_state() == before
    assert torch.equal(generator.get_state(), own)
    close(got, CASE.dense().influences(*CASE.part(0, 5), regularization=0.5))


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "batch sampler"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_random_states_of_every_class(solver, kind):
    loader, generator = loader_of(kind)
    before, own = random_state(), generator.get_state()
    keywords = solver.known(maxiter=30)
    fitted = solver(CASE.model, CASE.loss, 0.5, **keywords).fit(loader)
    first = fitted.influences(*CASE.part(0, 5))
    fitted.self_influences(loader)
    fitted.removal_effects(*CASE.part(0, 5), *CASE.part(5, 9), leverage=True)
    assert random_state() == before
    assert torch.equal(generator.get_state(), own)
    close(fitted.influences(*CASE.part(0, 5)), first, 1e-9)


def test_random_states_after_an_error():
    x = CASE.x.clone()
    x[-1] = float("nan")
    before = random_state()
    with pytest.raises(ValueError, match="NaN"):
        DirectInfluence(CASE.model, CASE.loss).fit(DataLoader(TensorDataset(x, CASE.y), 7))
    assert random_state() == before


def test_what_the_user_draws_between_batches_counts():
    # a data set of the user that calls the library while it is being read
    loader, _ = loader_of("shuffled")
    fitted = CgInfluence(CASE.model, CASE.loss, 0.5).fit(loader)
    torch.manual_seed(7)
    torch.rand(3)
    want = torch.rand(3)
    torch.manual_seed(7)
    torch.rand(3)
    fitted.influences(*CASE.part(0, 5))
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_random_states_with_several_threads(solver):
    loader, _ = loader_of("shuffled")
    fitted = solver(CASE.model, CASE.loss, 0.5, **solver.known(maxiter=30)).fit(loader)
    before = random_state()
    threads = [threading.Thread(target=fitted.influences, args=CASE.part(0, 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert random_state() == before


RANDOM = {
    "dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "random slope": lambda: nn.Sequential(nn.Linear(4, 4), nn.RReLU(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_train_mode(kind):
    model = seeded(RANDOM[kind])
    evaluated = DirectInfluence(model, F.cross_entropy, 1.0, second_order_mode=MODES[1])
    evaluated.fit(CASE.loader())
    before = state(model.train())
    fitted = DirectInfluence(model, F.cross_entropy, 1.0)
    with pytest.raises(ValueError, match=r"model\.eval\(\)") as caught:
        fitted.fit(CASE.loader())
    assert isinstance(caught.value, ModelError)
    assert not fitted.is_fitted
    same(before, state(model))


@pytest.mark.parametrize("make", [nn.GRU, nn.LSTM, nn.RNN, nn.TransformerEncoderLayer])
def test_train_mode_of_sequences(make):
    keywords = {"num_layers": 2} if make is not nn.TransformerEncoderLayer else {}
    last = (4, 2) if make is nn.TransformerEncoderLayer else (4, 4)
    core = make(*last, dropout=0.2, batch_first=True, **keywords).double()
    model = nn.ModuleDict({"core": core, "head": nn.Linear(4, 3).double()}).train()

    def forward(m, x):
        out = m["core"](x)
        return m["head"]((out[0] if isinstance(out, tuple) else out)[:, -1])

    data = [(normal(6, 3, 4), classes(6))]
    with pytest.raises(ModelError, match=rf"{make.__name__}|MultiheadAttention"):
        DirectInfluence(model, F.cross_entropy, 1.0, forward=forward).fit(data)


@pytest.mark.parametrize("solver", SOLVERS)
def test_train_mode_of_every_class(solver):
    model = seeded(RANDOM["dropout"]).train()
    fitted = solver(model, F.cross_entropy, 1.0, **solver.known(second_order_mode=MODES[2]))
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        fitted.fit(CASE.loader())
    assert not fitted.is_fitted
    fitted.model.eval()
    fitted.fit(solver.loader(CASE))
    assert fitted.is_fitted


def test_one_submodule_in_train_mode_is_enough():
    model = seeded(RANDOM["dropout"])
    model[1].train()
    with pytest.raises(ModelError, match=r"Dropout \(1\)"):
        DirectInfluence(model, F.cross_entropy, 1.0).fit(CASE.loader())


def test_train_mode_without_anything_random_is_fine():
    model = copy.deepcopy(mlp_case().model).train()
    DirectInfluence(model, F.cross_entropy, 1.0).fit(mlp_case().loader())
    model.append(nn.Dropout(0.0))
    DirectInfluence(model, F.cross_entropy, 1.0).fit(mlp_case().loader())


class AlwaysRandom(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.rate = rate

    def forward(self, x):
        return F.dropout(self.linear(x), self.rate, training=True)


def test_dropout_that_is_always_on():
    model = AlwaysRandom(0.3).double().eval()
    before = random_state()
    with pytest.raises(ModelError, match=r"changes from one evaluation.*model\.eval\(\)"):
        DirectInfluence(model, F.cross_entropy, 1.0).fit(CASE.loader())
    assert random_state() == before


def test_batch_norm_that_always_uses_the_batch():
    model = seeded(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    )
    with pytest.raises(ValueError, match="batch of one point"):
        DirectInfluence(model, F.cross_entropy, 1.0).fit(CASE.loader())


@pytest.mark.parametrize("cls", [CgInfluence, InverseHarmonicMeanInfluence])
def test_every_pass_reads_the_points_that_fit_read(cls):
    """A loader that shuffles and drops its last batch drops the same points ever after."""
    data = TensorDataset(CASE.x, CASE.y)
    loader = DataLoader(data, batch_size=6, shuffle=True, drop_last=True)  # 5 of 23 are dropped
    options = {"rtol": 1e-12, "atol": 0.0} if cls is CgInfluence else {}
    torch.manual_seed(1)
    model = cls(CASE.model, CASE.loss, 0.1, **options).fit(loader)
    first = model.influences(*CASE.part(0, 5))
    torch.manual_seed(2)
    close(model.influences(*CASE.part(0, 5)), first, 1e-12)
    close(pickle.loads(pickle.dumps(model)).influences(*CASE.part(0, 5)), first, 1e-12)
    again = cls(CASE.model, CASE.loss, 0.1, **options).fit(loader)  # other points
    assert not torch.allclose(again.influences(*CASE.part(0, 5)), first)
