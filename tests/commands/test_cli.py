"""The command line: `python -m stipple_monai`."""

import io
import json
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from tqdm import tqdm

from stipple_monai.__main__ import main, make_parser
from stipple_monai.bundle import BUNDLE
from stipple_monai.commands import calibrate, demo, phantom, self_train
from stipple_monai.data import keep_sections, label_names, read_datalist
from stipple_monai.files import write_csv


def listed(path, count=8):
    for index in range(count):
        for kind in ("image", "label"):
            (path.parent / f"{index}_{kind}.nii.gz").touch()
    items = [{k: f"{i}_{k}.nii.gz" for k in ("image", "label")} for i in range(count)]
    path.write_text(json.dumps({"training": items}), encoding="utf-8")
    return path


def names(path, section):
    return {Path(item["image"]).name for item in json.loads(path.read_text())[section]}


def one_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_help_of_the_module(monkeypatch, capsys):
    """As by ``python -m``, in this process, which has all imports."""
    monkeypatch.setattr(sys, "argv", ["stipple_monai", "--help"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("stipple_monai", run_name="__main__")
    assert not end.value.code
    said = capsys.readouterr().out
    for command in ("demo", "phantom", "split"):
        assert command in said


def test_every_argument_has_its_help():
    (commands,) = (a.choices for a in make_parser()._actions if a.dest == "command")
    silent = [
        (name, action.option_strings or action.dest)
        for name, command in commands.items()
        for action in command._actions
        if not action.help
    ]
    assert len(commands) > 15
    assert silent == []


@pytest.mark.parametrize("arguments", [[], ["prior"], ["split", "a.json"], ["phantom"]])
def test_wrong_usage_ends_with_one_line_and_status_1(arguments, capsys):
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("^python -m stipple_monai.*--help shows what there is", line)


@pytest.mark.slow
def test_phantom_writes_a_data_set_and_goes_on_with_it(tmp_path, capsys):
    arguments = ["phantom", str(tmp_path / "data"), "--size", "24", "--organs", "all"]
    assert main([*arguments, "--cases", "1"]) == 0
    (item,) = read_datalist(tmp_path / "data" / "dataset.json", "training")
    assert nib.load(item["image"]).shape[:2] == (24, 24)
    assert nib.load(item["label"]).get_fdata().max() > 4
    before = Path(item["image"]).stat().st_mtime_ns
    assert main([*arguments, "--cases", "2"]) == 0
    assert len(read_datalist(tmp_path / "data" / "dataset.json", "training")) == 2
    assert Path(item["image"]).stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*arguments, "--cases", "2", "--seed", "1"]) == 1
    assert "`folder` must be empty or hold this same phantom" in one_line(capsys)
    assert main([*arguments, "--cases", "1", "--seed", "1", "--overwrite"]) == 0
    assert len(read_datalist(tmp_path / "data" / "dataset.json", "training")) == 1


def test_split_is_nested_and_says_what_it_made(tmp_path, capsys):
    source = listed(tmp_path / "dataset.json")
    for count in (2, 4):
        out = str(tmp_path / f"{count}.json")
        numbers = ["--labelled", str(count), "--validation", "1", "--test", "3", "--seed", "5"]
        assert main(["split", str(source), out, *numbers]) == 0
        said = f"training: {count}, unlabelled: {4 - count}, validation: 1, test: 3\n"
        assert capsys.readouterr().out == said
    fewer, more = tmp_path / "2.json", tmp_path / "4.json"
    assert names(fewer, "training") < names(more, "training")
    assert names(fewer, "test") == names(more, "test")
    assert names(fewer, "validation") == names(more, "validation")
    assert len(read_datalist(fewer, "unlabelled")) == 2


def test_split_keeps_what_is_in_sections_and_says_what_it_leaves_out(tmp_path, capsys):
    source = listed(tmp_path / "dataset.json")
    content = json.loads(source.read_text())
    items = content["training"]
    content |= {
        "training": items[:5],
        "unlabelled": [{"image": items[5]["image"]}],
        "test": [items[6], {"image": items[7]["image"]}],
        "validation": [],
        "old": items[8:],
    }
    source.write_text(json.dumps(content))
    out = tmp_path / "out.json"
    arguments = ["split", str(source), str(out), "--labelled", "2", "--test", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "training: 2, unlabelled: 3, validation: 0, test: 2"
    assert any(line.startswith("left out: test without label, 1 of") for line in said[:-1])
    assert len(said) == 2 + bool(items[8:])
    assert items[6]["image"].rpartition("/")[2] in str(read_datalist(out, "test"))


def test_split_takes_further_scans_as_unlabelled(tmp_path, capsys):
    source = listed(tmp_path / "dataset.json")
    content = json.loads(source.read_text())
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for name in ("a_0000", "b_0000", ".hidden"):
        (folder / f"{name}.nii.gz").touch()
    # as `ingest` lists nnU-Net's imagesTs
    content["test"] = [{"image": "imagesTs/a_0000.nii.gz"}]
    source.write_text(json.dumps(content))
    out = tmp_path / "out.json"
    arguments = ["split", str(source), str(out), "--unlabelled", str(folder)]
    numbers = ["--labelled", "2", "--test", "1"]
    assert main([*arguments, *numbers]) == 0
    assert capsys.readouterr().out == "training: 2, unlabelled: 7, validation: 0, test: 1\n"
    assert {"a_0000.nii.gz", "b_0000.nii.gz"} < names(out, "unlabelled")
    assert main(["split", str(source), str(out), "--folds", "2", "--unlabelled", str(folder)]) == 1
    assert "`--unlabelled` must be given with --labelled and --test" in one_line(capsys)
    fewer = ["--labelled", "1", "--test", "1"]
    assert main(["split", str(out), str(tmp_path / "b.json"), *arguments[3:], *fewer]) == 1
    assert "must have scans that the datalist has not" in one_line(capsys)


def test_help_groups_the_commands_by_what_a_person_does():
    text = make_parser("stipple").format_help()
    groups = {title: text.index(f"{title}:\n") for title in ("data", "train", "use", "try")}
    assert list(groups.values()) == sorted(groups.values())
    for title, command in (("data", "plan"), ("train", "evaluate"), ("use", "segment")):
        assert f"\n  {command} " in text[groups[title] :]
    assert text.index("\n  evaluate ") < groups["use"] < text.index("\n  segment ")


def test_a_patient_in_two_sections_is_refused():
    drawn = {"training": [{"image": "a", "patient": "p"}], "test": []}
    with pytest.raises(ValueError, match="must be in one section, got p in 'training' and in 't"):
        keep_sections(drawn, {"test": [{"image": "b", "patient": "p", "label": "c"}]})


@pytest.mark.parametrize("command", ["check", "split", "report"])
def test_the_folder_of_another_tool_is_to_be_ingested(tmp_path, capsys, command):
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    content = {"channel_names": {"0": "CT"}, "labels": {"a": 1}, "numTraining": 0}
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(content))
    more = [str(tmp_path / "out.json"), "--labelled", "1", "--test", "1"]
    for source in (tmp_path, file):
        assert main([command, str(source), *(more if command == "split" else [])]) == 1
        assert re.search("run `ingest` on it(s folder)? first", capsys.readouterr().err)
    file.write_text(json.dumps({"training": [{"image": "a.nii.gz"}]}))
    if command != "report":
        assert main([command, str(tmp_path), *(more if command == "split" else [])]) == 1
        assert "give its dataset.json" in capsys.readouterr().err


def test_split_of_another_section(tmp_path):
    source = listed(tmp_path / "dataset.json")
    source.write_text(source.read_text().replace('"training"', '"all"'), encoding="utf-8")
    arguments = ["split", str(source), str(tmp_path / "out.json"), "--labelled", "1", "--test", "1"]
    assert main(arguments) == 1
    assert main([*arguments, "--section", "all"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["phantom", "OUT", "--cases", "0"], "`cases` must be at least 1, got 0"),
        (["phantom", "OUT", "--size", "8"], "`size` must be from 16 to 1024, got 8"),
        (["split", "none.json", "OUT", "--labelled", "1", "--test", "1"], "`path` must be a data"),
        (["split", "DATA", "OUT", "--labelled", "9", "--test", "1"], "`items` must hold at least"),
        (["split", "DATA", "OUT", "--labelled", "0", "--test", "1"], "`labelled` must be at least"),
        (
            ["split", "DATA", "OUT", "--labelled", "3"],
            "`--labelled` must be given with --test, got --labelled 3 and no --test: add --test ",
        ),
        (
            ["split", "DATA", "OUT", "--folds", "2", "--test", "1"],
            "`--test` must be given with --labelled, got --test 1 and no --labelled: add ",
        ),
        (
            ["evaluate", "DATA", "OUT"],
            "`models`, the first argument, must be the folder of a run, got the file DATA: give ",
        ),
        (["demo", "--out", "OUT", "--bundle", "/nowhere"], "`bundle` must be the folder of the"),
    ],
)
def test_error_is_one_line_and_status_1(arguments, message, tmp_path, capsys):
    out, data = tmp_path / "out.json", listed(tmp_path / "data.json")
    given = {"OUT": str(out), "DATA": str(data)}
    assert main([given.get(text, text) for text in arguments]) == 1
    line = one_line(capsys)
    told = message.replace("DATA", str(data))
    assert line.startswith(f"stipple_monai {arguments[0]}: {told}")
    assert not out.exists()


def test_demo_gets_its_options(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(demo, "run_demo", lambda out, **options: calls.append((out, options)))
    assert main(["demo", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert main(["demo", "--bundle", "somewhere"]) == 0
    standard = {"bundle": BUNDLE, "seed": 3}
    assert calls == [
        (tmp_path, standard),
        (Path("runs/demo"), {"bundle": Path("somewhere"), "seed": 0}),
    ]


def test_failed_write_is_reported(tmp_path, capsys):
    source = listed(tmp_path / "dataset.json")
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "out.json")
    assert main(["split", str(source), out, "--labelled", "1", "--test", "1"]) == 1
    assert one_line(capsys).startswith("stipple_monai split: ")


def test_an_error_is_a_line_and_on_request_a_traceback(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        try:
            raise KeyError("deep")
        except KeyError as error:
            raise RuntimeError("applying transform") from error

    monkeypatch.setattr(phantom, "write_phantom", fails)
    arguments = ["phantom", str(tmp_path / "data")]
    assert main(arguments) == 1
    said = "stipple_monai phantom: KeyError: 'deep' (--traceback shows where)"
    assert one_line(capsys) == said
    with pytest.raises(RuntimeError, match="applying transform"):
        main(["--traceback", *arguments])


def test_bash_completes_commands_and_their_options(capsys, tmp_path):
    pytest.importorskip("shtab", reason="needs shtab: pip install 'stipple-monai[completion]'")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = tmp_path / "completion.bash"
    script.write_text(
        capsys.readouterr().out
        + 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        + '_shtab_stipple "$1" "${@: -1}"; echo "${COMPREPLY[*]}"\n',
        encoding="utf-8",
    )
    for words, expected in (
        (["stipple", "seg"], "segment"),
        (["stipple", "segment", "--mod"], "--models"),
        (["stipple", "check", "list.json", "--pri"], "--priors"),
    ):
        done = subprocess.run([bash, str(script), *words], capture_output=True, text=True)
        assert done.stdout.split() == [expected], done.stderr


@pytest.mark.slow
def test_priors_are_of_all_organs_that_the_data_set_names(tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["phantom", str(data), "--size", "24", "--organs", "all", "--cases", "2"]) == 0
    named = {k for k in label_names(data / "dataset.json") if k}
    assert len(named) > 4
    options = ["--set", "prior_spacing_mm=[8,8,8]"]
    given = ["prior", str(data / "dataset.json"), "--out"]
    assert main([*given, str(tmp_path / "all"), *options]) == 0
    found = {path.name for path in (tmp_path / "all").glob("prior_*.nii.gz")}
    assert found == {f"prior_{k}.nii.gz" for k in named}
    assert main([*given, str(tmp_path / "one"), *options, "organs=[2]"]) == 0
    assert [path.name for path in (tmp_path / "one").glob("prior_*.nii.gz")] == ["prior_2.nii.gz"]
    # offsets are among the organs of one estimation, so none of the older priors stays
    assert main([*given, str(tmp_path / "all"), *options, "organs=[1,2]"]) == 0
    found = {path.name for path in (tmp_path / "all").glob("prior_*")}
    assert found == {f"prior_{k}{end}" for k in (1, 2) for end in (".nii.gz", "_cases.npz")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "data", "one"]


def test_priors_of_a_training_and_of_others_are_not_replaced(tmp_path, capsys):
    for name in ("prior_1.nii.gz", "model.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("theirs")
    (tmp_path / "list.json").write_text('{"training": []}')
    command = ["prior", str(tmp_path / "list.json"), "--out"]
    assert main([*command, str(tmp_path / "prior_1.nii.gz")]) == 1
    assert "not written by this package, got " in one_line(capsys)
    assert main([*command, str(tmp_path / "model.json")]) == 1
    assert "the folder of a training: choose another" in one_line(capsys)
    for name in ("prior_1.nii.gz", "model.json"):
        assert (tmp_path / name / name).read_text() == "theirs"


def test_an_interrupt_is_a_line_and_status_130(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "write_phantom", interrupted)
    assert main(["phantom", str(tmp_path / "data")]) == 130
    assert one_line(capsys) == "stipple_monai phantom: interrupted"


def test_no_progress_bar_is_painted_over_an_error(tmp_path, monkeypatch, capsys):
    bars = []

    def fails(*_, **__):
        bars.append(tqdm(total=9, file=io.StringIO()))
        raise ValueError("deep")

    monkeypatch.setattr(phantom, "write_phantom", fails)
    assert main(["phantom", str(tmp_path / "data")]) == 1
    assert one_line(capsys).startswith("stipple_monai phantom: deep")
    assert bars[0].disable


def test_calibrate_gets_its_options(tmp_path, monkeypatch, capsys):
    calls = []

    def noted(*places, **options):
        calls.append((places, options))
        return "calibration.json"

    monkeypatch.setattr(calibrate, "calibrate", noted)
    places = (tmp_path / "data.json", tmp_path / "folds", tmp_path / "models")
    given = "--folds 4 --position true --shrinkage 0.5 --seed 7 --overlays a --infer-overlays b c"
    words = [*map(str, places), *given.split(), "--set", "max_epochs=2"]
    assert main(["calibrate", *words]) == 0
    assert main(["calibrate", *map(str, places)]) == 0
    assert capsys.readouterr().out == "calibration.json\n" * 2
    standard = {"bundle": BUNDLE, "seed": 0, "options": {}, "folds": None, "position": "located"}
    standard |= {"shrinkage": 1.0, "overlays": [], "train_overlays": [], "infer_overlays": []}
    changed = {"seed": 7, "options": {"max_epochs": 2}, "folds": 4, "position": "true"}
    changed |= {"shrinkage": 0.5, "overlays": ["a"], "infer_overlays": ["b", "c"]}
    assert calls == [(places, {**standard, **changed}), (places, standard)]


@pytest.mark.parametrize("overlays", [[], ["baseline"]])
def test_self_train_takes_a_plan_behind_the_overlays(tmp_path, monkeypatch, overlays):
    calls = []
    monkeypatch.setattr(self_train, "self_train", lambda *_, **options: calls.append(options))
    plan = tmp_path / "plan.yaml"
    words = ["self-train", "data.json", str(tmp_path / "out"), "--plan", str(plan)]
    assert main([*words, *(["--overlays", *overlays] if overlays else [])]) == 0
    assert calls[0]["overlays"] == [*overlays, plan]
    assert calls[0]["shares"] == [None]


@pytest.mark.parametrize(("overlays", "said"), [([], True), (["paper"], False)])
def test_self_train_tells_of_a_first_network_that_has_hardly_learnt(
    tmp_path, monkeypatch, capsys, overlays, said
):
    monkeypatch.setattr(self_train, "self_train", lambda _, out, **__: out / "round_1")
    curve = [[epoch, 1.8] for epoch in range(3)]
    write_csv(tmp_path / "round_0" / "models" / "curve.csv", ["epoch", "loss"], curve)
    words = ["self-train", "data.json", str(tmp_path), "--plan", str(tmp_path / "plan.yaml")]
    assert main([*words, *(["--overlays", *overlays] if overlays else [])]) == 0
    assert ("warning: round 0: the training loss is still 1.80" in capsys.readouterr().out) == said


def test_split_of_a_fold_of_the_unlabelled_section_counts_it_once(tmp_path):
    items = [{"image": f"{n}_image.nii.gz", "fold": n % 2} for n in range(8)]
    path = listed(tmp_path / "data.json")
    path.write_text(json.dumps({"training": [], "unlabelled": items}), encoding="utf-8")
    command = ["split", str(path), str(tmp_path / "out.json"), "--fold", "0"]
    assert main([*command, "--section", "unlabelled"]) == 0
    sections = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    found = [item["image"] for part in sections.values() if isinstance(part, list) for item in part]
    assert len(found) == len(set(found)) > 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("segment a --models m --out o --labels liver", "`--labels` must be pairs such as 1=panc"),
        ("ingest a o --names pancreas", "`--names` must be pairs such as 1=pancreas, got pancreas"),
        ("ingest a o --map 63", "`--map` must be pairs such as 63=1, got 63"),
        ("fuse a --priors p --out o --channels 1", "`--channels` must be pairs such as 1=2, got 1"),
        ("simulate a o --organs 6", "`--organs` must be pairs such as 6=1, got 6"),
        ("train a --out o --set max_epochs", "`--set` must be pairs KNOB=VALUE, got max_epochs"),
        ("ingest nothing neu", "`source` must exist, got nothing: give the folder of the data set"),
        ("place p --like a --out o --position -20.5mm 31 104", "invalid float value: '-20.5mm'"),
        ("place p --like a --out o --position 20.5mm 31 104", "invalid float value: '20.5mm'"),
    ],
)
def test_an_error_names_the_argument(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_check_refuses_a_knob_that_no_config_has(tmp_path, capsys):
    plan = tmp_path / "mine.yaml"
    plan.write_text("max_epoch: 2\n", encoding="utf-8")
    assert main(["check", "none.json", "--overlays", str(plan)]) == 1
    assert f"got max_epoch in {plan}: did you mean max_epochs?" in capsys.readouterr().err
    assert main(["check", "none.json", "--set", "max_epochs=two"]) == 1
    assert "`max_epochs` must be a whole number of at least 1, got 'two'" in capsys.readouterr().err
