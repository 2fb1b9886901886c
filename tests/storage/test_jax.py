"""The classes of JAX: saved and loaded with `Model(apply, params)`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_models import convex_case, mlp_case
from saving import record_of

import influence_jax
from influence_core import Direct, Influence, ModelError, load
from influence_jax import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    EkfacPreconditioner,
    InverseHarmonicMeanInfluence,
    JacobiPreconditioner,
    LissaInfluence,
    Model,
    NystroemSketchInfluence,
)

GGN = "generalized_gauss_newton"
LISSA = {"rtol": 1e-6, "scale": None, "maxiter": 10, "warn_on_max_iteration": False}
CG = {"warn_on_max_iteration": False, "maxiter": 10}
CLASSES = {
    "direct": (DirectInfluence, {}),
    "cg": (CgInfluence, CG),
    "jacobi": (CgInfluence, {**CG, "preconditioner": JacobiPreconditioner()}),
    "ekfac cg": (CgInfluence, {**CG, "preconditioner": EkfacPreconditioner()}),
    "lissa": (LissaInfluence, LISSA),
    "arnoldi": (ArnoldiInfluence, {"rank": 5, "tol": 1e-4}),
    "nystroem": (NystroemSketchInfluence, {"rank": 5}),
    "harmonic mean": (InverseHarmonicMeanInfluence, {}),
    "ekfac": (EkfacInfluence, {"update_diagonal": True}),
}


@pytest.fixture(autouse=True)
def _x64(request):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", getattr(request, "param", True))
    yield
    jax.config.update("jax_enable_x64", before)


def fitted(name, case):
    kind, settings = CLASSES[name]
    if kind is EkfacInfluence:
        model = kind(case.apply, case.params, hessian_regularization=0.1, **settings)
    else:
        mode = {} if kind is InverseHarmonicMeanInfluence else {"second_order_mode": GGN}
        model = kind(*case.model, 0.1, **mode, **settings)
    return model.fit(case.loader())


def answers(model, case):
    test, train = case.part(4), (case.x, case.y)
    return [
        model.influences(*test, *train),
        model.influence_factors(*train),
        model.self_influences([train]),
        model.removal_effects(*test, *train, leverage=True),
        model.gradient_norm,
        model.with_regularization(0.5).influences(*test, *train),
    ]


def same(before, after, case):
    for was, now in zip(answers(before, case), answers(after, case), strict=True):
        assert np.array_equal(np.asarray(was), np.asarray(now))
    assert str(before.report) == str(after.report)


@pytest.mark.parametrize(
    ("name", "_x64"),
    [*((name, True) for name in CLASSES), ("direct", False), ("jacobi", False), ("ekfac", False)],
    indirect=["_x64"],
)
@pytest.mark.filterwarnings("ignore:.*have a leverage of one or more")
def test_every_class(name, place, _x64):
    case = mlp_case()
    before = fitted(name, case)
    before.save(place)
    data = case.loader() if "sha256" in record_of(place)["data"] else None
    after = load(place, Model(case.apply, case.params), case.loss, data)
    assert type(after) is CLASSES[name][0]
    assert after.dtype == case.params["first"]["bias"].dtype
    assert isinstance(after.influences(*case.part(2)), jax.Array)
    same(before, after, case)


def test_the_plain_entry_point(place):
    case = convex_case()
    model = Model(case.apply, case.params)
    before = Influence(model, case.loss, Direct(), regularization=0.1).fit(case.loader())
    before.save(place)
    same(before, load(place, model, case.loss), case)


def test_ekfac_needs_no_loss(place):
    case = mlp_case()
    before = fitted("ekfac", case)
    before.save(place)
    after = load(place, Model(case.apply, case.params))
    same(before, after, case)
    assert after.loss is influence_jax.cross_entropy


def test_other_parameters(place):
    case = mlp_case()
    fitted("direct", case).save(place)
    params = jax.tree.map(jnp.array, case.params)
    params["second"]["bias"] = params["second"]["bias"].at[0].add(1e-12)
    with pytest.raises(ModelError, match=r"the values of 'second.bias' differ"):
        load(place, Model(case.apply, params), case.loss)
    del params["second"]["bias"]
    with pytest.raises(ModelError, match=r"the model has no 'second.bias'"):
        load(place, Model(case.apply, params), case.loss)


def test_constants_count(place):
    case = mlp_case()

    def model(table):
        params = {**case.params, "table": jnp.asarray(table)}
        return Model(lambda p, x: case.apply(p, x) * p["table"], params)

    before = Influence(model([1, 2, 1]), case.loss, Direct(), regularization=1.0)
    before.fit(case.loader()).save(place)
    assert load(place, model([1, 2, 1]), case.loss).is_fitted
    with pytest.raises(ModelError, match="the values of 'table' differ"):
        load(place, model([1, 1, 2]), case.loss)


def test_the_function_and_the_parameters_come_as_one(place):
    case = mlp_case()
    fitted("direct", case).save(place)
    with pytest.raises(ModelError, match=r"Pass `influence_jax\.Model\(apply, params\)`"):
        load(place, case.params, case.loss)


def test_numpy_parameters_are_the_same_parameters(place):
    case = mlp_case()
    before = fitted("nystroem", case)
    before.save(place)
    same(
        before,
        load(place, Model(case.apply, jax.tree.map(np.asarray, case.params)), case.loss),
        case,
    )
