"""Files that were cut short, edited, mixed up or lost: found out, by name, before they are used."""

import json
import re
import shutil

import numpy as np
import pytest
from problems import make_setting
from saving import RECORD, case, fit, load_again, record_of, rewrite

from influence_core import StorageError
from influence_core.storage.files import TENSORS

SETTING = make_setting("tanh_cross_entropy")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    place = tmp_path_factory.mktemp("intact") / "saved"
    fit(case("ekfac"), SETTING).save(place)
    return place


@pytest.fixture
def saved(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "saved")


def refused(place, *words):
    with pytest.raises(StorageError) as caught:
        load_again(place, SETTING)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert re.search(r"\.$", message), message  # it ends with the remedy


def test_the_copy_is_whole(saved):
    assert load_again(saved, SETTING).is_fitted


@pytest.mark.parametrize("name", [RECORD, TENSORS])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.99, 1.0])
def test_a_file_cut_short(name, part, saved):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: min(int(part * len(content)), len(content) - 2)])
    refused(saved, str(saved / name), "fit and save again")


@pytest.mark.parametrize("name", [RECORD, TENSORS])
def test_a_missing_file(name, saved):
    (saved / name).unlink()
    refused(saved, str(saved / name), "is missing", "fit and save again")


def test_a_flipped_bit_anywhere_among_the_tensors(saved):
    content = bytearray((saved / TENSORS).read_bytes())
    for at in np.random.default_rng(0).integers(0, len(content), 40):
        damaged = content.copy()
        damaged[at] ^= 1 << (int(at) % 8)
        (saved / TENSORS).write_bytes(damaged)
        refused(saved, str(saved / TENSORS), "was changed", "fit and save again")


def test_a_flipped_bit_anywhere_in_the_record(saved):
    content = bytearray((saved / RECORD).read_bytes())
    for at in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = content.copy()
        damaged[at] ^= 1 << (int(at) % 7)
        (saved / RECORD).write_bytes(damaged)
        if not same_content(damaged, content):  # more white space is no damage
            refused(saved, str(saved / RECORD))


def same_content(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_something_more_at_the_end(saved):
    with (saved / TENSORS).open("ab") as opened:
        opened.write(b"\0")
    refused(saved, str(saved / TENSORS), "bytes where")
    with (saved / RECORD).open("a") as opened:
        opened.write("{}")
    refused(saved, str(saved / RECORD))


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["regularization"].update({"": 0.2}),
        lambda record: record["method"].update(update_diagonal=False),
        lambda record: record["parameters"].update(sha256="0" * 64),
        lambda record: record["data"].update(points=22),
        lambda record: record["tensors"].update(bytes=1),
        lambda record: record.pop("second_order_mode"),
        lambda record: record.update(note="mine"),
        lambda record: record.update(sha256=None),
        lambda record: record.pop("sha256"),
    ],
)
def test_an_edited_record(edit, saved):
    record = record_of(saved)
    edit(record)
    (saved / RECORD).write_text(json.dumps(record))
    refused(saved, str(saved / RECORD), "was edited", "fit and save again")


def test_white_space_is_no_edit(saved):
    (saved / RECORD).write_text(json.dumps(record_of(saved), indent=7))
    assert load_again(saved, SETTING).is_fitted


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_another_version_of_the_format(version, saved):
    rewrite(saved, lambda record: record.update(version=version))
    refused(saved, str(saved / RECORD), f"format version {version!r}", "influence-core", "Install")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": "other"}', "null"])
def test_another_kind_of_record(content, saved):
    (saved / RECORD).write_text(content)
    refused(saved, str(saved / RECORD), "holds no fitted state")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"PK\x03\x04", b"{", b'{"a": NaN'])
def test_no_record_at_all(content, saved):
    (saved / RECORD).write_bytes(content)
    refused(saved, str(saved / RECORD), "cut short or was edited")


def test_tensors_of_another_fit(saved, tmp_path):
    fit(case("kfac"), SETTING).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / TENSORS, saved / TENSORS)
    refused(saved, str(saved / TENSORS))


def test_tensors_whose_hash_was_forged(saved):
    import hashlib

    (saved / TENSORS).write_bytes(b"no tensors at all")
    size, digest = 17, hashlib.sha256(b"no tensors at all").hexdigest()
    rewrite(saved, lambda record: record["tensors"].update(bytes=size, sha256=digest))
    refused(saved, str(saved / TENSORS), "cannot be read", "fit and save again")


def test_nothing_there(tmp_path):
    refused(tmp_path / "nothing", str(tmp_path / "nothing"), "is no directory", "Pass the path")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "is no directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is missing")


@pytest.mark.parametrize("name", [RECORD, TENSORS])
def test_a_directory_in_place_of_a_file(name, saved):
    (saved / name).unlink()
    (saved / name).mkdir()
    refused(saved, str(saved / name), "cannot be read")


def test_it_is_an_error_of_files_and_of_values(saved):
    (saved / TENSORS).unlink()
    for kind in (OSError, ValueError):
        with pytest.raises(kind, match="is missing"):
            load_again(saved, SETTING)
