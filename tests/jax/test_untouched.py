"""Nothing is traced twice for one shape, and nothing of the user's is changed."""

import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import N, convex_case, mlp_case
from jax_reference import close

from influence_jax import CgInfluence, DirectInfluence, EkfacInfluence, LissaInfluence

GGN = "generalized_gauss_newton"


class Counted:
    """Counts how often a function is traced."""

    def __init__(self, apply):
        self.apply, self.calls = apply, 0

    def __call__(self, params, x):
        self.calls += 1
        return self.apply(params, x)


@pytest.mark.parametrize("mode", ["hessian", "gauss_newton", GGN])
@pytest.mark.parametrize("kept", [False, True])
def test_no_step_is_traced(mode, kept):
    case, traced = convex_case(), []
    for steps in (3, 20):
        apply = Counted(case.apply)
        model = CgInfluence(
            apply,
            *case.model[1:],
            1e-3,
            rtol=1e-300,
            atol=0.0,
            maxiter=steps,
            precompute_grad=kept,
            warn_on_max_iteration=False,
            second_order_mode=mode,
        ).fit(case.loader(8))
        model.influence_factors(case.x, case.y)
        traced.append(apply.calls)
        model.influence_factors(case.x, case.y)
        assert apply.calls == traced[-1]
    assert traced[0] == traced[1]


def test_no_batch_is_traced_twice():
    case = convex_case()
    calls = []
    for repeated in (1, 5):
        apply = Counted(case.apply)
        settings = {"maxiter": 10 * repeated, "warn_on_max_iteration": False}
        loader = [case.part(0, 8)] * repeated
        LissaInfluence(apply, *case.model[1:], 1.0, **settings).fit(loader).influences(
            *case.part(4)
        )
        EkfacInfluence(apply, case.params, True, 1.0).fit(loader)
        calls.append(apply.calls)
    assert calls[0] == calls[1]


class Shuffling:
    """A loader of NumPy arrays that draws from every global generator in each pass."""

    def __init__(self, case):
        self.x, self.y = np.asarray(case.x), np.asarray(case.y)

    def __iter__(self):
        random.random()
        for points in np.array_split(np.random.permutation(N), 3):  # noqa: NPY002
            if torch := sys.modules.get("torch"):
                torch.rand(1)
            yield self.x[points], self.y[points]


def test_generators_and_parameters():
    case = mlp_case()
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    params = jax.tree.map(np.array, case.params)
    model = CgInfluence(*case.model, 1.0, second_order_mode=GGN).fit(Shuffling(case))
    model.influences(*case.part(4))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    jax.tree.map(np.testing.assert_array_equal, case.params, params)


def test_parameters_are_read_at_fit():
    case = mlp_case()
    params = jax.tree.map(np.array, case.params)
    model = DirectInfluence(case.apply, params, case.loss, 2.0).fit(case.loader())
    want = model.influences(*case.part(4))
    params["first"]["kernel"] += 1.0
    close(model.influences(*case.part(4)), want, 0.0)
    assert not np.allclose(model.fit(case.loader()).influences(*case.part(4)), want)


def test_donated_after_fit():
    case = mlp_case()
    params = jax.tree.map(jnp.array, case.params)
    model = DirectInfluence(case.apply, params, case.loss, 2.0).fit(case.loader())
    want = model.influences(*case.part(4))
    jax.tree.map(lambda p: p.delete(), params)
    close(model.influences(*case.part(4)), want, 0.0)


def test_data_is_copied():
    case = mlp_case()
    x, y = np.array(case.x), np.array(case.y)
    batch = case.problem().batch((x, y))
    x += 1.0
    close(batch.x, case.x, 0.0)


@pytest.mark.parametrize("solver", [DirectInfluence, CgInfluence, EkfacInfluence])
def test_pickle(solver):
    case = mlp_case()
    if solver is EkfacInfluence:
        model = solver(*case.model[:2], hessian_regularization=2.0)
    else:
        model = solver(*case.model, 2.0)
    model.fit(case.loader())
    again = pickle.loads(pickle.dumps(model))
    close(again.influences(*case.part(4)), model.influences(*case.part(4)), 1e-12)


def test_threads():
    case = mlp_case()
    model = DirectInfluence(*case.model, 2.0).fit(case.loader())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda m: model.influences(*case.part(m)), [3, 3, 4, 4]))
    close(answers[0], model.influences(*case.part(3)), 0.0)
    close(answers[1], answers[0], 0.0)
    close(answers[3], answers[2], 0.0)


def test_matrices_are_multiplied_in_full():
    case, seen = mlp_case(), []

    def apply(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return case.apply(params, x)

    with jax.default_matmul_precision("bfloat16"):
        DirectInfluence(apply, case.params, case.loss, 2.0).fit(case.loader()).influences(
            case.x, case.y
        )
    assert set(seen) == {"float32"}
