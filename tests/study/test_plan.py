"""What a study consists of: cells, shared networks, nested labels, and studies that cannot be."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from stipple_monai import DatasetError
from stipple_monai.bundle import BUNDLE, config_path
from stipple_monai.study.plan import Job, Study, divide, plan_jobs, read_methods, read_study

STUDIES = BUNDLE / "studies"
METHODS = STUDIES / "methods.yaml"
DEFINED = yaml.safe_load(METHODS.read_text(encoding="utf-8"))


def study(**entries):
    known = {"title": "t", "methods": ["baseline"], "proportions": [0.5], "phantom": {}}
    return Study(**{**known, **entries})


def planned(**entries):
    it = study(**entries)
    return plan_jobs(it, read_methods(METHODS, it))


def items(number, **more):
    return [{"image": f"{i}.nii.gz", "label": f"{i}_seg.nii.gz", **more} for i in range(number)]


def images(section):
    return {item["image"] for item in section}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_of_the_bundle_can_be_read(path):
    if path == METHODS:
        everything = study(methods=list(DEFINED))
        found = read_methods(METHODS, everything)
        for method in found:
            for name in (*method.overlays, *method.train, *method.evaluate):
                assert config_path(BUNDLE / "configs", name)
    else:
        it = read_study(path)
        assert plan_jobs(it, read_methods(METHODS, it))


def test_methods_share_a_network_where_only_evaluation_or_rounds_differ():
    names = ["stipple", "stipple_true_position", "stipple_single", "relabelling", "baseline"]
    jobs = planned(methods=[*names, "prior_alone", "paper_baseline"], folds=2, run_folds=[0])
    assert [[m.name for m in job.methods] for job in jobs] == [
        ["stipple_true_position", "stipple_single", "stipple"],
        ["paper_baseline", "relabelling"],
        ["baseline", "prior_alone"],
    ]
    assert len({job.network for job in jobs}) == 3
    bins = planned(methods=["stipple_single", "stipple_bins_1", "stipple_bins_all"], folds=2)
    assert len({job.network for job in bins}) == 3


def test_every_cell_is_planned_once():
    names = ["baseline", "stipple", "relabelling", "mean_teacher"]
    jobs = planned(methods=names, proportions=[0.1, 1.0], folds=3, seeds=[0, 7])
    cells = Counter(
        (m.name, job.proportion, job.fold, job.seed) for job in jobs for m in job.methods
    )
    assert set(cells.values()) == {1}
    few = {(name, 0.1, fold, seed) for name in names for fold in range(3) for seed in (0, 7)}
    # at 100 % there is nothing to label
    all_labelled = {(n, 1.0, fold, seed) for n in names[:2] for fold in range(3) for seed in (0, 7)}
    assert set(cells) == few | all_labelled


def test_shares_depend_on_the_proportion():
    it = study(methods=["paper", "relabelling", "baseline", "stipple"])
    paper, relabelling, baseline, stipple = read_methods(METHODS, it)
    # "one step of relabeling for the low proportions from 50% to 10% and two steps at 70%"
    assert [len(paper.shares_at(p)) for p in (0.1, 0.5, 0.69, 0.7, 0.99, 1.0)] == [
        1,
        1,
        1,
        2,
        2,
        0,
    ]
    assert stipple.shares_at(0.1) == stipple.shares_at(0.9) == (None,)
    assert relabelling.shares_at(0.3) == (1.0,)
    assert relabelling.shares_at(1.0) == baseline.shares_at(0.3) == ()


def test_methods_that_part_ways_need_a_branch():
    more = {"shares": [0.3]}
    names = ["stipple", "other"]
    with pytest.raises(
        DatasetError, match=r"other and stipple must not go different ways .*branch"
    ):
        planned(methods=names[::-1], definitions={"other": more})
    jobs = planned(methods=names, definitions={"other": {**more, "branch": "mine"}}, folds=2)
    assert len({job.network for job in jobs}) == 2


def test_methods_whose_rounds_train_otherwise_share_no_network():
    assert DEFINED["stipple"]["shares"] == DEFINED["stipple_scratch"]["shares"]
    jobs = planned(methods=["stipple", "stipple_scratch"], folds=2)
    assert len({job.network for job in jobs}) == 2


def test_labels_are_nested_and_the_test_fold_is_always_the_same():
    it = study(folds=4, validation=2)
    pool = items(24)
    tested = []
    for fold in range(4):
        labelled_before: set = set()
        for seed in (0, 1):
            labelled_before = set()
            for proportion in (0.1, 0.3, 0.5, 0.7, 1.0):
                sections, test = divide(pool, it, Job("n", (), proportion, fold, seed))
                labelled = images(sections["training"])
                assert len(labelled) == round(16 * proportion)
                assert labelled_before < labelled
                labelled_before = labelled
                parts = [images(sections[name]) for name in ("unlabelled", "validation")]
                parts += [labelled, images(test)]
                assert sum(map(len, parts)) == len(set().union(*parts)) == 24
                assert all("label" not in item for item in sections["unlabelled"])
                assert images(test) == images(divide(pool, it, Job("n", (), 1.0, fold, 9))[1])
        tested += images(test)
    assert sorted(tested) == sorted(images(pool))
    one, other = (
        images(divide(pool, it, Job("n", (), 0.3, 0, seed))[0]["training"]) for seed in (0, 1)
    )
    assert one != other


def test_patients_are_not_divided():
    pool = [item for p in range(6) for item in items(3, patient=p)]
    for number, item in enumerate(pool):
        item["image"] = f"{number}.nii.gz"
    sections, test = divide(pool, study(folds=3), Job("n", (), 0.5, 1, 0))
    groups = [{item["patient"] for item in s} for s in (*sections.values(), test)]
    assert sum(map(len, groups)) == 6
    assert len(groups[0]) == 2


def test_patients_without_label_train_in_every_fold():
    pool = [*items(6), {"image": "x.nii.gz"}]
    for fold in range(3):
        sections, test = divide(pool, study(folds=3), Job("n", (), 1.0, fold, 0))
        assert images(sections["unlabelled"]) == {"x.nii.gz"}
        assert len(test) == 2


def test_too_few_patients():
    with pytest.raises(DatasetError, match=r"`folds` must be at most the number of .*, 3, got 4"):
        divide([*items(3), {"image": "x"}], study(folds=4), Job("n", (), 1.0, 0, 0))
    with pytest.raises(DatasetError, match="`items` must hold at least"):
        divide(items(4), study(folds=2, validation=2), Job("n", (), 1.0, 0, 0))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"metods": []}, r"unknown: \['metods'\]"),
        ({"title": None}, r"missing: \['title'\]"),
        ({"proportions": [10]}, r"`proportions` must lie in \(0, 1\], got 10"),
        ({"phantom": None}, "either `datalist` or `phantom`"),
        ({"datalist": "d.json"}, "either `datalist` or `phantom`"),
        ({"folds": 1}, "`folds` must be at least 2"),
        ({"folds": 2, "run_folds": [2]}, "`run_folds` below it, got 2"),
    ],
)
def test_studies_that_cannot_be(entries, message, tmp_path):
    known = {"title": "t", "methods": ["baseline"], "proportions": [0.5], "phantom": {"cases": 4}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**known, **entries}), encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        read_study(path)


def test_the_organ_in_pictures_is_the_first_of_the_options(tmp_path):
    path = tmp_path / "study.yaml"

    def read(**entries):
        known = {"title": "t", "methods": ["baseline"], "proportions": [0.5], "phantom": {}}
        content = {**known, "options": {"organs": [11, 3]}, **entries}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return read_study(path).organ

    assert read() == 11
    assert read(organ=3) == 3
    assert read(options={}) == 1
    with pytest.raises(DatasetError, match=r"`organ` must be one of .* \[11, 3\], got 1 in"):
        read(organ=1)


def test_files_that_are_no_studies(tmp_path):
    with pytest.raises(DatasetError, match=r"YAML files that can be read, got .*none.yaml"):
        read_study(tmp_path / "none.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(DatasetError, match="YAML mappings, got <class 'list'>"):
        read_study(path)


def test_methods_that_are_not_defined(tmp_path):
    with pytest.raises(DatasetError, match=r"`methods` must be among stipple_single, .*, got unet"):
        planned(methods=["unet"])
    with pytest.raises(DatasetError, match=r"Method unet must not have the entries \['layers'\]"):
        planned(methods=["unet"], definitions={"unet": {"layers": 4}})


def test_the_datalist_lies_beside_the_study(tmp_path):
    path = tmp_path / "study.yaml"
    known = {"title": "t", "methods": ["baseline"], "proportions": [0.5], "datalist": "a/d.json"}
    path.write_text(yaml.safe_dump(known), encoding="utf-8")
    assert Path(read_study(path).datalist) == tmp_path / "a" / "d.json"
