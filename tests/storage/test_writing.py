"""A directory appears as a whole or not at all, and takes the place of nothing else."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from problems import make_setting
from saving import RECORD, case, fit, load_again, record_of, same

from influence_core import MissingExtraError, StorageError
from influence_core.storage import files
from influence_core.storage.files import TENSORS

SETTING = make_setting("tanh_cross_entropy")
FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "core")]


@pytest.fixture(scope="module")
def one():
    return fit(case("direct"), SETTING)


@pytest.fixture(scope="module")
def other():
    return fit(case("nystroem"), SETTING, regularization=0.7)


def test_two_files_and_nothing_beside_them(one, place):
    one.save(place)
    assert {each.name for each in place.iterdir()} == {RECORD, TENSORS}
    assert list(place.parent.iterdir()) == [place]


def test_paths_of_every_kind(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a", Path("b"), f"{tmp_path}/c/", "ü [1]*?"):
        one.save(path)
        assert load_again(path, SETTING).is_fitted


def test_others_may_read_what_the_umask_lets_them(one, place):
    before = os.umask(0o027)
    try:
        one.save(place)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o750


def test_what_was_saved_is_replaced(one, other, place):
    one.save(place)
    other.save(place)
    same(other, load_again(place, SETTING), SETTING, "influences")
    assert list(place.parent.iterdir()) == [place]


def test_a_link_is_followed(one, other, tmp_path):
    one.save(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    other.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    same(other, load_again(tmp_path / "real", SETTING), SETTING, "influences")


def test_an_empty_directory_is_taken(one, place):
    place.mkdir()
    one.save(place)
    assert load_again(place, SETTING).is_fitted


def a_file(place):
    place.write_text("precious")


def a_directory_with_a_file(place):
    place.mkdir()
    a_file(place / "notes.txt")


def a_directory_with_files_of_our_names(place):
    place.mkdir()
    (place / RECORD).write_text("{}")
    (place / TENSORS).write_text("")


def a_damaged_one(place):
    place.mkdir()
    (place / RECORD).write_text('{"format": "influence-core fit')
    (place / TENSORS).write_text("")


def half_of_one(place):
    place.mkdir()
    (place / TENSORS).write_text("")


@pytest.mark.parametrize(
    "make",
    [
        a_file,
        a_directory_with_a_file,
        a_directory_with_files_of_our_names,
        a_damaged_one,
        half_of_one,
    ],
)
def test_nothing_else_is_replaced(make, one, place):
    make(place)
    before = contents(place)
    with pytest.raises(StorageError, match=r"replaces fitted state and nothing else.*is something"):
        one.save(place)
    assert contents(place) == before
    assert list(place.parent.iterdir()) == [place]


def test_notes_beside_saved_state_are_not_lost(one, other, place):
    one.save(place)
    a_file(place / "notes.txt")
    with pytest.raises(StorageError, match="Choose another path, or remove it"):
        other.save(place)
    assert (place / "notes.txt").read_text() == "precious"


def contents(place):
    if place.is_file():
        return place.read_bytes()
    return {each.name: each.read_bytes() for each in place.iterdir()}


def test_a_directory_that_is_not_there(one, tmp_path):
    with pytest.raises(StorageError, match=r"into an existing directory; there is no .*missing"):
        one.save(tmp_path / "missing" / "saved")
    assert list(tmp_path.iterdir()) == []


# every step by which something reaches the disk
STEPS = [(Path, "mkdir"), (files, "_write_record"), (os, "fsync"), (Path, "rename")]
# how often; another time where something is replaced
TIMES = {"mkdir": 1, "_write_record": 1, "fsync": 3, "rename": 1}


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize(("owner", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_full_disk(owner, step, at, replacing, one, other, place, monkeypatch):
    if replacing:
        one.save(place)
    real, calls = getattr(owner, step), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == at + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, failing)
        if at >= TIMES[step] + (replacing and step == "rename"):
            other.save(place)
            return
        with pytest.raises(StorageError, match=r"No space left on device.*Make room"):
            other.save(place)
    if replacing:
        same(one, load_again(place, SETTING), SETTING, "influences")
    assert list(place.parent.iterdir()) == ([place] if replacing else [])


def test_a_full_disk_under_the_tensors(one, place, monkeypatch):
    import safetensors
    import safetensors.numpy

    def failing(tensors, file):
        file.write_bytes(b"half")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", failing)
    with pytest.raises(StorageError, match="No space left on device"):
        one.save(place)
    assert list(place.parent.iterdir()) == []


# a process that saves to each of the places, and dies at its first step, its second, and so on
DYING = """
import os, sys
sys.path[:0] = {folders!r}
from pathlib import Path
from influence_core.storage import files
from problems import make_setting
from saving import case, fit

last = 0

def dying(real):
    def step(*args, **kwargs):
        global last
        last -= 1
        if last == 0:
            os._exit(9)
        return real(*args, **kwargs)
    return step

model = fit(case("nystroem"), make_setting("tanh_cross_entropy"), regularization=0.7)
os.fsync, Path.mkdir, Path.rename = map(dying, (os.fsync, Path.mkdir, Path.rename))
files._write_record, files.shutil.rmtree = map(dying, (files._write_record, files.shutil.rmtree))
for last, place in enumerate(sys.argv[1:], 1):
    child = os.fork()
    if child == 0:
        model.save(place)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_dies_at_any_step(one, other, tmp_path):
    places = [tmp_path / f"saved {step}" for step in range(1, 17)]
    for place in places:
        one.save(place)
    command = [sys.executable, "-c", DYING.format(folders=FOLDERS), *map(str, places)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    codes = [int(code) for code in run.stdout.split()]
    died = codes.count(9)
    assert codes == [9] * died + [0] * (len(places) - died)
    assert 8 <= died < len(places)
    found = [after_a_crash(place, one, other) for place in places]
    assert found == sorted(found, key=["before", "named", "after"].index)
    assert set(found) == {"before", "named", "after"}
    assert found[died:] == ["after"] * (len(places) - died)


def after_a_crash(place, one, other):
    """Say what is there: all of the former state, all of the new, or the former by another name."""
    try:
        found = load_again(place, SETTING)
    except StorageError as error:
        left = Path(str(error).split(": rename ")[1].split(", which")[0])
        same(one, load_again(left, SETTING), SETTING, "influences")
        return "named"
    before = record_of(place)["regularization"] == {"": 0.1}
    same(one if before else other, found, SETTING, "influences")
    return "before" if before else "after"


def test_a_library_that_is_missing(one, place, monkeypatch):
    one.save(place)
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    remedy = r'pip install "influence-core\[storage\]"'
    with pytest.raises(MissingExtraError, match=f"`save` needs safetensors.*{remedy}"):
        one.save(place)
    with pytest.raises(MissingExtraError, match=f"`load` needs safetensors.*{remedy}"):
        load_again(place, SETTING)
    with pytest.raises(ImportError):
        one.save(place)


def test_the_record_is_readable(one, place):
    one.save(place)
    record = record_of(place)
    assert record["class"] == "influence_core.influence:Influence"
    assert record["method"] == {"class": "influence_core.methods.direct:Direct"}
    assert record["regularization"] == {"": 0.1}
    assert record["second_order_mode"] == "generalized_gauss_newton"
    assert record["block_structure"] == "full"
    assert record["parameters"]["each"]["hidden.weight"]["shape"] == [5, 4]
    assert record["data"]["points"] == 23
    assert record["optimality"]["length"] > 0
    assert {"influence-core", "numpy", "safetensors", "python"} <= set(record["written_by"])
    assert (place / RECORD).read_text().count("\n") > 50
