"""The pool of unlabelled scans: what is done, once and by whom, also after a kill and a restart."""

import functools
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from helpers.forks import exit_status, fork, needs_fork
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import DataLoader

from stipple_monai import DatasetError, SpatialPrior
from stipple_monai.data import read_datalist, read_sections, split_datalist, write_datalist
from stipple_monai.inferers.prior_driven import POSITION_META
from stipple_monai.self_training.pool import PseudoLabelPool
from stipple_monai.simulation import write_phantom

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "bundles" / "pancreas_stipple"
CONFIGS = BUNDLE / "configs"
ORIGIN = {"model": "/m/model.pt", "share": 0.5, "round": 2}
POSITIONS = {"b": [[1.5, 2.0, -3.0]], "c": [[math.nan] * 3], "d": None}

pytestmark = pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere")


class Bench:
    """Three unlabelled scans, and pools of them whose labels are the scans' bytes twice over."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "out"
        self.scans = {name: folder / name for name in "abcd"}
        for name, path in self.scans.items():
            path.write_text(name)
        self.sections = {
            "training": [{"image": str(self.scans["a"]), "label": str(self.scans["a"]), "age": 50}],
            "unlabelled": [{"image": str(self.scans[n]), "age": i} for i, n in enumerate("bcd")],
            "test": [],
        }
        self.datalist = folder / "old.json"
        write_datalist(self.datalist, self.sections)
        self.done = []

    @property
    def path(self):
        return self.out / "new.json"

    def pool(self, **options):
        known = {"folder": self.out, "provenance": ORIGIN, **options}
        return PseudoLabelPool(self.datalist, self.path, **known)

    def label(self, name):
        return self.out / f"{name}_pseudo.nii.gz"

    def record(self, name):
        return self.out / f"{name}_pseudo.json"

    def finish(self, scan):
        """What an evaluator has of a scan after its pseudo-label is saved."""
        name = Path(scan).name
        self.done.append(name)
        self.label(name).write_text(2 * Path(scan).read_text())
        pred = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"saved_to": str(self.label(name))})
        if POSITIONS[name] is not None:
            pred.meta[POSITION_META] = torch.tensor(POSITIONS[name], dtype=torch.float64)
        image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": scan})
        return {"image": image, "pred": pred}

    def start(self, pool, finish=None):
        """An engine that goes through the pool, and its loader."""
        engine = Engine(lambda engine, batch: [(finish or self.finish)(scan) for scan in batch])
        pool.attach(engine)
        scans = [item["image"] for item in pool.sections[pool.section]]
        return engine, DataLoader(scans, batch_size=1, sampler=pool)

    def run(self, pool=None, finish=None):
        """The names of the scans that were labelled."""
        self.done.clear()
        engine, loader = self.start(pool or self.pool(), finish)
        engine.run(loader)
        return "".join(self.done)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


# what is written


def test_labelled_scans_move_to_training_with_position_and_origin(bench):
    assert bench.run() == "bcd"
    # strict JSON has no NaN
    text = bench.path.read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    found = read_sections(bench.path)
    assert found["unlabelled"] == found["test"] == []
    (first, *moved) = found["training"]
    assert first == bench.sections["training"][0]
    places = {"b": [[1.5, 2.0, -3.0]], "c": [[None] * 3]}
    for name, item, old in zip("bcd", moved, bench.sections["unlabelled"], strict=True):
        more = {"label": str(bench.label(name)), "pseudo_label": ORIGIN}
        place = {"organ_position": places[name]} if name in places else {}
        assert item == {**old, **more, **place}
    left = {path.name for path in bench.out.iterdir()}
    assert left == {"new.json"} | {f"{n}_pseudo.{end}" for n in "bcd" for end in ("json", "nii.gz")}


def test_a_scan_in_several_files_is_known_by_its_first(bench):
    both = [str(bench.scans["b"]), str(bench.scans["c"])]
    sections = {"unlabelled": [{"image": both}]}
    write_datalist(bench.datalist, sections)

    def finish(scans):
        assert scans == both
        return bench.finish(scans[0])

    pool = bench.pool()
    engine = Engine(lambda engine, batch: [finish(scans) for scans in batch])
    pool.attach(engine)
    engine.run(DataLoader([both], sampler=pool, collate_fn=list))
    assert read_datalist(bench.path, "training")[0]["image"] == both
    Path(both[1]).write_text("another")
    assert list(bench.pool()) == [0]


# what is done again


def test_a_finished_pool_is_not_touched(bench):
    bench.run(bench.pool(settings={"grid": (1, 2)}))
    before = {path: path.read_bytes() for path in bench.out.iterdir()}
    assert bench.run(bench.pool(settings={"grid": [1, 2]})) == ""
    assert {path: path.read_bytes() for path in bench.out.iterdir()} == before
    bench.path.unlink()
    assert bench.run(bench.pool(settings={"grid": [1, 2]})) == ""
    assert bench.path.read_bytes() == before[bench.path]


SPOIL = {
    "no record": lambda bench: bench.record("c").unlink(),
    "half a record": lambda bench: bench.record("c").write_text('{"label": "c_pse'),
    "no label": lambda bench: bench.label("c").unlink(),
    "half a label": lambda bench: bench.label("c").write_text("c"),
    "another scan": lambda bench: bench.scans["c"].write_text("another"),
}


@pytest.mark.parametrize("name", SPOIL)
def test_what_is_not_whole_is_done_again(bench, name):
    bench.run()
    before = bench.path.read_bytes()
    SPOIL[name](bench)
    assert bench.run() == "c"
    assert bench.label("c").read_text() == ("anotheranother" if name == "another scan" else "cc")
    assert bench.path.read_bytes() == before or name == "another scan"
    assert bench.run() == ""


def prior(value=0.5, spacing_mm=(1, 1, 10)):
    return SpatialPrior(torch.full((2, 2, 2), value), spacing_mm=spacing_mm)


def filled(*shape):
    return torch.nn.ParameterList([torch.ones(shape)])


def network(value=0.0, dtype=torch.float32):
    """Weights of the type, and a counter without axes."""
    it = torch.nn.BatchNorm1d(3).to(dtype)
    torch.nn.init.constant_(it.bias, value)
    return it


MADE_WITH = {
    "settings": [{"floor": 0.1}, {"floor": 0.2}, {"floor": torch.tensor(0.2)}, {}],
    "provenance": [ORIGIN, {**ORIGIN, "share": 0.6}],
    "networks": [
        [network()],
        [network(1.0)],
        [network(dtype=torch.bfloat16)],
        [network(), None, network()],
        [filled(2, 3)],
        [filled(3, 2)],
    ],
    "priors": [[prior()], [prior(0.6)], [prior(spacing_mm=(1, 1, 11))], []],
}


@pytest.mark.parametrize("name", MADE_WITH)
def test_labels_made_otherwise_are_done_again(bench, name):
    for value in MADE_WITH[name]:
        assert bench.run(bench.pool(**{name: value})) == "bcd"
        assert bench.run(bench.pool(**{name: value})) == ""


def test_weights_count_as_they_are_when_the_run_begins(bench):
    """Checkpoints are loaded when the engine starts, by handlers behind this one, too."""
    model = network()
    bench.run(bench.pool(networks=[network(2.0)]))
    pool = bench.pool(networks=[model])
    engine, loader = bench.start(pool)
    engine.add_event_handler(Events.STARTED, lambda: torch.nn.init.constant_(model.bias, 2.0))
    bench.done.clear()
    engine.run(loader)
    assert bench.done == []


def test_no_datalist_lists_what_is_made_anew(bench):
    bench.run()
    pool = bench.pool(provenance={"round": 3})

    def finish(scan):
        assert not bench.path.exists()
        assert not bench.record(Path(scan).name).exists()
        return bench.finish(scan)

    assert bench.run(pool, finish) == "bcd"
    assert read_datalist(bench.path, "training")[1]["pseudo_label"] == {"round": 3}


def test_each_run_of_one_pool_looks_anew(bench):
    pool = bench.pool()
    assert bench.run(pool) == "bcd"
    bench.record("d").unlink()
    assert bench.run(pool) == "d"


# who does it


def test_an_interrupted_run_writes_no_datalist_and_its_claims_are_free(bench):
    def finish(scan):
        if scan.endswith("c"):
            raise RuntimeError("unplugged")
        return bench.finish(scan)

    with pytest.raises(RuntimeError, match="unplugged") as kept:
        bench.run(finish=finish)
    assert not bench.path.exists()
    assert bench.run() == "cd"
    # as a notebook does, which would otherwise hold the claims
    assert kept.value.__traceback__ is not None
    other = Bench(bench.folder)
    other.out = bench.folder / "uninterrupted"
    assert other.run() == "bcd"
    assert other.path.read_bytes() == bench.path.read_bytes()


def test_two_pools_share_the_scans_and_the_last_lists_them(bench):
    """One takes b and d, the other c, which it finishes after all others."""
    first, second = bench.pool(), bench.pool()
    names = {}

    def slowly(scan):
        names["second"] = Path(scan).name
        assert bench.run(first) == "bd"
        assert not bench.path.exists()
        bench.done.clear()
        return bench.finish(scan)

    # the first scan is claimed by nobody who finishes it, until it is let go
    given = iter(hold := bench.pool())
    assert next(given) == 0
    engine, loader = bench.start(second, slowly)

    @engine.on(Events.ITERATION_STARTED)
    def let_go():
        for lock in hold._claims.values():
            lock.release()

    engine.run(loader)
    assert names["second"] == "c"
    assert [item["image"][-1] for item in read_datalist(bench.path, "training")] == list("abcd")


def test_a_scan_done_between_the_look_and_the_lock_is_left(bench, monkeypatch):
    class Late(FileLock):
        def acquire(self, *args, **options):
            monkeypatch.undo()
            assert bench.run() == "bcd"
            return super().acquire(*args, **options)

    monkeypatch.setattr("stipple_monai.self_training.pool.FileLock", Late)
    assert list(bench.pool()) == []
    assert bench.path.is_file()
    assert not list(bench.out.glob("*.lock"))


def test_what_another_left_undone_is_claimed_after_the_rest(bench):
    given = iter(gone := bench.pool())
    assert next(given) == 0

    def finish(scan):
        if scan.endswith("d"):
            for lock in gone._claims.values():
                lock.release()
        return bench.finish(scan)

    assert bench.run(finish=finish) == "cdb"
    assert bench.path.is_file()


def test_a_process_that_is_killed_holds_no_scan(bench):
    child = os.fork()
    if child == 0:
        given = iter(bench.pool())
        claimed = [next(given), next(given)]
        (bench.folder / "claimed").touch()
        time.sleep(60)
        os._exit(len(claimed))
    until(lambda: (bench.folder / "claimed").exists())
    assert list(bench.pool()) == [2]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert bench.run() == "bcd"


def test_without_a_scan_to_do_the_run_ends(bench):
    holding = bench.pool()
    assert list(holding) == [0, 1, 2]
    assert bench.run() == ""
    assert not bench.path.exists()


# bad input


def test_new_datalist_must_not_be_the_old_one(bench):
    options = {"folder": bench.out, "provenance": {}}
    same = bench.folder / "out" / ".." / "old.json"
    bench.out.mkdir()
    with pytest.raises(DatasetError, match=r"`path` must not be the datalist .*old\.json: it"):
        PseudoLabelPool(bench.datalist, same, **options)


def test_scans_of_one_name_would_share_a_label(bench):
    (bench.folder / "more").mkdir()
    (bench.folder / "more" / "b").touch()
    sections = {"unlabelled": [{"image": p} for p in (bench.scans["b"], bench.folder / "more/b")]}
    write_datalist(bench.datalist, sections)
    with pytest.raises(DatasetError, match=r"different file names, got b_pseudo\.json .*more/b"):
        bench.pool()


def test_scans_must_come_from_the_pool(bench):
    pool = bench.pool()
    bench.out.mkdir()
    engine, _ = bench.start(pool)
    with pytest.raises(DatasetError, match=r"the pool gave out, got .*/b: make the pool"):
        engine.run([[str(bench.scans["b"])]])


def test_settings_must_read_the_same_in_every_process(bench):
    with pytest.raises(TypeError, match=r"`settings` must hold JSON and tensors, got <class 'obj"):
        bench.run(bench.pool(settings={"loss": object()}))


# the bundle's configs

# what the labels do not depend on, or what weights, priors and names of transforms tell
NO_SETTING = {
    "bundle_root",
    "dataset_dir",
    "label_channels",
    "labels",
    "lines",
    "locator",
    "more_channels",
    "num_workers",
    "of_probabilities",
    "prior_channels",
    "probabilities",
    "wanted",
}


def test_every_knob_of_inference_is_a_setting():
    inference, overlay = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("inference", "pseudo_label")
    )

    def plain(value):
        if isinstance(value, list):
            return all(plain(v) for v in value)
        return not isinstance(value, dict) and not (isinstance(value, str) and value[:1] in "$@%")

    knobs = {key for key, value in inference.items() if plain(value)} | {"amp"}
    settings = overlay["settings"]
    assert knobs - overlay.keys() - settings.keys() == NO_SETTING
    assert {key for key in settings if settings[key] != f"@{key}"} == {
        "calibration",
        "labelled",
        "preprocessing",
    }


KNOBS = {
    "channels": [8, 16],
    "slice_size": [32, 32],
    "progress": False,
    "num_workers": 1,
    # what an untrained network sees is nowhere certain
    "minimum_confidence": 0,
    "calibration": "equation_2",
    # the paper's selection
    "share": 0.5,
}


class Pool:
    """The bundle with a network that learnt nothing and six unlabelled scans."""

    def __init__(self, root):
        self.root = root
        small = {"size": 32, "slices": (12, 14), "slice_spacing_mm": (10.0, 10.0)}
        dataset = write_phantom(root / "data", cases=8, **small, progress=False)
        self.datalist = root / "data" / "split.json"
        items = read_datalist(dataset, "training")
        sections = split_datalist(items, labelled=2, validation=0, test=0, seed=0)
        write_datalist(self.datalist, sections)
        self.names = {Path(item["image"]).name for item in sections["unlabelled"]}
        self.places = {"bundle_root": str(root), "datalist": str(self.datalist)}
        monai.bundle.run(config_file=[str(CONFIGS / "prior.yaml")], **self.options({}))
        parser = ConfigParser()
        parser.read_config(str(CONFIGS / "inference.yaml"))
        parser.update({**self.places, **KNOBS})
        torch.manual_seed(0)
        network = parser.get_parsed_content("network_def")
        torch.save(network.state_dict(), root / "models" / "model.pt")

    def options(self, more):
        return {"logging_file": False, **self.places, **more}

    def run(self, out, *overlays, **knobs):
        """In this process, on its CPU."""
        configs = [CONFIGS / "inference.yaml", CONFIGS / "pseudo_label.yaml", *overlays]
        more = {**KNOBS, "device": "$torch.device('cpu')", "output_dir": str(out), **knobs}
        monai.bundle.run(config_file=[str(path) for path in configs], **self.options(more))

    def torchrun(self, out, probes, plans):
        """In two forks that torchrun starts and watches; the probe's notes, and what it said."""
        configs, said = self.shared(probes, plans), probes / "said.txt"
        two = LaunchConfig(
            *(1, 1, 2),
            max_restarts=0,
            start_method="fork",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
        )

        def run():
            sys.path.insert(0, str(probes))
            self.run(out, *configs)

        def launch():
            with said.open("w") as file:
                os.dup2(file.fileno(), 2)
            elastic_launch(two, run)()

        assert exit_status(fork(launch)) == 1
        return notes_in(probes), said.read_text()

    def forked(self, out, probes):
        """In two forks with what torchrun sets; the probe's notes and the forks' statuses."""
        configs = self.shared(probes, ((), ()))

        def run(rank):
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
            sys.path.insert(0, str(probes))
            self.run(out, *configs)

        children = [fork(functools.partial(run, rank)) for rank in "01"]
        statuses = [exit_status(child) for child in children]
        return notes_in(probes), statuses

    def shared(self, probes, plans):
        """Overlays for two processes that write a probe's notes."""
        probes.mkdir()
        (probes / "probe.py").write_text(PROBE, encoding="utf-8")
        probe = {"_target_": "probe.Probe", "folder": str(probes), "plans": [*map(list, plans)]}
        (probes / "probe.yaml").write_text(yaml.safe_dump({"+handlers": [probe]}))
        return config("multi_gpu_pseudo_label"), probes / "probe.yaml"


def config(name):
    return CONFIGS / f"{name}.yaml"


def notes_in(probes):
    notes = [path.read_text().split() for path in sorted(probes.glob("rank_*"))]
    assert len(notes) == 2
    return notes


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return Pool(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="module")
def whole(scans):
    """The result of one process that was left alone: a file's content by its name."""
    out = scans.root / "whole"
    scans.run(out)
    return contents(out)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


PROBE = """
import os, signal, time
from pathlib import Path
from ignite.engine import Events
from monai.engines import IterationEvents

class Probe:
    def __init__(self, folder, plans):
        self.folder, rank = Path(folder), int(os.environ["RANK"])
        self.notes, self.plan = self.folder / f"rank_{rank}", list(plans[rank])

    def attach(self, engine):
        engine.add_event_handler(Events.STARTED, self.meet)
        engine.add_event_handler(Events.ITERATION_STARTED, self.note)
        # the label is saved, the record is not yet written
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.act)

    def meet(self, engine):
        self.notes.touch()
        self.wait_for("rank_0", "rank_1")

    def wait_for(self, *names):
        deadline = time.monotonic() + 60
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def note(self, engine):
        (name,) = engine.state.batch["image"].meta["filename_or_obj"]
        with self.notes.open("a") as file:
            file.write(Path(name).name + " ")

    def act(self, engine):
        step = self.plan.pop(0) if self.plan else ""
        if step == "hang":
            (self.folder / "hangs").touch()
            time.sleep(600)
        if step == "kill":
            self.wait_for("hangs")
            label = engine.state.output[0]["pred"].meta["saved_to"]
            os.truncate(label, os.path.getsize(label) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_process_leaves_labels_records_and_the_datalist(scans, whole):
    ends = ("_pseudo.json", "_pseudo.nii.gz")
    stems = [name.removesuffix(".nii.gz") for name in scans.names]
    assert whole.keys() == {"datalist.json"} | {stem + end for stem in stems for end in ends}
    for item in read_datalist(scans.root / "whole" / "datalist.json", "training")[2:]:
        label = np.asarray(nib.load(item["label"]).dataobj)
        assert {1, 255} <= set(np.unique(label)) <= {0, 1, 255}
        assert np.isfinite(item["organ_position"]).all()


@pytest.mark.slow
@needs_fork
def test_a_killed_process_and_its_restart(scans, whole, tmp_path):
    """One is killed over its second scan with half a label, and torchrun stops the other there."""
    out = tmp_path / "out"
    notes, said = scans.torchrun(out, tmp_path / "killed", plans=[["", "hang"], ["", "kill"]])
    assert "SIGKILL" in said
    assert [len(names) for names in notes] == [2, 2]
    first, second = notes
    assert not set(first) & set(second)
    finished = {names[0] for names in notes}
    left = contents(out)
    assert {name for name in left if name.endswith(".json")} == {
        name.replace(".nii.gz", "_pseudo.json") for name in finished
    }
    broken = second[1].replace(".nii.gz", "_pseudo.nii.gz")
    assert left[broken] == whole[broken][: len(left[broken])] != whole[broken]

    notes, statuses = scans.forked(out, tmp_path / "restarted")
    assert statuses == [0, 0]
    assert sorted(notes[0] + notes[1]) == sorted(scans.names - finished)
    assert contents(out) == whole

    # nothing but one scan is left, so one process has none
    (out / broken).unlink()
    notes, statuses = scans.forked(out, tmp_path / "one_left")
    assert statuses == [0, 0]
    assert [second[1]] == notes[0] + notes[1]
    assert contents(out) == whole
