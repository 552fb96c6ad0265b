"""Which scans a folder of weights has learnt from, by what its run was begun with."""

import json

from stipple_monai.training.seen import scans_seen

SCANS = {
    "training": ["/d/a.nii.gz", "['/d/b_0000.nii.gz', '/d/b_0001.nii.gz']"],
    "validation": ["/d/c.nii.gz"],
    "unlabelled": ["/d/u.nii.gz"],
    "test": ["/d/t.nii.gz"],
}
LABELLED = {"/d/a.nii.gz", "/d/b_0000.nii.gz", "/d/b_0001.nii.gz", "/d/c.nii.gz"}


def test_scans_with_labels_are_those_of_a_run(tmp_path):
    assert scans_seen(tmp_path) == set()
    (tmp_path / "settings.json").write_text(json.dumps({"scans": SCANS}), encoding="utf-8")
    assert scans_seen(tmp_path) == LABELLED


def test_later_rounds_of_a_self_training_have_seen_the_unlabelled_scans(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"scans": SCANS}), encoding="utf-8")
    assert scans_seen(tmp_path / "round_0" / "models") == LABELLED
    assert scans_seen(tmp_path / "round_12" / "models") == LABELLED | {"/d/u.nii.gz"}


def test_a_record_of_another_kind_tells_nothing(tmp_path):
    others = ["", "[]", "{}", '{"scans": [1]}', '{"scans": {"training": [1]}}']
    for text in [*others, '{"scans": {"training": ["[/d"]}}']:
        (tmp_path / "settings.json").write_text(text, encoding="utf-8")
        assert scans_seen(tmp_path) == set(), text
