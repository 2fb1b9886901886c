"""Results on disk: whole, resumed, refused."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import zarr
from jobs import ENVIRONMENT, Job, batches, calculator, chunk_files, model
from loaders import CountingLoader
from problems import N, make_setting
from stores import CountingStore, FullStore, RefusingStore

from influence_core import Cg, StorageError
from influence_core.calculators import outputs
from influence_core.errors import MissingExtraError
from influence_core.fitted import FittedInfluence


@pytest.fixture
def job():
    return Job()


@pytest.fixture
def place(tmp_path):
    return tmp_path / "scores.zarr"


def interrupted(job, place, finished):
    """Write some chunks, then fail."""
    store = FullStore(place)
    store.room = finished
    with pytest.raises(StorageError):
        job.lazy().to_zarr(store)


def test_the_array_is_the_result(job, place):
    lazy = job.lazy()
    array = lazy.to_zarr(place)
    assert isinstance(array, zarr.Array)
    assert array.metadata.zarr_format == 3
    assert (array.shape, array.chunks, array.dtype) == (lazy.shape, lazy.chunks, np.float64)
    np.testing.assert_array_equal(array[:], job.expected())
    np.testing.assert_array_equal(zarr.open_array(place, mode="r")[:], job.expected())
    assert np.prod(array.cdata_shape) > 4


def test_nothing_is_left_beside_it(job, place):
    job.lazy().to_zarr(place)
    assert [each.name for each in place.parent.iterdir()] == [place.name]
    assert list(place.rglob("*.partial")) == []


@pytest.mark.parametrize("kind", ["str", "path", "store", "memory", "group"])
def test_every_kind_of_place(job, place, kind):
    where = {
        "str": lambda: str(place),
        "path": lambda: place,
        "store": lambda: zarr.storage.LocalStore(place),
        "memory": zarr.storage.MemoryStore,
        "group": lambda: zarr.open_group(place, mode="a").store_path / "scores",
    }[kind]()
    np.testing.assert_array_equal(job.lazy().to_zarr(where)[:], job.expected())
    np.testing.assert_array_equal(job.lazy().to_zarr(where)[:], job.expected())


def test_perturbation_and_factors(job, place, tmp_path):
    lazy = job.calculator.influences(job.test, job.train, "perturbation")
    array = lazy.to_zarr(place)
    assert array.chunks == lazy.chunks
    np.testing.assert_array_equal(array[:], lazy.compute())
    factors = job.calculator.influence_factors(job.test)
    np.testing.assert_array_equal(factors.to_zarr(tmp_path / "f.zarr")[:], factors.compute())


@pytest.mark.parametrize("finished", [0, 1, 2, 5, 7])
def test_an_interrupted_run_does_what_is_missing(job, place, tmp_path, finished):
    whole = tmp_path / "whole.zarr"
    job.lazy().to_zarr(whole)
    interrupted(job, place, finished)
    before = chunk_files(place)
    assert len(before) == finished
    store = CountingStore(place)
    array = job.lazy().to_zarr(store)
    assert store.written == len(chunk_files(whole)) - finished
    assert chunk_files(place) == chunk_files(whole)
    np.testing.assert_array_equal(array[:], job.expected())


def test_what_is_finished_is_not_solved_again(job, place, monkeypatch):
    job.lazy().to_zarr(place)
    train = job.train = CountingLoader(job.train)
    monkeypatch.setattr(FittedInfluence, "solve", None)
    job.lazy().to_zarr(place)
    assert train.passes == 1  # for its hashes


def test_a_row_with_a_missing_chunk_is_solved_and_no_other(job, place, monkeypatch):
    job.lazy().to_zarr(place)
    (place / "c" / "1" / "0").unlink()
    sizes, solve = [], FittedInfluence.solve

    def counting(self, rows, regularization):
        sizes.append(len(rows[""]))
        return solve(self, rows, regularization)

    monkeypatch.setattr(FittedInfluence, "solve", counting)
    store = CountingStore(place)
    array = job.lazy().to_zarr(store)
    assert sizes == [array.chunks[0]]
    assert store.written == 1
    np.testing.assert_array_equal(array[:], job.expected())


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 100, -1])
def test_a_torn_chunk_is_computed_again(job, place, length):
    job.lazy().to_zarr(place)
    file = place / "c" / "0" / "1"
    file.write_bytes(file.read_bytes()[:length])
    np.testing.assert_array_equal(job.lazy().to_zarr(place)[:], job.expected())


@pytest.mark.parametrize("byte", [0, 17, -1])
def test_a_damaged_chunk_is_computed_again(job, place, byte):
    job.lazy().to_zarr(place)
    whole = chunk_files(place)
    file = place / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)
    job.lazy().to_zarr(place)
    assert chunk_files(place) == whole


def test_what_a_killed_writer_left_is_removed(job, place):
    job.lazy().to_zarr(place)
    left = place / "c" / "0" / f"0.{16 * 'ab'}.partial"
    left.write_bytes(b"half")
    job.lazy().to_zarr(place)
    assert not left.exists()


def test_a_place_that_only_a_half_written_record_was_in_is_free(job, place):
    (place / "c").mkdir(parents=True)
    (place / f"zarr.{16 * 'ab'}.partial").write_bytes(b"{")
    np.testing.assert_array_equal(job.lazy().to_zarr(place)[:], job.expected())


def other_parameters(job):
    setting = make_setting("logistic")
    setting.model.parameters["weight"][0, 0] += 1e-9
    job.calculator = calculator(model(setting))


def other_fit(job):
    x, y = job.setting.host_train
    x = x.copy()
    x[3, 2] += 1e-6
    job.calculator = calculator(job.influence.fit([(x, y)]))


def other_method(job):
    job.calculator = calculator(model(job.setting, Cg()))


def other_regularization(job):
    job.influence.with_regularization(1e-3)


def other_curvature(job):
    job.calculator = calculator(model(job.setting, second_order_mode="gauss_newton"))


def other_test_points(job):
    (x, y), *rest = job.test
    job.test = [(x + 1e-9, y), *rest]


def other_training_labels(job):
    *rest, (x, y) = job.train
    job.train = [*rest, (x, (y + 1) % 3)]


def other_batches(job):
    job.train = job.setting.loader(4)


def other_order(job):
    job.test = job.test[::-1]


def other_chunks(job):
    job.calculator = calculator(job.influence, max_memory=2**14)


CHANGES = [
    (other_parameters, "parameters"),
    (other_fit, r"fit\.gradient"),
    (other_method, r"method\.class"),
    (other_regularization, "regularization"),
    (other_curvature, "curvature"),
    (other_test_points, r"test\.sha256"),
    (other_training_labels, r"train\.sha256"),
    (other_batches, r"train\.batches"),
    (other_order, r"test\.sha256"),
    (other_chunks, r"array\.chunks"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES, ids=lambda c: getattr(c, "__name__", ""))
def test_another_call_is_refused_or_starts_anew(job, place, change, named):
    interrupted(job, place, 3)
    before = chunk_files(place)
    change(job)
    with pytest.raises(StorageError, match=named):
        job.lazy().to_zarr(place)
    assert chunk_files(place) == before
    array = job.lazy().to_zarr(place, overwrite=True)
    np.testing.assert_array_equal(array[:], job.expected())
    assert array.chunks == job.lazy().chunks


def test_another_mode_is_refused(job, place):
    job.lazy().to_zarr(place)
    with pytest.raises(StorageError, match="mode"):
        job.calculator.influences(job.test, job.train, "perturbation").to_zarr(place)


def test_the_same_call_keeps_what_it_has_with_overwrite_too(job, place):
    interrupted(job, place, 3)
    store = CountingStore(place)
    array = job.lazy().to_zarr(store, overwrite=True)
    assert store.written == np.prod(array.cdata_shape) - 3


def test_what_is_only_shown_does_not_count(job, place):
    for progress in (False, True):
        job.calculator = calculator(model(job.setting, Cg(progress=progress)))
        job.lazy().to_zarr(place)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["files", "array", "group", "file"])
def test_what_is_not_ours_is_left_alone(job, place, kind, overwrite):
    if kind == "file":
        place.write_text("mine")
    elif kind == "files":
        (place / "thesis").mkdir(parents=True)
        (place / "thesis" / "chapter.partial").write_text("mine")
    elif kind == "array":
        zarr.create_array(place, shape=(3,), dtype="float64")
    else:
        zarr.create_group(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(StorageError, match="to_zarr"):
        job.lazy().to_zarr(place, overwrite=overwrite)
    assert sorted(place.rglob("*")) == before


def test_another_format_is_refused(job, place):
    job.lazy().to_zarr(place)
    record = json.loads((place / "zarr.json").read_text())
    record["attributes"]["influence_core"]["format"] = 99
    (place / "zarr.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match="format 99"):
        job.lazy().to_zarr(place)


def test_a_replacement_that_was_interrupted_mixes_nothing(job, place, monkeypatch):
    job.lazy().to_zarr(place)
    job.influence.with_regularization(1e-3)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_create", killed)
        with pytest.raises(KeyboardInterrupt):
            job.lazy().to_zarr(place, overwrite=True)
    job.influence.with_regularization(1e-2)  # the call whose chunks were being removed
    np.testing.assert_array_equal(job.lazy().to_zarr(place)[:], job.expected())


def test_a_full_disk_leaves_the_finished_chunks(job, place):
    store = FullStore(place)
    store.room = 3
    message = r"No space left.*3 of \d+ chunks are finished.*make the same call again"
    with pytest.raises(StorageError, match=message) as caught:
        job.lazy().to_zarr(store)
    assert isinstance(caught.value, OSError)
    array = zarr.open_array(place, mode="r")
    expected, height = job.expected(), array.chunks[0]
    finished = np.isfinite(array[:])
    assert finished[:height].all()
    assert not finished.all()
    np.testing.assert_array_equal(array[:][finished], expected[finished])
    np.testing.assert_array_equal(job.lazy().to_zarr(place)[:], expected)


LIMITED = """
import resource, signal, sys
from jobs import Job
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
lazy = Job().lazy()
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
lazy.to_zarr(sys.argv[1])
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of processes are POSIX")
def test_a_limit_of_the_system_is_a_clear_error(place):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(place)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "StorageError: `influences.to_zarr` cannot" in run.stderr
    assert "File too large" in run.stderr


@pytest.mark.parametrize(
    "make",
    [RefusingStore, lambda place: zarr.storage.LocalStore(place, read_only=True)],
    ids=["refusing", "read-only"],
)
def test_a_store_that_does_not_take_it(job, place, make):
    with pytest.raises(StorageError, match=r"`influences\.to_zarr` cannot"):
        job.lazy().to_zarr(make(place))


def test_a_store_that_refuses_later_keeps_what_it_has(job, place):
    interrupted(job, place, 4)
    before = chunk_files(place)
    with pytest.raises(StorageError, match=r"Permission denied.*4 of \d+ chunks are finished"):
        job.lazy().to_zarr(RefusingStore(place))
    assert chunk_files(place) == before


class Waiting:
    """A loader that waits before its last batch, in its second pass."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0
        self.reached, self.released = threading.Event(), threading.Event()

    def __iter__(self):
        self.passes += 1
        for index, batch in enumerate(self.batches):
            if self.passes == 2 and index == len(self.batches) - 1:
                self.reached.set()
                assert self.released.wait(60)
            yield batch


def test_the_second_writer_is_refused(job, place):
    first = Job()
    first.train = waiting = Waiting(first.train)
    writer = threading.Thread(target=first.lazy().to_zarr, args=(place,))
    writer.start()
    assert waiting.reached.wait(60)
    with pytest.raises(StorageError, match=f"process {os.getpid()} on .* is writing to"):
        job.lazy().to_zarr(place)
    waiting.released.set()
    writer.join()
    np.testing.assert_array_equal(job.lazy().to_zarr(place)[:], job.expected())


HOLDING = """
import sys, time
from pathlib import Path
from influence_core.calculators.lock import writing
with writing(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_process(job, place):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(place)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StorageError, match=f"process {holder.pid} on .* is writing"):
            job.lazy().to_zarr(place)
        holder.kill()
    assert place.with_name("scores.zarr.lock").exists()
    np.testing.assert_array_equal(job.lazy().to_zarr(place)[:], job.expected())
    assert not place.with_name("scores.zarr.lock").exists()


def test_the_second_process_goes_on_where_the_first_was_killed(job, place):
    """The identity is the same in another process."""
    interrupted(job, place, 3)
    code = (
        "import sys; from jobs import Job; from stores import CountingStore; "
        "store = CountingStore(sys.argv[1]); "
        "Job().lazy().to_zarr(store); print(store.written)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(place)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    array = zarr.open_array(place, mode="r")
    assert int(run.stdout) == np.prod(array.cdata_shape) - 3
    np.testing.assert_array_equal(array[:], job.expected())


def test_a_loaded_model_goes_on_with_the_run_of_the_fitted_one(job, place, tmp_path):
    pytest.importorskip("safetensors")
    from influence_core import load
    from influence_core.testing import BACKEND

    interrupted(job, place, 3)
    job.influence.save(tmp_path / "fitted")
    loaded = load(tmp_path / "fitted", job.setting.model, backend=BACKEND, max_memory=2**12)
    job.calculator = calculator(loaded)
    store = CountingStore(place)
    array = job.lazy().to_zarr(store)
    assert store.written == np.prod(array.cdata_shape) - 3
    np.testing.assert_array_equal(array[:], job.expected())


def test_progress_counts_numbers_with_a_rate(job, place, capsys):
    interrupted(job, place, 3)
    job.calculator = calculator(job.influence, progress=True)
    job.lazy().to_zarr(place)
    shown = capsys.readouterr().err
    assert "influences: 100%" in shown
    assert f"{31 * N}/{31 * N}" in shown
    assert "/s]" in shown


def test_no_bar_is_shown_unless_asked_for(job, place, capsys):
    job.lazy().to_zarr(place)
    assert capsys.readouterr().err == ""


def test_without_zarr_the_extra_is_named(job, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    train = job.train = CountingLoader(job.train)
    with pytest.raises(MissingExtraError, match=r'pip install "influence-core\[storage\]"'):
        job.lazy().to_zarr(place)
    assert train.passes == 0


def test_an_import_loads_no_library_of_the_extra():
    code = "import sys, influence_core.calculators; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"zarr", "safetensors", "tqdm", "pandas"} & set(run.stdout.split()) == set()


def test_batches_of_the_helpers_are_uneven():
    sizes = [len(x) for x, _ in batches(make_setting("logistic"), 31)]
    assert len(set(sizes)) == 2
