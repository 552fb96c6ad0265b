"""A file is whole or absent."""

import contextlib
import errno
import os
import shutil
import stat

import numpy as np
import pytest
import torch

from stipple_monai.files import new_folder, read_csv, remove_unfinished, whole_file


def write(path, text):
    with whole_file(path) as temporary:
        temporary.write_text(text)


def test_the_file_appears_with_its_whole_content_in_a_new_folder(tmp_path):
    target = tmp_path / "deep" / "er" / "prior.nii.gz"
    with whole_file(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("all of it")
        assert not target.exists()
    assert target.read_text() == "all of it"
    assert os.listdir(target.parent) == [target.name]


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "a.txt"
    write(target, "old")
    with whole_file(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    write(target, "old")

    def half():
        with whole_file(target) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_target_that_cannot_be_replaced_leaves_no_temporary(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]


@contextlib.contextmanager
def full_disk():
    """No file can be larger than 1000 bytes, which fails where a full disk does."""
    resource = pytest.importorskip("resource", reason="POSIX limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("save", "kind", "message"),
    [
        (lambda path: path.write_bytes(bytes(5000)), OSError, r"File too large: '{}'$"),
        (lambda path: np.save(path, np.zeros(5000)), OSError, "^{} could not be written whole: "),
        (
            lambda path: torch.save(torch.zeros(5000), path),
            RuntimeError,
            r"^{} could not be written whole: .*inline_container.* \(is the disk full\?\)$",
        ),
    ],
    ids=["bytes", "numpy", "torch"],
)
def test_an_error_of_a_full_disk_names_the_target(tmp_path, save, kind, message):
    target = tmp_path / "a.npy"
    with full_disk(), pytest.raises(kind, match=message.format(target)), whole_file(target) as part:
        save(part)
    assert os.listdir(tmp_path) == []


def test_an_error_keeps_its_kind_and_what_else_it_names(tmp_path):
    target, source = tmp_path / "a.txt", tmp_path / "b.txt"
    source.write_bytes(bytes(5000))

    def raised(kind, write):
        with pytest.raises(kind) as caught, whole_file(target) as part:
            write(part)
        assert part.name not in str(caught.value)
        return caught.value

    # a folder that is read-only, or gone
    refused = raised(PermissionError, lambda p: refuse(p, errno.EACCES))
    assert (refused.errno, refused.filename) == (errno.EACCES, str(target))
    assert str(raised(FileNotFoundError, lambda p: p.read_bytes())).endswith(f": '{target}'")
    absent = raised(FileNotFoundError, lambda p: shutil.copyfile(tmp_path / "none", p))
    assert absent.filename == str(tmp_path / "none")
    with full_disk():
        copied = raised(OSError, lambda p: shutil.copyfile(source, p))
    assert (copied.errno, copied.filename2) in [(errno.EFBIG, str(target)), (errno.EFBIG, None)]


def refuse(path, number):
    raise OSError(number, os.strerror(number), str(path))


def test_an_error_in_a_new_folder_names_what_it_is_to_be(tmp_path):
    with (
        pytest.raises(PermissionError, match=f"denied: '{tmp_path / 'zoo' / 'a.txt'}'"),
        new_folder(tmp_path / "zoo") as part,
    ):
        refuse(part / "a.txt", errno.EACCES)
    with (
        full_disk(),
        pytest.raises(OSError, match=f"^{tmp_path / 'zoo' / 'a.npy'} could not be written"),
        new_folder(tmp_path / "zoo") as part,
        whole_file(part / "a.npy") as path,
    ):
        np.save(path, np.zeros(5000))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_are_those_of_any_new_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write(tmp_path / "a.txt", "text")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


def test_what_killed_writers_left_is_removed(tmp_path):
    kept = tmp_path / "a" / "b.csv"
    with whole_file(kept) as part:
        part.write_text("x\n1\n")
        # a copy of what a writer that is killed now would leave
        part.with_name(part.name.replace("b.csv", "c.csv")).touch()
    assert len(list(tmp_path.rglob("*.csv"))) == 2
    remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.rglob("*.csv")] == ["b.csv"]
    assert read_csv(kept) == [{"x": "1"}]
