"""A file is whole or absent."""

import os
import stat

import pytest

from stipple_monai.files import read_csv, remove_unfinished, whole_file


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
