"""Subclassing, memory, threads, pickles, and the way through the plug-in registry."""

import copy
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from solvers import NAMED, RANK, ROUTES, SOLVERS
from torch import nn
from zoo import MODES, Case, classes, close, convex_case, mlp_case, normal, seeded

import influence_core
from influence_core import (
    Arnoldi,
    Cg,
    Direct,
    Ekfac,
    InverseHarmonicMean,
    Lissa,
    NystroemSketch,
)
from influence_core.errors import ModelError, OptionError, RegularizationError
from influence_torch import (
    CgInfluence,
    DirectInfluence,
    InfluenceMode,
    NotFittedException,
    NystroemPreconditioner,
    TorchInfluenceFunctionModel,
    TorchProblem,
)

CASE = convex_case()
TEST = CASE.part(0, 4)


class Diagonal(TorchInfluenceFunctionModel):
    """A user's method: the diagonal of the Hessian, damped."""

    def __init__(self, model, loss, damping):
        super().__init__(model, loss)
        self.damping = damping
        self.diagonal = None

    @property
    def is_fitted(self):
        return self.diagonal is not None

    def fit(self, data):
        dense = Case(self.model, self.loss, *map(torch.cat, zip(*data, strict=True))).dense()
        self.diagonal = dense.curvature().diagonal() + self.damping
        return self

    def solve_rows(self, rows):
        return rows / self.diagonal

    @TorchInfluenceFunctionModel.fit_required
    def largest(self):
        return self.diagonal.max()


def test_what_is_abstract():
    assert TorchInfluenceFunctionModel.__abstractmethods__ == {"fit", "is_fitted", "solve_rows"}
    with pytest.raises(TypeError, match="abstract"):
        TorchInfluenceFunctionModel(CASE.model, CASE.loss)
    assert all(issubclass(solver.kind, TorchInfluenceFunctionModel) for solver in SOLVERS)


def test_a_method_of_a_user():
    model = Diagonal(CASE.model, CASE.loss, 0.5)
    for call in (lambda: model.influences(*TEST), lambda: model.largest()):
        with pytest.raises(NotFittedException, match="Diagonal"):
            call()
    assert model.fit(CASE.loader()) is model
    assert model.largest() == model.diagonal.max()
    dense = CASE.dense()
    left, right = dense.gradients(*TEST), dense.gradients(CASE.x, CASE.y)
    factors = left / (dense.curvature().diagonal() + 0.5)
    close(model.influence_factors(*TEST), factors)
    close(model.influences(*TEST, CASE.x, CASE.y), factors @ right.T)
    close(model.influences_by_block(*TEST)[""], factors @ left.T)
    want = torch.movedim(dense.mixed(CASE.x, CASE.y) @ factors.T, -1, 0)
    close(model.influences(*TEST, CASE.x, CASE.y, InfluenceMode.Perturbation), want)
    close(model.influences_from_factors(factors, CASE.x, CASE.y, "perturbation"), want)
    close(model.self_influences(CASE.loader()), (right**2 / model.diagonal).sum(1))


def test_a_method_of_a_user_reads_the_parameters_at_fit():
    module = seeded(lambda: nn.Linear(4, 3))
    model = Diagonal(module, CASE.loss, 0.5).fit(CASE.loader())
    before = model.influences(*TEST)
    with torch.no_grad():
        module.weight.mul_(2)
    assert torch.equal(model.influences(*TEST), before)
    assert not torch.allclose(model.fit(CASE.loader()).influences(*TEST), before)


def test_a_fit_that_fails_keeps_the_parameters_of_the_last():
    module = seeded(lambda: nn.Linear(4, 3))
    model = Diagonal(module, CASE.loss, 0.5).fit(CASE.loader())
    before = model.influences(*TEST)
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(TypeError):
        model.fit(None)
    assert torch.equal(model.influences(*TEST), before)


class Scaled(TorchInfluenceFunctionModel):
    """A user's method that makes nothing but the abstract members."""

    is_fitted = False

    def fit(self, data):
        self.is_fitted = True
        return self

    def solve_rows(self, rows):
        return rows / self.regularization


def test_members_of_a_method_of_a_user():
    module = seeded(lambda: nn.Linear(4, 3)).bfloat16()
    model = Scaled(module, CASE.loss)
    assert model.with_regularization({"": 2}) is model
    assert model.regularization == 2.0
    for each in (model, model.fit(CASE.loader())):
        assert each.to("cpu") is each
        assert each.device == torch.device("cpu")
        assert each.dtype == torch.bfloat16
        assert each.n_parameters == 15
        assert each.block_names == [""]
        assert not each.is_thread_safe
    assert model.influences(*TEST).dtype == torch.bfloat16
    with pytest.raises(RegularizationError, match="unknown"):
        model.with_regularization({"unknown": 1.0})
    with pytest.raises(RegularizationError):
        model.with_regularization(-1.0)
    assert model.regularization == 2.0


def test_a_method_of_a_user_under_a_new_regularization():
    model = Scaled(CASE.model, CASE.loss).with_regularization(2.0).fit(CASE.loader())
    gradients = CASE.dense().gradients(*TEST)
    close(model.influence_factors(*TEST), gradients / 2)
    close(model.with_regularization(4).influence_factors(*TEST), gradients / 4)


def test_a_method_of_a_user_reports_nothing():
    model = Scaled(CASE.model, CASE.loss).with_regularization(2.0)
    with pytest.raises(NotFittedException):
        _ = model.report
    model.fit(CASE.loader()).influences(*TEST)
    assert model.report is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_documented_classes_have_no_snapshot_to_take(solver):
    model = solver(CASE.model, CASE.loss, 0.5)
    assert not hasattr(model, "snapshot")
    model.fit(solver.loader(CASE)).influences(*TEST)
    assert model.report.converged.all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_solve_rows(solver):
    case = mlp_case()
    keywords = solver.known(second_order_mode=MODES[2])
    model = solver(case.model, case.loss, 0.5, **keywords).fit(solver.loader(case))
    rows, dense = normal(3, 31, seed=8), solver.dense(case)
    want = dense._solve(torch.arange(31), rows, MODES[2], 0.5)
    close(model.solve_rows(rows), want)
    close(model.apply_inverse(rows), want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_changes_no_number_of_any_class(solver):
    case, test = mlp_case(7), (normal(2, 3, seed=5), classes(2, seed=6))
    keywords = solver.known(second_order_mode=MODES[2])
    model = solver(case.model, case.loss, 0.5, max_memory=1, **keywords)
    model.fit(solver.loader(case))
    for influence in ("up", "perturbation"):
        want = solver.dense(case).influences(
            *test, case.x, case.y, influence, mode=MODES[2], regularization=0.5
        )
        close(model.influences(*test, case.x, case.y, influence), want)


@pytest.mark.parametrize("memory", [1, 10_000, 10**12])
@pytest.mark.parametrize("mode", MODES)
def test_memory_changes_no_number(memory, mode):
    case = mlp_case()
    options = {"mode": mode, "regularization": 1.0}
    model = DirectInfluence(case.model, case.loss, 1.0, second_order_mode=mode, max_memory=memory)
    model.fit(case.loader())
    for influence in ("up", "perturbation"):
        want = case.dense().influences(*case.part(0, 4), case.x, case.y, influence, **options)
        close(model.influences(*case.part(0, 4), case.x, case.y, influence), want)


@pytest.mark.parametrize("memory", [1, None])
def test_chunks(memory, monkeypatch):
    sizes = []
    vmap = torch.func.vmap

    def counting(fn, *arguments, chunk_size=None, **keywords):
        if chunk_size is not None:
            sizes.append(chunk_size)
        return vmap(fn, *arguments, chunk_size=chunk_size, **keywords)

    monkeypatch.setattr(torch.func, "vmap", counting)
    case = mlp_case()
    problem = TorchProblem(case.model, case.loss, max_memory=memory)
    batch = problem.batch((case.x, case.y))
    problem.gradients(batch, list(problem.parameters))
    problem.hessian_product(batch, normal(3, 31), list(problem.parameters))
    assert len(sizes) == (24 if memory else 2)  # products take the points one by one as well
    assert all(size == 1 if memory else size > 23 for size in sizes)


class Watched(nn.Sequential):
    """Notes the largest batch that its forward sees."""

    largest = 0

    def forward(self, x):
        Watched.largest = max(Watched.largest, len(x))
        return super().forward(x)


PRODUCTS = {
    "gradients": lambda p, b, names, d: p.gradients(b, names),
    "gradient products": lambda p, b, names, d: p.gradient_products(b, normal(3, d), names),
    "gradient combinations": lambda p, b, names, d: p.gradient_combinations(
        b, normal(3, b.size), names
    ),
    "hessian product": lambda p, b, names, d: p.hessian_product(b, normal(3, d), names),
    "generalized Gauss-Newton product": lambda p, b, names, d: p.generalized_gauss_newton_product(
        b, normal(3, d), names
    ),
    "mixed gradient products": lambda p, b, names, d: p.mixed_gradient_products(
        b, normal(3, d), names
    ),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_forward_pass_sees_no_more_points_than_fit_into_memory(name, reduction, monkeypatch):
    model = seeded(lambda: Watched(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 3)))
    x, y = normal(230, 3), classes(230)
    answers = []
    for memory, most in ((None, 230), (100_000, 125), (20_000, 32)):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        problem = TorchProblem(model, loss, max_memory=memory)
        batch = problem.batch((x, y))
        monkeypatch.setattr(Watched, "largest", 0)
        problem.validate(batch, "here")
        answers.append(PRODUCTS[name](problem, batch, list(problem.parameters), 353))
        assert Watched.largest <= most
    for answer in answers[1:]:
        close(answer, answers[0], 1e-12)


def test_the_measured_memory_counts_activations_not_weights():
    wide = nn.Sequential(nn.Linear(4, 1000), nn.Tanh(), nn.Linear(1000, 3)).double().eval()
    problem = TorchProblem(wide, F.cross_entropy)
    problem.validate(problem.batch(CASE.part(0, 2)), "here")
    assert 8_000 <= problem._losses.bytes_per_point <= 32_000


@pytest.mark.parametrize("kind", ["direct", "cg", "loop", "gru"])
def test_threads(kind):
    if kind == "loop":

        class Branching(nn.Linear):
            def forward(self, x):
                return super().forward(x) if x.sum().item() < 1e9 else x

        case = Case(seeded(lambda: Branching(4, 3)), F.cross_entropy, CASE.x, CASE.y)
    elif kind == "gru":

        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.core, self.head = nn.GRU(4, 2, batch_first=True), nn.Linear(2, 3)

            def forward(self, x):
                return self.head(self.core(x)[0][:, -1])

        case = Case(seeded(Recurrent), F.cross_entropy, normal(9, 3, 4), classes(9))
    else:
        case = CASE
    solver = CgInfluence if kind == "cg" else DirectInfluence
    model = solver(case.model, case.loss, 0.5, second_order_mode="gauss_newton")
    model.fit(case.loader())
    assert model.is_thread_safe
    switches = torch.backends.mkldnn.enabled, torch.backends.cuda.flash_sdp_enabled()
    queries = [case.part(i, i + 3) for i in range(6)] * 2
    want = [model.influences(*query) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda query: model.influences(*query), queries))
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-12)
    assert switches == (torch.backends.mkldnn.enabled, torch.backends.cuda.flash_sdp_enabled())


@pytest.mark.parametrize("solver", SOLVERS)
def test_threads_of_every_class(solver):
    model = solver(CASE.model, CASE.loss, 0.5).fit(solver.loader(CASE))
    queries = [CASE.part(i, i + 3) for i in range(6)]
    want = [model.influences(*query) for query in queries]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda query: model.influences(*query), queries))
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-12)


PICKLED = [(solver, mode) for solver in SOLVERS for mode in (solver.modes[0], solver.modes[-1])]


@pytest.mark.parametrize(("solver", "mode"), PICKLED)
def test_pickles_and_copies(solver, mode):
    options = solver.known(second_order_mode=mode, preconditioner=NystroemPreconditioner(4))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(CASE.x, CASE.y), 23, generator=torch.Generator()
    )
    model = solver(CASE.model, nn.CrossEntropyLoss(), 0.5, **options)
    want = model.fit(loader).influences(*TEST, CASE.x, CASE.y)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.is_fitted
        assert torch.equal(again.influences(*TEST, CASE.x, CASE.y), want)
        again.with_regularization(5.0)
        again.fit(loader)
    assert torch.equal(model.influences(*TEST, CASE.x, CASE.y), want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_unfitted_pickles(solver):
    model = pickle.loads(pickle.dumps(solver(CASE.model, CASE.loss, 0.5)))
    assert not model.is_fitted
    want = solver(CASE.model, CASE.loss, 0.5).fit(solver.loader(CASE)).influences(*TEST)
    assert torch.equal(model.fit(solver.loader(CASE)).influences(*TEST), want)


def test_fit_returns_the_instance_and_reports():
    model = CgInfluence(CASE.model, CASE.loss, 0.5)
    assert model.fit(CASE.loader()) is model
    assert model.report is None
    model.influence_factors(*TEST)
    assert model.report.iterations.shape == model.report.converged.shape == (4,)
    by_block = CgInfluence(CASE.model, CASE.loss, 0.5, block_structure="parameter_wise")
    by_block.fit(CASE.loader()).influences(*TEST)
    assert list(by_block.report) == ["weight", "bias"]


def test_not_converging_warns_or_logs(caplog):
    model = CgInfluence(CASE.model, CASE.loss, 1e-3, 1e-10, 0.0, 2).fit(CASE.loader())
    with pytest.warns(influence_core.ConvergenceWarning, match="2 steps"):
        model.influence_factors(*TEST)
    quiet = CgInfluence(
        CASE.model, CASE.loss, 1e-3, 1e-10, 0.0, 2, warn_on_max_iteration=False
    ).fit(CASE.loader())
    with caplog.at_level(logging.DEBUG, "influence_core"):
        quiet.influence_factors(*TEST)
    assert "not converged" in caplog.text


BARS = {"CgInfluence": "CG", "LissaInfluence": "LiSSA", "EkfacInfluence": "EK-FAC"}


@pytest.mark.parametrize("name", BARS)
def test_progress(name, capsys):
    solver = NAMED[name]
    for shown in (False, True):
        model = solver(CASE.model, CASE.loss, 0.5, progress=shown).fit(solver.loader(CASE))
        model.influences(*TEST)
        assert (BARS[name] in capsys.readouterr().err) == shown


METHODS = {
    "DirectInfluence": Direct(),
    "CgInfluence": Cg(rtol=1e-12, atol=0.0),
    "LissaInfluence": Lissa(rtol=1e-12, scale=None, maxiter=200),
    "ArnoldiInfluence": Arnoldi(rank=RANK, tol=1e-12),
    "NystroemSketchInfluence": NystroemSketch(rank=1000),
    "InverseHarmonicMeanInfluence": InverseHarmonicMean(),
    "EkfacInfluence": Ekfac(update_diagonal=True),
}


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize(("solver", "mode"), ROUTES)
def test_the_core_finds_torch_by_the_type_of_the_model(solver, mode, backend):
    curvature = {"second_order_mode": mode} if mode else {}
    model = influence_core.Influence(
        CASE.model,
        CASE.loss,
        METHODS[solver.__name__],
        regularization=0.5,
        backend=backend,
        **curvature,
    ).fit(solver.loader(CASE))
    same = solver(CASE.model, CASE.loss, 0.5, **curvature).fit(solver.loader(CASE))
    want = same.influences(*TEST, CASE.x, CASE.y)
    assert torch.equal(model.influences(*TEST, CASE.x, CASE.y), want)


def test_the_core_hands_options_on():
    found = influence_core.Influence(
        CASE.model, CASE.loss, Direct(), regularization=0.5, forward=lambda m, x: m(2 * x)
    ).fit(CASE.loader())
    want = Case(CASE.model, CASE.loss, CASE.x, CASE.y, lambda m, x: m(2 * x))
    close(found.influences(*TEST), want.dense().influences(*TEST, regularization=0.5))


def test_a_forward_that_fails():
    model = DirectInfluence(CASE.model, CASE.loss, 0.5, forward=lambda m, x: m(x, x))
    with pytest.raises(ModelError, match="fails"):
        model.fit(CASE.loader())
    with pytest.raises(OptionError, match="`forward`"):
        DirectInfluence(CASE.model, CASE.loss, 0.5, forward=3).fit(CASE.loader())


def test_forward_hooks_run_with_the_copy_and_are_mentioned_once(caplog):
    case = mlp_case()
    seen = []
    handle = case.model[0].register_forward_hook(lambda m, args, out: seen.append(m) or 2 * out)
    with caplog.at_level(logging.INFO, "influence_torch"):
        model = DirectInfluence(case.model, case.loss, 5.0).fit(case.loader())
        got = model.influences(*case.part(0, 3))
    assert sum("hooks" in record.message for record in caplog.records) == 1
    assert seen
    assert not any(m is case.model[0] for m in seen)
    close(got, case.dense().influences(*case.part(0, 3), regularization=5.0))
    handle.remove()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_forward_of_the_user(solver):
    case = Case(CASE.model, CASE.loss, CASE.x, CASE.y, lambda m, x: m(2 * x))
    doubled = Case(CASE.model, CASE.loss, 2 * CASE.x, CASE.y)
    model = solver(CASE.model, CASE.loss, 0.5, forward=case.forward).fit(solver.loader(case))
    plain = solver(CASE.model, CASE.loss, 0.5).fit(solver.loader(doubled))
    close(model.influences(*TEST), plain.influences(2 * TEST[0], TEST[1]), 1e-12)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_the_package_imports_no_torch():
    code = "import sys, influence_torch; dir(influence_torch); assert 'torch' not in sys.modules"
    python(code)


def test_light_names_need_no_torch():
    python(
        "import sys, influence_torch as t; t.BlockMode; t.NotFittedException;"
        "t.NystroemPreconditioner; assert 'torch' not in sys.modules"
    )


NEED_TORCH = [*NAMED, "TorchInfluenceFunctionModel", "TorchProblem"]
WITHOUT_TORCH = f"""
import sys

NAMES = {NEED_TORCH}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocker())
import influence_torch
for name in NAMES:
    try:
        getattr(influence_torch, name)
    except ImportError as error:
        print(type(error).__name__, error)
try:
    from influence_torch import CgInfluence
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_without_torch_the_message_names_the_extra():
    lines = python(WITHOUT_TORCH).stdout.splitlines()
    assert len(lines) == len(NEED_TORCH) + 1
    for line in lines:
        assert line.startswith("BackendImportError")
        assert 'pip install "influence-core[torch]"' in line
