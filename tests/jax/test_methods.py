"""Every class against dense float64 references, whatever the batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import N, convex_case, mlp_case
from jax_reference import close

import influence_jax
from influence_core import Cg, Influence
from influence_jax import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    InverseHarmonicMeanInfluence,
    LissaInfluence,
    NystroemSketchInfluence,
)

GGN = "generalized_gauss_newton"
EXACT = {
    "direct": (DirectInfluence, {}),
    "cg": (CgInfluence, {"rtol": 1e-12, "atol": 0.0}),
    "cg-kept": (CgInfluence, {"rtol": 1e-12, "atol": 0.0, "precompute_grad": True}),
    "block-cg": (CgInfluence, {"rtol": 1e-12, "atol": 0.0, "solve_simultaneously": True}),
    "arnoldi": (ArnoldiInfluence, {"rank": 31}),
    "nystroem": (NystroemSketchInfluence, {"rank": 31}),
}


@pytest.fixture(scope="module")
def reference():
    jax.config.update("jax_enable_x64", True)
    return mlp_case().reference()


@pytest.mark.parametrize("name", EXACT)
def test_exact(name, reference):
    case, (solver, settings) = mlp_case(), EXACT[name]
    model = solver(*case.model, 1e-2, second_order_mode=GGN, **settings).fit(case.loader(8))
    test = case.part(4)
    close(
        model.influences(*test, case.x, case.y),
        reference.influences(*test, case.x, case.y, 1e-2, GGN),
    )


@pytest.mark.parametrize("mode", ["hessian", "gauss_newton", GGN])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_batches_do_not_matter(mode, batch_size, reference):
    case = mlp_case()
    model = DirectInfluence(*case.model, 1.0, second_order_mode=mode)
    got = model.fit(case.loader(batch_size)).influence_factors(case.x, case.y)
    close(got, reference.factors(case.x, case.y, 1.0, mode))


def test_the_calls_agree(reference):
    case = mlp_case()
    test, train = case.part(4), (case.x, case.y)
    model = DirectInfluence(*case.model, 1.0, block_structure="layer_wise").fit(case.loader())
    assert model.block_names == ["first", "second"]
    shares = model.influences_by_block(*test, *train)
    close(model.influences(*test, *train), sum(np.asarray(share) for share in shares.values()))
    factors = model.influence_factors(*test)
    close(model.influences_from_factors(factors, *train), model.influences(*test, *train))
    perturbed = model.influences(*test, *train, mode="perturbation")
    mixed = np.asarray(reference.mixed(*train))
    close(perturbed, np.einsum("mp,npx->mnx", factors, mixed))
    close(model.self_influences([train]), np.diag(model.influences(*train)))
    assert model.n_parameters == 31
    assert model.dtype == jnp.float64
    assert model.device == jax.devices()[0]


def test_removal():
    case = convex_case()
    model = DirectInfluence(*case.model, 0.1).fit(case.loader())
    reference = case.reference()
    test = case.part(4)
    damped = reference.curvature() + 0.1 * np.eye(15)
    rows = reference.gradients(case.x, case.y)
    d = np.linalg.solve(damped, rows.T).T
    own = np.einsum("np,npq,nq->n", d, reference.hessians(case.x, case.y), d)
    leverage = own / (N * (d * rows).sum(axis=1))
    want = d @ reference.gradients(*test).T / N / (1 - leverage)[:, None]
    close(model.removal_effects(*test, case.x, case.y, leverage=True), want.T)


def test_lissa():
    case = convex_case()
    reference, test = case.reference(), case.part(4)
    settings = {"maxiter": 4000, "scale": None, "rtol": 1e-12}
    model = LissaInfluence(*case.model, 0.5, **settings).fit([(case.x, case.y)])
    got = model.influences(*test, case.x, case.y)
    close(got, reference.influences(*test, case.x, case.y, 0.5), 1e-7)


def test_lissa_reads_by_index_and_in_order():
    case = convex_case()
    settings = {"maxiter": 30, "scale": None, "warn_on_max_iteration": False}

    def answer(loader):
        model = LissaInfluence(*case.model, 0.5, **settings).fit(loader)
        return model.influences(*case.part(2))

    class OnlyInOrder:
        def __iter__(self):
            return iter(case.loader(8))

    close(answer(OnlyInOrder()), answer(case.loader(8)))


def test_harmonic_mean(reference):
    case, test = mlp_case(), mlp_case().part(4)
    model = InverseHarmonicMeanInfluence(*case.model, 0.1).fit(case.loader())
    rows = reference.gradients(case.x, case.y)
    inverses = [np.linalg.inv(np.outer(g, g) + 0.1 * np.eye(31)) for g in rows]
    want = reference.gradients(*test) @ np.mean(inverses, axis=0) @ rows.T
    close(model.influences(*test, case.x, case.y), want)


def textbook(case, labels, update_diagonal):
    """The Kronecker-factored Fisher matrix of the two layers, point by point in NumPy."""
    first, second = (
        {key: np.asarray(value) for key, value in case.params[name].items()}
        for name in ("first", "second")
    )
    seen = {"first": [], "second": []}
    for x, y in zip(np.asarray(case.x), np.asarray(case.y), strict=True):
        h = np.tanh(x @ first["kernel"] + first["bias"])
        z = h @ second["kernel"] + second["bias"]
        p = np.exp(z - z.max())
        p /= p.sum()
        outcomes = [(y, 1.0)] if labels == "given" else list(enumerate(p))
        outer = [(p - np.eye(3)[c], weight) for c, weight in outcomes]
        inner = [((1 - h**2) * (second["kernel"] @ g), weight) for g, weight in outer]
        seen["second"].append((np.append(1.0, h), outer))
        seen["first"].append((np.append(1.0, x), inner))
    blocks = []
    for points in seen.values():
        a = np.mean([np.outer(a, a) for a, _ in points], axis=0)
        s = np.mean([sum(w * np.outer(g, g) for g, w in gs) for _, gs in points], axis=0)
        (a_values, qa), (s_values, qs) = np.linalg.eigh(a), np.linalg.eigh(s)
        basis = np.kron(qa, qs)  # of (i, o) matrices, a bias first: the columns of the parameters
        values = np.kron(a_values, s_values)
        if update_diagonal:
            values = np.mean(
                [sum(w * (basis.T @ np.kron(a, g)) ** 2 for g, w in gs) for a, gs in points], axis=0
            )
        blocks.append(basis @ np.diag(values) @ basis.T)
    matrix = np.zeros((31, 31))
    matrix[:16, :16], matrix[16:, 16:] = blocks
    return matrix


@pytest.mark.parametrize("labels", ["expected", "given"])
@pytest.mark.parametrize("update_diagonal", [False, True])
def test_ekfac(labels, update_diagonal, reference):
    case, test = mlp_case(), mlp_case().part(4)
    model = EkfacInfluence(*case.model[:2], update_diagonal, 1e-2, labels=labels)
    model.fit(case.loader(8))
    assert model.block_names == ["first", "second"]
    damped = textbook(case, labels, update_diagonal) + 1e-2 * np.eye(31)
    rows, wanted = reference.gradients(case.x, case.y), reference.gradients(*test)
    close(model.influences(*test, case.x, case.y), wanted @ np.linalg.solve(damped, rows.T))
    close(model.influence_factors(*test), np.linalg.solve(damped, wanted.T).T)
    shares = model.influences_by_layer(*test, case.x, case.y)
    assert list(shares) == ["first", "second"]
    close(sum(shares.values()), model.influences(*test, case.x, case.y))
    paths = model.explore_hessian_regularization(*test, [1e-2, 1e-1])
    close(sum(paths[1e-2].values()), model.influences(*test))


def test_ekfac_of_sampled_labels_tends_to_the_expectation():
    case = mlp_case()
    expected, sampled = (
        EkfacInfluence(*case.model[:2], True, 1e-1, **how)
        .fit(case.loader())
        .influences(*case.part(4))
        for how in ({}, {"labels": "sampled", "draws": 4000})
    )
    close(sampled, expected, 0.05)


def test_ekfac_cuts_batches_to_memory():
    case = mlp_case()
    whole, cut = (
        EkfacInfluence(*case.model[:2], True, 1e-2, max_memory=memory, labels=labels)
        .fit(case.loader())
        .influences(*case.part(4))
        for memory, labels in ((None, None), (4000, "expected"))
    )
    close(cut, whole)


def test_any_method_through_the_registry(reference):
    case, test = mlp_case(), mlp_case().part(4)
    model = Influence(
        influence_jax.Model(case.apply, case.params),
        case.loss,
        Cg(rtol=1e-12, atol=0.0),
        regularization=1e-2,
        second_order_mode=GGN,
    )
    got = model.fit(case.loader()).influences(*test, case.x, case.y)
    close(got, reference.influences(*test, case.x, case.y, 1e-2, GGN))


def test_another_library_solves():
    case = convex_case()
    # NumPy reaches the CPU only, which need not be where JAX works by default
    case = dataclasses.replace(case, params=jax.device_put(case.params, jax.devices("cpu")[0]))
    test, settings = case.part(4), {"block_structure": "parameter_wise"}
    here = DirectInfluence(*case.model, 1.0, **settings).fit(case.loader())
    there = DirectInfluence(*case.model, 1.0, array_backend="numpy", **settings).fit(case.loader())
    want = here.influences(*test, case.x, case.y)
    close(there.influences(*test, case.x, case.y), want)
    factors = there.influence_factors(*test)
    close(there.influences_from_factors(factors, case.x, case.y), want)


@pytest.mark.parametrize("preconditioner", ["Jacobi", "Nystroem", "Ekfac"])
def test_preconditioners(preconditioner, reference):
    case, test = mlp_case(), mlp_case().part(4)
    settings = {"rank": 20} if preconditioner == "Nystroem" else {}
    made = getattr(influence_jax, f"{preconditioner}Preconditioner")(**settings)
    model = CgInfluence(
        *case.model, 1e-2, rtol=1e-12, atol=0.0, preconditioner=made, second_order_mode=GGN
    ).fit(case.loader())
    got = model.influences(*test, case.x, case.y)
    close(got, reference.influences(*test, case.x, case.y, 1e-2, GGN))
