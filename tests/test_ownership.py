"""Which files are this package's to replace."""

import json

import pytest

from stipple_monai.errors import DatasetError
from stipple_monai.files import new_folder
from stipple_monai.ownership import (
    MANIFEST,
    MARK,
    adopt,
    begin_part,
    begin_set,
    begun_with,
    claim,
    end_part,
    made_anew,
    owned,
    remember,
    replace_set,
)


def test_what_was_claimed_may_be_replaced_and_nothing_else(tmp_path):
    claim(tmp_path, [tmp_path / "a.csv"])
    (tmp_path / "a.csv").touch()
    claim(tmp_path, [tmp_path / "a.csv", tmp_path / "b.csv"])
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(DatasetError, match=r"not written by this package, got .*mine\.csv"):
        claim(tmp_path, [tmp_path / "mine.csv"])
    assert {*owned(tmp_path)} == {"a.csv", "b.csv"}
    adopt(tmp_path, [tmp_path / "mine.csv", tmp_path / "none.csv"])
    assert {*owned(tmp_path)} == {"a.csv", "b.csv", "mine.csv"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', "[" * 5000])
def test_a_manifest_that_is_none_owns_nothing(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    assert not owned(tmp_path)


def test_an_input_is_no_output(tmp_path):
    (tmp_path / "a.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    claim(tmp_path, [tmp_path / "b.json"], inputs=[tmp_path / "a.json"])
    for name in ("a.json", "link.json"):
        with pytest.raises(DatasetError, match="must not be an input, got"):
            claim(tmp_path, [tmp_path / name], inputs=[tmp_path / "a.json"])
    with pytest.raises(DatasetError, match=r"files of their own, got .*b\.json twice"):
        claim(tmp_path, [tmp_path / "b.json", tmp_path / "x" / ".." / "b.json"])


def test_a_part_is_of_what_its_mark_says(tmp_path):
    target = tmp_path / "models"
    part = begin_part(target, {"seed": 1})
    (part / "a").touch()
    assert begin_part(target, {"seed": 1}) == part
    with pytest.raises(DatasetError, match=r"models\.part must be empty or begun with the same"):
        begin_part(target, {"seed": 2})
    end_part(part, target)
    assert [p.name for p in target.iterdir()] == ["a"]


def test_a_part_without_mark_is_somebody_s(tmp_path):
    (tmp_path / "models.part").mkdir()
    begin_part(tmp_path / "models", {})
    (tmp_path / "models.part" / MARK).unlink()
    (tmp_path / "models.part" / "patients.txt").write_text("mine")
    with pytest.raises(DatasetError, match="must be empty or begun with the same"):
        begin_part(tmp_path / "models", {})


def stopped(path):
    with new_folder(path) as part:
        (part / "a").touch()
        raise KeyError("stopped")


def test_a_new_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(KeyError, match="stopped"):
        stopped(tmp_path / "x")
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "x") as part:
        (part / "a").touch()
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a"]
    with pytest.raises(FileExistsError, match="must not exist yet"), new_folder(tmp_path / "x"):
        pass


def written(folder, names, text):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_set_is_replaced_when_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "set"
    first = begin_set(
        folder, ["i/0", "i/1", "list"], command="ingest", made_with={"n": 1}, overwrite=False
    )
    assert first == folder
    written(folder, ["i/0", "i/1", "list"], "old")
    written(folder, ["i/mine", "notes"], "mine")
    work = begin_set(folder, ["i/0", "list"], command="ingest", made_with={"n": 2}, overwrite=True)
    written(work, ["i/0", "list"], "new")
    assert (folder / "i/1").read_text() == "old"
    replace_set(work, folder, command="ingest", last="list")
    assert (folder / "i/0").read_text() == (folder / "list").read_text() == "new"
    assert not (folder / "i/1").exists()
    assert (folder / "i/mine").read_text() == (folder / "notes").read_text() == "mine"
    assert not work.exists()
    assert json.loads((folder / MANIFEST).read_text())["files"] == ["i/0", "list"]


def test_a_set_does_not_replace_what_is_read_or_foreign(tmp_path):
    def begin(**more):
        return begin_set(tmp_path, ["i/0"], command="ingest", made_with={}, overwrite=True, **more)

    written(tmp_path, ["i/0", "i/9"], "mine")
    with pytest.raises(DatasetError, match=r"not written by this package, got .*i/0"):
        begin()
    adopt(tmp_path, [tmp_path / "i/0", tmp_path / "i/9"], "ingest")
    with pytest.raises(DatasetError, match=r"must not be an input, got .*i/9"):
        begin(inputs=[tmp_path / "i/9"])


def test_what_another_command_wrote_is_neither_replaced_nor_removed(tmp_path):
    claim(tmp_path, [tmp_path / "a_seg", tmp_path / "volumes"], command="segment")
    written(tmp_path, ["a_seg", "volumes"], "of segment")
    made = {"command": "evaluate", "made_with": {}, "overwrite": True}
    with pytest.raises(DatasetError, match=r"by this command, got .*a_seg of `segment`: choose"):
        begin_set(tmp_path, ["a_seg", "scores"], **made)
    adopt(tmp_path, [tmp_path / "a_seg"], "evaluate")
    work = begin_set(tmp_path, ["b_seg", "scores"], **made)
    written(work, ["b_seg", "scores"], "of evaluate")
    replace_set(work, tmp_path, command="evaluate", last="scores")
    assert (tmp_path / "a_seg").read_text() == (tmp_path / "volumes").read_text() == "of segment"
    assert owned(tmp_path) == {
        **{"a_seg": "segment", "volumes": "segment"},
        **{"b_seg": "evaluate", "scores": "evaluate"},
    }


@pytest.mark.parametrize(("content", "got"), [("{", ": Expecting"), ("[]", ", got list")])
def test_settings_that_are_none_are_refused(tmp_path, content, got):
    assert begun_with(tmp_path / "settings.json") is None
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(DatasetError, match=rf"settings\.json must be JSON that this .*wrote{got}"):
        begun_with(tmp_path / "settings.json")


def test_settings_count_as_soon_as_they_led_to_something(tmp_path):
    path = tmp_path / "settings.json"
    remember(path, {"seed": 0, "long": [1] * 40}, targets=["a"], taken=["plan"])
    remember(path, {"seed": 1, "long": [1] * 40}, targets=["a"], taken=["plan"])
    (tmp_path / "plan").touch()
    asked = {"seed": 2, "long": [2] * 40}
    with pytest.raises(DatasetError, match=r"begun with other seed \(1, now 2\), long, see"):
        remember(path, asked, targets=["a"], taken=["plan"])
    assert json.loads(path.read_text())["seed"] == 1


def test_settings_of_another_command_are_not_taken_over(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"models": {}, "configs": {}}')
    with pytest.raises(DatasetError, match=r"where another wrote settings\.json: choose another"):
        remember(path, {"seed": 1, "configs": {}})


def _make_half(out, given):
    with made_anew(out, **given) as work:
        (work / "a.csv").write_text("new")
        raise RuntimeError("half")


def test_a_set_is_made_anew_or_not_at_all(tmp_path):
    out, given = tmp_path / "out", {"command": "c", "made_with": {"a": 1}}
    with made_anew(out, **given) as work:
        (work / "a.csv").write_text("old")
        (work / "b.csv").write_text("old")
    (out / "mine.csv").write_text("mine")
    with pytest.raises(RuntimeError, match="half"):
        _make_half(out, given)
    there = {p.name: p.read_text() for p in out.glob("*.csv")}
    assert there == {"a.csv": "old", "b.csv": "old", "mine.csv": "mine"}
    left = begin_part(out, given["made_with"])
    (left / "c.csv").write_text("of a killed command")
    with made_anew(out, **given) as work:
        (work / "a.csv").write_text("new")
    assert {p.name: p.read_text() for p in out.glob("*.csv")} == {
        "a.csv": "new",
        "mine.csv": "mine",
    }
    assert not left.exists()
    with (
        pytest.raises(DatasetError, match=r"got .*mine\.csv"),
        made_anew(out, **given, targets=["mine.csv"]),
    ):
        pass
