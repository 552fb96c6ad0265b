"""A pool of unlabelled scans, which any number of processes pseudo-label together.

Words used here. A *record* is a small JSON file beside a pseudo-label and written after it: the
label's checksum, the position of the prior, and what both were made with. A scan is *done* when its
record agrees with the files and the present settings; any other scan is done anew. A process
*claims* a scan by locking a file beside the record; the operating system takes the lock from a
process that ends, however it ends.

Claims are all that processes share. No process group is formed and none waits for another: their
scans take unequal time, one may find nothing left to do, and one that was killed leaves its scan to
the others or to the next start. Whoever finds every scan done writes the datalist; if two do, they
write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events
from monai.data import FolderLayout
from torch.utils.data import Sampler

from stipple_monai.data import files_of_item, read_sections, write_datalist
from stipple_monai.errors import DatasetError
from stipple_monai.files import fingerprint, read_json, sha256, write_json
from stipple_monai.inferers import POSITION_META
from stipple_monai.priors import SpatialPrior
from stipple_monai.transforms import POSITION_KEY

_log = logging.getLogger(__name__)


class PseudoLabelPool(Sampler[int]):
    """Hand out the scans that need a pseudo-label, and list the labels when all are there.

    It is both the sampler of the data loader and a handler of the evaluator. The new datalist holds
    the sections of the old one; each unlabelled scan moves to ``training`` with its saved
    ``label``, the position that its prior had (``organ_position``; without it the partly labelled
    map would be measured instead), and under ``pseudo_label`` where the label comes from. It is
    removed while labels that it lists are made anew.

    Args:
        datalist: the datalist with the unlabelled scans.
        path: the datalist to write.
        folder: where ``SaveImaged`` puts the labels, and the records go, ``SCAN_pseudo.json``. The
            processes must share it, on a file system with locks.
        provenance: what the new datalist says of every pseudo-label: model, γ, round.
        settings: what else the labels depend on, of JSON's types and tensors.
        networks: their weights count as settings, as they are when the first scan is asked for.
        priors: likewise.
        section: where the unlabelled scans are.
        pred_key: the saved prediction in the engine's output; ``SaveImaged`` must have left the
            file name in its metadata (``savepath_in_metadict=True``).
        image_key: the scan in the engine's output.

    Raises:
        DatasetError: ``path`` is the datalist itself, or two scans would share a file name; while
            running, a scan is not from this pool.
        TypeError: while running, something that counts as a setting is not of JSON's types.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.nii.gz", "b.nii.gz"):
        ...     (folder / name).touch()
        >>> write_datalist(
        ...     folder / "old.json", {"unlabelled": [{"image": p} for p in folder.glob("*.gz")]}
        ... )
        >>> options = {"folder": folder, "provenance": {"round": 1}}
        >>> one, other = (
        ...     iter(PseudoLabelPool(folder / "old.json", folder / "new.json", **options))
        ...     for _ in range(2)
        ... )
        >>> next(one), next(other), next(one, "the rest is claimed")
        (0, 1, 'the rest is claimed')
    """

    def __init__(
        self,
        datalist: str | Path,
        path: str | Path,
        *,
        folder: str | Path,
        provenance: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        networks: Sequence[torch.nn.Module | None] = (),
        priors: Sequence[SpatialPrior] = (),
        section: str = "unlabelled",
        pred_key: str = "pred",
        image_key: str = "image",
    ) -> None:
        if os.path.realpath(path) == os.path.realpath(datalist):
            raise DatasetError(
                f"`path` must not be the datalist of the unlabelled scans, got {path}: it would be "
                "lost with the first scan. Give the new datalist another name."
            )
        self.path, self.folder = Path(path), Path(folder)
        self.sections, self.section = read_sections(datalist), section
        self.provenance, self.settings = dict(provenance), dict(settings or {})
        self.networks = [network for network in networks if network is not None]
        self.priors = list(priors)
        self.pred_key, self.image_key = pred_key, image_key
        self._records: dict[str, Path] = {}
        self._stamps: dict[str, str] = {}
        self._list_scans()
        self._claims: dict[str, FileLock] = {}
        self._made_with: dict[str, Any] = {}

    def _list_scans(self) -> None:
        """Give each scan its record and fingerprint."""
        # named as SaveImaged names the label
        layout = FolderLayout(str(self.folder), postfix="pseudo", extension=".json")
        for item in self.sections[self.section]:
            files = files_of_item(item, ("image",))
            scan, record = os.path.abspath(files[0]), Path(layout.filename(subject=files[0]))
            if record in self._records.values():
                raise DatasetError(
                    f"`datalist` must give its {self.section} scans different file names, got "
                    f"{record.name} for two of them, one of which is {scan}. Rename one."
                )
            self._records[scan] = record
            self._stamps[scan] = fingerprint(*files)

    def __iter__(self) -> Iterator[int]:
        """Claim scans one by one and give their index in the section, until none is left.

        What another process had claimed and left undone is claimed after the rest. There is no
        ``__len__``, because nobody knows how many scans this process will do.
        """
        self._made_with = self._make_with()
        left, before = dict(enumerate(self._records)), -1
        while len(left) != before:
            before = len(left)
            for index, scan in list(left.items()):
                if self._claim(scan):
                    del left[index]
                    yield index

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._take)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)
        engine.add_event_handler(Events.COMPLETED, lambda: self._close())

    def _claim(self, scan: str) -> bool:
        if scan in self._claims or self._done(scan):
            return False
        record = self._records[scan]
        record.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(record.with_suffix(".lock"), blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return False
        if self._done(scan):  # between the first look and the lock
            _release(lock)
            return False
        # The label is about to be overwritten in place: nothing may vouch for it until it is whole.
        record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._claims[scan] = lock
        return True

    def _take(self, engine: Engine) -> None:
        for item in engine.state.output:
            scan = os.path.abspath(item[self.image_key].meta["filename_or_obj"])
            if scan not in self._claims:
                raise DatasetError(
                    f"Scans must be those that the pool gave out, got {scan}: make the pool the "
                    "sampler of the evaluator's data loader."
                )
            meta = item[self.pred_key].meta
            label = Path(meta["saved_to"])
            entry: dict[str, Any] = {}
            if POSITION_META in meta:
                points = meta[POSITION_META].tolist()
                entry[POSITION_KEY] = [[None if math.isnan(x) else x for x in p] for p in points]
            record = {
                "label": os.path.relpath(label, self.folder),
                "label_sha256": sha256(label),
                "entry": entry,
                "scan": self._stamps[scan],
                "made_with": self._made_with,
            }
            write_json(self._records[scan], record)
            _release(self._claims.pop(scan))

    def _give_up(self, error: BaseException) -> None:
        # A traceback kept by a notebook would keep the locks from its next run.
        for lock in self._claims.values():
            lock.release()
        self._claims.clear()
        raise error

    def _close(self) -> None:
        found = [self._done(scan) for scan in self._records]
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            _log.info(
                f"Scans not done yet: {len(found) - len(entries)}. The process that does the last "
                f"of them writes {self.path}."
            )
            return
        items = zip(self.sections[self.section], entries, strict=True)
        moved = [{**item, **entry, "pseudo_label": self.provenance} for item, entry in items]
        training = [*self.sections.get("training", []), *moved]
        write_datalist(self.path, {**self.sections, self.section: [], "training": training})

    def _done(self, scan: str) -> dict[str, Any] | None:
        """What the datalist will say of a scan, or None for one that is not done."""
        try:
            record = read_json(self._records[scan])
            label = self.folder / record["label"]
            same = record["scan"] == self._stamps[scan] and record["made_with"] == self._made_with
            if not same or record["label_sha256"] != sha256(label):
                return None
            return {"label": os.path.abspath(label), **record["entry"]}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _make_with(self) -> dict[str, Any]:
        weights = [network.state_dict() for network in self.networks]
        everything = {
            **self.settings,
            "provenance": self.provenance,
            "weights": [_sha256(_bytes(state.values())) for state in weights],
            # What single labels contributed makes no difference to what is predicted.
            "priors": [
                {k: v for k, v in vars(prior).items() if k != "cases"} for prior in self.priors
            ],
        }
        # as it will be read back: tuples are lists, for instance
        return json.loads(json.dumps(everything, default=_plain))


def _release(lock: FileLock) -> None:
    """Release a lock whose record is there; no file need stay of it, since the record tells."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _plain(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _sha256(_bytes([value]))
    # Not `str`: where that is an address, no process would know the records of another.
    raise TypeError(
        f"`settings` must hold JSON and tensors, got {type(value)}: give its name or its numbers."
    )


def _bytes(tensors: Iterable[torch.Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
