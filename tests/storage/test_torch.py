"""The classes of torch: saved and loaded with their modules, losses and loaders."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from saving import record_of, same_memory
from solvers import NAMED, SOLVERS
from torch.utils.data import DataLoader, TensorDataset
from zoo import classes, convex_case, mlp_case, rng, seeded

from influence_core import DataError, Influence, ModelError, OptionError, StorageError, load
from influence_core.methods import Cg, Direct, Ekfac
from influence_torch import (
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    EkfacPreconditioner,
    LissaInfluence,
    TorchInfluenceFunctionModel,
    cross_entropy,
)

GGN = "generalized_gauss_newton"


def answers(model, case):
    test, train = case.part(4), (case.x, case.y)
    return [
        model.influences(*test, *train),
        model.influences(*test, *train, mode="perturbation"),
        model.influence_factors(*train),
        model.influences_over([1e-2, 1.0], *test, *train),
        model.self_influences(case.loader(9)),
        model.removal_effects(*test, *train, leverage=True),
        torch.tensor(model.gradient_norm),
        *model.influences_by_block(*test, *train).values(),
        model.with_regularization(0.5).influences(*test, *train),
    ]


def same(before, after, case):
    for was, now in zip(answers(before, case), answers(after, case), strict=True):
        assert was.dtype == now.dtype
        assert torch.equal(was, now)
    assert str(before.report) == str(after.report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
@pytest.mark.filterwarnings("ignore:.*have a leverage of one or more")
def test_every_class(solver, dtype, place):
    case = mlp_case(dtype=dtype)
    settings = solver.known(second_order_mode=GGN, block_structure="layer_wise")
    settings |= solver.known(maxiter=20, warn_on_max_iteration=False)
    before = solver(case.model, case.loss, 0.1, **settings).fit(solver.loader(case))
    before.save(place)
    data = solver.loader(case) if solver.reads else None
    after = load(place, case.model, case.loss, data)
    assert type(after) is solver.kind
    assert after.dtype == dtype
    same_memory(before, after)
    same(before, after, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, place):
    case = mlp_case(dtype=dtype)
    before = DirectInfluence(case.model, case.loss, 0.1, second_order_mode=GGN).fit(case.loader())
    before.save(place)
    after = load(place, case.model, case.loss)
    assert after.dtype == dtype
    assert torch.equal(
        before.influences(*case.part(4), case.x, case.y),
        after.influences(*case.part(4), case.x, case.y),
    )


def test_the_class_is_found_without_importing_it(place, tmp_path):
    import subprocess
    import sys

    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    x, y = torch.eye(2), torch.arange(2)
    DirectInfluence(module, F.cross_entropy, 0.1).fit([(x, y)]).save(place)
    code = f"""
import torch, influence_core
module = torch.nn.Linear(2, 2)
module.load_state_dict(torch.load({str(tmp_path / "weights.pt")!r}))
after = influence_core.load({str(place)!r}, module, torch.nn.functional.cross_entropy)
print(type(after).__name__, after.influences(torch.eye(2), torch.arange(2)).sum() != 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["DirectInfluence", "tensor(True)"]


def test_the_plain_entry_point(place):
    case = convex_case()
    before = Influence(case.model, case.loss, Direct(), regularization=0.1).fit(case.loader())
    before.save(place)
    after = load(place, case.model, case.loss)
    assert type(after) is Influence
    same(before, after, case)


def test_a_forward_of_ones_own_is_passed_again(place):
    case = mlp_case()
    before = DirectInfluence(
        case.model, case.loss, 0.1, second_order_mode=GGN, forward=doubled, max_memory=2**20
    ).fit(case.loader())
    before.save(place)
    assert record_of(place)["options_passed_again"] == ["forward"]
    with pytest.raises(OptionError, match=r"needs `forward=` again"):
        load(place, case.model, case.loss)
    after = load(place, case.model, case.loss, forward=doubled)
    assert after._options == {"forward": doubled, "max_memory": 2**20}
    same(before, after, case)


def doubled(model, x):
    return 2 * model(x)


def test_without_a_forward_none_may_come(place):
    case = mlp_case()
    DirectInfluence(case.model, case.loss, 0.1, second_order_mode=GGN).fit(case.loader()).save(
        place
    )
    with pytest.raises(OptionError, match="keeps the options of the fit; got forward="):
        load(place, case.model, case.loss, forward=doubled)


def test_another_forward_shows_where_data_is_read(place):
    case = mlp_case()
    before = CgInfluence(case.model, case.loss, 0.1, second_order_mode=GGN, forward=doubled)
    before.fit(case.loader()).save(place)
    with pytest.raises(ModelError, match="gradient of the mean loss"):
        load(place, case.model, case.loss, case.loader(), forward=lambda model, x: model(x))


def test_ekfac_needs_no_loss(place):
    case = mlp_case()
    before = EkfacInfluence(case.model, True, 0.1).fit(case.loader())
    before.save(place)
    after = load(place, case.model)
    same(before, after, case)
    train = case.x, case.y
    for name, share in after.influences_by_layer(*case.part(4), *train).items():
        assert torch.equal(share, before.influences_by_layer(*case.part(4), *train)[name])


class Tagger(torch.nn.Module):
    """Layers of every kind, over sequences."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(7, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.mix = torch.nn.Conv1d(4, 4, 2)
        self.out = torch.nn.Linear(4, 3)

    def forward(self, x):
        mixed = self.mix(self.norm(self.words(x)).transpose(1, 2))
        return self.out(torch.tanh(mixed).mean(dim=2))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"update_diagonal": True},
        {"factor_dtype": "float32"},
        {"largest_factor": 3},
        {"largest_exact": 1, "sharing": "reduce"},
    ],
    ids=str,
)
def test_factors_of_every_kind(settings, place):
    model = seeded(Tagger)
    x = torch.randint(7, (23, 5), generator=rng())
    y = classes(23)
    before = Influence(
        model,
        cross_entropy,
        Ekfac(**settings),
        regularization=0.1,
        second_order_mode=GGN,
        block_structure="layer_wise",
    ).fit([(x, y)])
    before.save(place)
    after = load(place, model, cross_entropy)
    same_memory(before, after)
    for call in (Influence.influences, Influence.influence_factors):
        assert torch.equal(call(before, x, y), call(after, x, y))
    assert torch.equal(before.self_influences([(x, y)]), after.self_influences([(x, y)]))


def test_preconditioners(place):
    case = mlp_case()
    before = CgInfluence(
        case.model, case.loss, 0.1, preconditioner=EkfacPreconditioner(), second_order_mode=GGN
    ).fit(case.loader())
    before.save(place)
    same(before, load(place, case.model, case.loss, case.loader()), case)


def test_the_module_trained_further(place):
    case = mlp_case()
    DirectInfluence(case.model, case.loss, 0.1, second_order_mode=GGN).fit(case.loader()).save(
        place
    )
    with torch.no_grad():
        case.model[2].bias += 1e-9
    with pytest.raises(ModelError, match=r"the values of '2.bias' differ"):
        load(place, case.model, case.loss)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_frozen_parameters_and_buffers_count(name, place):
    layers = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
    model = seeded(lambda: torch.nn.Sequential(*layers))
    model[0].weight.requires_grad_(False)
    case = mlp_case()
    DirectInfluence(model, case.loss, 1.0, second_order_mode=GGN).fit(case.loader()).save(place)
    assert load(place, model, case.loss).is_fitted
    with torch.no_grad():
        model.state_dict()[name][0] += 1e-9
    with pytest.raises(ModelError, match=f"the values of '{name}' differ"):
        load(place, model, case.loss)


def test_the_parameters_of_the_fit_count_not_those_of_the_save(place):
    case, other = mlp_case(), mlp_case()
    before = DirectInfluence(case.model, case.loss, 0.1, second_order_mode=GGN).fit(case.loader())
    with torch.no_grad():
        case.model[2].bias += 1
    before.save(place)
    same(before, load(place, other.model, case.loss), case)


def test_loaders(place):
    case = mlp_case()
    data = TensorDataset(case.x, case.y)
    before = CgInfluence(case.model, case.loss, 0.1, second_order_mode=GGN)
    before.fit(DataLoader(data, batch_size=5)).save(place)
    after = load(place, case.model, case.loss, DataLoader(data, batch_size=9))
    test = case.part(4)
    assert torch.allclose(after.influences(*test), before.influences(*test), rtol=1e-3)
    with pytest.raises(DataError, match="a loader that shuffles yields another one each time"):
        load(place, case.model, case.loss, DataLoader(data, batch_size=5, shuffle=True))


def test_a_loader_that_shuffles_the_same_way_again(place):
    case = mlp_case()
    data = TensorDataset(case.x, case.y)

    def shuffled():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(data, batch_size=5, shuffle=True, generator=generator)

    settings = {"scale": None, "maxiter": 20, "warn_on_max_iteration": False}
    before = LissaInfluence(case.model, case.loss, 0.1, second_order_mode=GGN, **settings)
    before.fit(shuffled()).save(place)
    state = torch.get_rng_state()
    after = load(place, case.model, case.loss, shuffled())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(after.influences(*case.part(4)), before.influences(*case.part(4)))


def test_trees_of_inputs(place):
    case = mlp_case()

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = case.model

        def forward(self, x):
            return self.inner(x["a"] + x["b"][0])

    x = {"a": case.x, "b": (case.x / 2,)}
    module = Pair().eval()
    before = CgInfluence(module, case.loss, 0.1, second_order_mode=GGN).fit([(x, case.y)])
    before.save(place)
    after = load(place, module, case.loss, [(x, case.y)])
    assert torch.equal(after.influences(x, case.y), before.influences(x, case.y))
    other = {"a": case.x, "b": (case.x / 2.5,)}
    with pytest.raises(DataError, match="needs the data that was fitted"):
        load(place, module, case.loss, [(other, case.y)])


def test_the_model_of_another_backend(place):
    case = mlp_case()
    NAMED["DirectInfluence"](case.model, case.loss, 0.1, second_order_mode=GGN).fit(
        case.loader()
    ).save(place)
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module"):
        load(place, np.zeros(3), case.loss)


def test_another_library_for_the_solver(place):
    case = mlp_case()
    before = CgInfluence(
        case.model,
        case.loss,
        0.1,
        second_order_mode=GGN,
        array_backend="numpy",
        preconditioner=EkfacPreconditioner(),
    ).fit(case.loader())
    before.save(place)
    same(before, load(place, case.model, case.loss, case.loader()), case)
    own = load(place, case.model, case.loss, case.loader(), array_backend=None)
    assert isinstance(own.influences(*case.part(2)), torch.Tensor)


@pytest.mark.gpu
def test_from_a_gpu_to_the_host_and_back(place):
    case = mlp_case()
    before = CgInfluence(
        case.model, case.loss, 0.1, second_order_mode=GGN, preconditioner=EkfacPreconditioner()
    )
    before.fit(case.loader()).to("cuda").save(place)
    after = load(place, case.model, case.loss, case.loader())
    assert after.device.type == "cpu"
    answer = after.influences(*case.part(4))
    assert torch.allclose(before.influences(*case.part(4)).cpu(), answer, rtol=1e-3)
    there = load(place, case.model.to("cuda"), case.loss, case.loader())
    assert there.device.type == "cuda"
    assert torch.allclose(there.influences(*case.part(4)).cpu(), answer, rtol=1e-3)


class Own(TorchInfluenceFunctionModel):
    is_fitted = True

    def fit(self, data):
        return self

    def solve_rows(self, rows):
        return rows


def test_a_solver_of_the_users_own_has_nothing_that_could_be_saved():
    assert not hasattr(Own, "save")


class Renamed(CgInfluence):
    pass


class Configured(CgInfluence):
    def __init__(self, model, loss):
        super().__init__(model, loss, 0.1, second_order_mode=GGN)


def test_subclasses(place):
    case = mlp_case()
    before = Renamed(case.model, case.loss, 0.1, second_order_mode=GGN).fit(case.loader())
    before.save(place)
    after = load(place, case.model, case.loss, case.loader())
    assert type(after) is Renamed
    same(before, after, case)
    other = Configured(case.model, case.loss).fit(case.loader())
    with pytest.raises(StorageError, match="Configured has an `__init__` of its own"):
        other.save(place)


def test_methods_with_the_plain_entry_point_report(place):
    case = convex_case()
    before = Influence(case.model, case.loss, Cg(rtol=1e-8), regularization=1e-2)
    before.fit(case.loader()).save(place)
    after = load(place, case.model, partial(F.cross_entropy), case.loader())
    after.influences(*case.part(4))
    assert after.report.converged.all()
