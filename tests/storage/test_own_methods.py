"""Methods of users: stored by the fields of their dataclasses, or refused before writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from namespaces import NUMPY, NUMPY_FLOAT32, STRICT, STRICT_FLOAT32
from problems import influence, make_setting
from saving import GGN, load_again, record_of, rewrite, same

from influence_core import Cg, Influence, Method, Preconditioner, StorageError
from influence_core.arrays import device, move
from influence_core.curvature import Inverse, Solution
from influence_core.methods import PreparedPreconditioner
from influence_core.restoring import remade
from influence_core.storage import kinds


class Kind(Enum):
    PLAIN = 1
    SQUARED = (2, object)  # its value is nothing that a file can hold


@dataclass(frozen=True)
class Term:
    """A part of an inverse, with numbers of every sort."""

    row: Any
    weights: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64] | None
    label: str = "π / 'quoted'"


@dataclass(frozen=True)
class Diagonal(Method):
    """Invert the diagonal, with settings of every sort."""

    power: float = -np.inf
    kind: Kind = Kind.SQUARED
    tensor: float = 1.5
    names: tuple[str, ...] = ("a", "b")
    schedule: dict[int, list[float]] = field(default_factory=lambda: {1: [0.5, np.nan]})
    table: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(2))

    def prepare(self, curvature):
        row = abs(curvature.diagonal(100, 0)) + 1.0
        weights = np.linspace(0, 1, row.shape[0])
        terms = {"a/b": Term(row, weights, None), "a": Term(row * 2, weights, np.arange(3))}
        return DiagonalInverse(self, terms, [np.float32(0.5), None], curvature.block.name)


@dataclass(frozen=True)
class DiagonalInverse(Inverse):
    settings: Method
    terms: dict[str, Term]
    rest: list[Any]
    block: str
    total: Any = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "total", sum(term.row for term in self.terms.values()))

    def solve(self, rows, regularization):
        return Solution(rows / (self.total + regularization) * float(self.rest[0]), None)

    def on(self, problem, exchange):
        target = device(exchange.solver)
        terms = {n: replace(t, row=move(t.row, target)) for n, t in self.terms.items()}
        return replace(self, terms=terms)


def fitted(method, library=NUMPY, **options):
    setting = make_setting("tanh_cross_entropy", library)
    settings = {"regularization": 0.1, "second_order_mode": GGN, **options}
    return setting, influence(setting, method, **settings).fit(setting.loader())


@pytest.mark.parametrize("library", [NUMPY, NUMPY_FLOAT32, STRICT, STRICT_FLOAT32], ids=str)
def test_fields_of_every_sort(library, place):
    setting, before = fitted(Diagonal(), library, block_structure="layer_wise")
    before.save(place)
    after = load_again(place, setting)
    same(before, after, setting, "influences", "factors", "path", "self")
    method = after._method
    assert (method.power, method.kind, method.names) == (-np.inf, Kind.SQUARED, ("a", "b"))
    assert list(method.schedule) == [1]
    assert np.isnan(method.schedule[1][1])
    assert np.array_equal(method.table, np.eye(2))
    term = after._fitted.inverses["output"].terms["a"]
    assert term.weights.dtype == np.float64  # on the host, and not cast with the model
    assert term.counts.tolist() == [0, 1, 2]
    assert term.label == "π / 'quoted'"
    assert after._fitted.inverses["output"].settings is method


class Bare(Method):
    """Settings without any."""

    def prepare(self, curvature):
        return BareInverse()


class BareInverse(Inverse):
    def solve(self, rows, regularization):
        return Solution(rows / regularization, None)

    def on(self, problem, exchange):
        return self


def test_classes_without_attributes(place):
    setting, before = fitted(Bare())
    before.save(place)
    same(before, load_again(place, setting), setting, "influences")


class Scaled(Bare):
    def __init__(self, scale):
        self.scale = scale


@dataclass(frozen=True)
class Scheduled(Bare):
    schedule: Callable[[float], float] = abs


@dataclass(frozen=True)
class Kept(Bare):
    """Prepares an inverse that holds what it is given."""

    number: int = 0

    def prepare(self, curvature):
        return Holding(HELD[self.number](curvature))


@dataclass(frozen=True)
class Holding(BareInverse):
    held: Any


HELD = [
    lambda curvature: curvature.objective,
    lambda curvature: curvature.problem,
    lambda curvature: {1, 2},
    lambda curvature: b"bytes",
    lambda curvature: iter(()),
    lambda curvature: np.array(["text"]),
    lambda curvature: np.arange(3),
    lambda curvature: np.zeros(3, bool),
    lambda curvature: np.zeros(3, complex),
    lambda curvature: Scaled,
    lambda curvature: object(),
]


@pytest.mark.parametrize("number", range(len(HELD)))
def test_what_cannot_be_stored_is_refused(number, place):
    _, before = fitted(Kept(number))
    with pytest.raises(StorageError, match=r"`save`.*`inverses//held"):
        before.save(place)
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("method", [Scaled(2.0), Scheduled(), Scheduled(lambda t: t)])
def test_settings_that_cannot_be_stored_are_refused(method, place):
    _, before = fitted(method)
    with pytest.raises(StorageError, match=r"`method(/schedule)?` is .*Make it a dataclass"):
        before.save(place)
    assert list(place.parent.iterdir()) == []


def test_a_class_inside_a_function(place):
    @dataclass(frozen=True)
    class Hidden(Bare):
        pass

    _, before = fitted(Hidden())
    with pytest.raises(StorageError, match=r"<locals>.Hidden leads to no such class"):
        before.save(place)


@dataclass(frozen=True)
class Misread(BareInverse):
    held: Unknown  # noqa: F821


def test_annotations_that_cannot_be_read(place, monkeypatch):
    monkeypatch.setattr(Kept, "prepare", lambda self, curvature: Misread(1))
    _, before = fitted(Kept())
    with pytest.raises(StorageError, match=r"annotations of Misread.*'Unknown' is not defined"):
        before.save(place)


@dataclass(frozen=True)
class Halving(Preconditioner):
    """A preconditioner of the user's."""

    def prepare(self, curvature, seed):
        return PreparedHalving(curvature.diagonal(3, seed) * 0 + 2)


@dataclass(frozen=True)
class PreparedHalving(PreparedPreconditioner):
    row: Any

    def at(self, regularization):
        return lambda rows: rows / self.row

    def to(self, target):
        return self


def test_preconditioners(place):
    setting, before = fitted(Cg(preconditioner=Halving()))
    before.save(place)
    after = load_again(place, setting, data=setting.loader())
    same(before, after, setting, "influences")
    assert after._method.preconditioner == Halving()


@dataclass(frozen=True)
class Reading(Method):
    """Keeps what can be made anew from the data."""

    def prepare(self, curvature):
        return ReadingInverse(curvature, sizes(curvature.objective))


def sizes(objective) -> Sequence[int]:
    return [batch.size for batch in objective.batches()]


@dataclass(frozen=True)
class ReadingInverse(Inverse):
    curvature: Any
    sizes: Any = field(metadata=remade(lambda at: sizes(at.curvature.objective)))

    def solve(self, rows, regularization):
        return Solution(self.curvature.product(rows) / sum(self.sizes), None)

    def on(self, problem, exchange):
        return replace(self, curvature=self.curvature.on(problem, exchange))


def test_fields_that_are_made_anew(place):
    setting, before = fitted(Reading(), block_structure="layer_wise")
    before.save(place)
    assert "sizes" not in record_of(place)["inverses"]["hidden"]
    after = load_again(place, setting, data=setting.loader(5))
    assert after._fitted.inverses["hidden"].sizes == [5, 5, 5, 5, 3]
    same(before, after, setting, "influences")


@dataclass(frozen=True)
class Crossing(Method):
    """Gives every block the curvature of the next."""

    def prepare(self, curvature):
        return ReadingInverse(curvature, [1])

    def prepare_blocks(self, curvatures):
        return [self.prepare(curvature) for curvature in reversed(curvatures)]


def test_the_curvature_of_another_block(place):
    _, before = fitted(Crossing(), block_structure="layer_wise")
    with pytest.raises(StorageError, match=r"`inverses/hidden/curvature` is the curvature of anot"):
        before.save(place)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("no_such_module:Diagonal", "'no_such_module'"),
        ("influence_core.no_such:Method", "'influence_core.no_such'"),
        ("influence_core.methods:NoSuch", "'NoSuch'"),
        ("influence_core.methods.direct", "''"),
        ("mailbox:Mailbox", "'mailbox'"),
    ],
)
def test_a_class_that_is_not_there(name, shown, place):
    setting, before = fitted(Diagonal())
    before.save(place)
    rewrite(place, lambda record: record["method"].update({"class": name}))
    with pytest.raises(StorageError, match=rf"the module {shown}|class {shown}.*Import the module"):
        load_again(place, setting)


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:_Environ", "builtins:dict"])
def test_a_file_makes_no_instances_of_other_classes(name, place):
    setting, before = fitted(Diagonal())
    before.save(place)
    rewrite(place, lambda record: record["method"].update({"class": name}))
    with pytest.raises(StorageError, match="no class that `save` stores"):
        load_again(place, setting)
    rewrite(place, lambda record: record.update(method={"enum": name, "name": "PLAIN"}))
    with pytest.raises(StorageError, match="is no enumeration"):
        load_again(place, setting)
    rewrite(place, lambda record: record.update({"class": name}))
    with pytest.raises(StorageError, match="is no InfluenceFunctionModel"):
        load_again(place, setting)


def test_a_class_that_has_other_fields_now(place):
    setting, before = fitted(Diagonal())
    before.save(place)
    rewrite(place, lambda record: record["method"].update(gone=1))
    with pytest.raises(StorageError, match=r"Diagonal does not take the fields.*'gone'"):
        load_again(place, setting)


def test_a_class_that_has_more_fields_now(place):
    setting, before = fitted(Diagonal(power=3.0))
    before.save(place)
    rewrite(place, lambda record: record["method"].pop("power"))
    assert load_again(place, setting)._method.power == -np.inf  # the default


def test_names_lead_back():
    for kind in (Diagonal, Term, Influence, Cg):
        assert kinds.find(kinds.name_of(kind)) is kind
