"""A plan: an overlay on every config of the bundle, with the reason for each value."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from stipple_monai.bundle import BUNDLE, check_knobs, configs_of, part_of
from stipple_monai.errors import DatasetError
from stipple_monai.files import write_text
from stipple_monai.planning import rules
from stipple_monai.planning.fingerprint import Fingerprint, take_fingerprint
from stipple_monai.planning.memory import (
    GPU_SHARE,
    STATES,
    device_bytes,
    machine_bytes,
    make_network,
    step_bytes,
)
from stipple_monai.planning.rules import Choice

EPOCHS = {"cuda": 100, "cpu": 50}
BATCHES = {2: (12, 8, 6, 4, 2), 3: (4, 2)}
BASES = {"cuda": (32, 16), "cpu": (16, 8)}
PAPER = {
    "channels": Choice([64, 128, 256, 512, 1024], "the paper's U-Net"),
    "slice_size": Choice([512, 512], "the paper's"),
    "spacing_mm": Choice([-1, -1, -1], "the paper leaves scans as they are"),
    "max_epochs": Choice(25, "the paper's"),
    "batch_size": Choice(6, "the paper's"),
    "learning_rate": Choice(0.0001, "the paper's"),
    "prior_spacing_mm": Choice(None, "the grid of the first label"),
}
_PARTS = {
    "organs": "what is segmented",
    "percentiles": "intensities",
    "spacing_mm": "grid and network",
    "max_epochs": "schedule",
    "prior_spacing_mm": "prior",
    "num_workers": "machine",
}


@dataclass(frozen=True)
class Plan:
    """An overlay and what it was made of.

    Args:
        choices: by knob, in the order of the file.
        fingerprint: of the data.
        dimensions: of the network, 2 or 3.
        source: name of the datalist's folder and file.
    """

    choices: Mapping[str, Choice]
    fingerprint: Fingerprint
    dimensions: int
    source: str

    def text(self, bundle: str | Path = BUNDLE) -> str:
        """The overlay as YAML, each value behind its reason."""
        f = self.fingerprint
        head = (
            f"Overlay on every config: a plan for {self.source}, {f.scans} scans, {f.labelled} "
            f"with labels ({f.modality}), made by `stipple plan`. Change what you like."
        )
        lines = [*_comment(head)]
        for name, (value, why) in self.choices.items():
            if name in _PARTS:
                lines += ["", f"# {_PARTS[name]}"]
            lines += [*_comment(f"{name}: {why}"), f"{name}: {_yaml(value)}"]
        if self.dimensions == 3:
            lines += ["", *_patches(configs_of(bundle), set(self.choices))]
        return "\n".join(lines) + "\n"

    def write(self, path: str | Path, bundle: str | Path = BUNDLE) -> Path:
        """Write the overlay, whole or not at all."""
        write_text(path, self.text(bundle))
        return Path(path)


def make_plan(
    datalist: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    options: Mapping[str, Any] | None = None,
    dimensions: int | None = None,
    paper: bool = False,
    device: str | None = None,
    memory_gib: float | None = None,
    progress: bool = True,
) -> Plan:
    """Look at a data set and choose every setting of the bundle that depends on it.

    Args:
        datalist: JSON in the style of the MSD, with labelled scans in ``training``.
        bundle: folder of the bundle.
        options: knobs that are given; what follows from them follows.
        dimensions: of the network, 2 or 3; chosen if None.
        paper: intensities, network and schedule of the paper.
        device: ``cuda`` or ``cpu``; the GPU if None and there is one.
        memory_gib: of the GPU that will train, where it is another than this machine's, such as on
            the login node of a cluster.
        progress: tell how far it is.

    Raises:
        DatasetError: see `take_fingerprint`.
        ValueError: no config has one of the ``options``, or it is within a part of a config,
            ``dimensions`` is not 2 or 3, a window is
            given for channels of several modalities, or the memory of the GPU is neither given nor
            here to be asked.
    """
    if dimensions not in (None, 2, 3):
        raise ValueError(f"`dimensions` must be 2 or 3, got {dimensions}: leave it out.")
    given = dict(options or {})
    rules.refuse_nested(given)
    configs = configs_of(bundle)
    more = ["patch_3d"] if dimensions == 3 else []
    check_knobs(configs, ["prior", "train", "inference", *more], given)
    device, probe, room = _trained_on(device, memory_gib)
    found = take_fingerprint(datalist, progress=progress)
    rules.refuse_window(found, given)
    flat = rules.choose_dimensions(found, device=device)
    if dimensions is not None or paper:
        flat = Choice(dimensions or 2, "given" if dimensions else "the paper's")
    picked = _Choices(given)
    _choose_data(picked, found, paper=paper)
    if paper:
        for name, choice in {**PAPER, **_recipe(configs)}.items():
            picked.take(name, choice)
    _choose_network(picked, found, flat, device, configs, probe, room)
    _choose_run(picked, found, device)
    rest = {name: Choice(value, "given") for name, value in given.items() if name not in picked}
    path = Path(datalist).resolve()
    source = f"{path.parent.name}/{path.name}"
    return Plan({**_ordered(picked), **rest}, found, flat.value, source)


def plan_once(
    datalist: str | Path,
    path: str | Path,
    *,
    bundle: str | Path = BUNDLE,
    options: Mapping[str, Any] | None = None,
    paper: bool = False,
) -> Fingerprint | None:
    """Write a plan, unless it is there.

    Args:
        datalist: as for `make_plan`.
        path: of the plan.
        bundle: as for `make_plan`.
        options: likewise; those within a part of a config are not the plan's.
        paper: likewise.

    Returns:
        The figures it was made of, or None where it is there.
    """
    if Path(path).is_file():
        return None
    whole = {name: value for name, value in (options or {}).items() if part_of(name) == name}
    made = make_plan(datalist, bundle=bundle, options=whole, paper=paper)
    made.write(path, bundle)
    print(f"plan: {path}", flush=True)
    return made.fingerprint


def _trained_on(device: str | None, memory_gib: float | None) -> tuple[str, torch.device, float]:
    """What trains, where a step is measured, and the bytes that it may take."""
    here = torch.cuda.is_available()
    if device is None:
        device = "cuda" if here or memory_gib is not None else "cpu"
    if device not in BASES:
        raise ValueError(f"`device` must be cuda or cpu, got {device}.")
    if memory_gib is None:
        if device == "cuda" and not here:
            raise ValueError(
                "`device` must be here to be asked for its memory, got cuda, and this machine has "
                "no GPU: give `memory_gib`, such as --memory-gib 24, or plan where you train."
            )
        return device, torch.device(device), device_bytes(torch.device(device))
    if device == "cpu" or not memory_gib > 0:
        raise ValueError(
            f"`memory_gib` must be a GPU's, above 0, got {memory_gib} for {device}: leave it out."
        )
    return device, torch.device("meta"), memory_gib * 2**30 * GPU_SHARE


class _Choices(dict[str, Choice]):
    """Choices so far; a value that is given wins, and what follows is told of it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.given = given

    def take(self, name: str, choice: Choice) -> Any:
        if name not in self:
            if name in self.given:
                choice = Choice(
                    self.given[name], f"given; else {_yaml(choice.value)}, {choice.why}"
                )
            self[name] = choice
        return self[name].value


def _choose_data(picked: _Choices, found: Fingerprint, *, paper: bool) -> None:
    organs = picked.take("organs", rules.choose_organs(found))
    rules.refuse_ignored(found, organs)
    picked.take("organ_names", rules.told_organs(found.organs, organs))
    picked.take("background_values", rules.choose_background(found, organs))
    picked.take("image_channels", Choice(found.channels, f"of a scan, {found.modality}"))
    for name, choice in rules.choose_intensity(found, paper=paper).items():
        picked.take(name, choice)


def _choose_network(
    picked: _Choices,
    found: Fingerprint,
    flat: Choice,
    device: str,
    configs: Path,
    probe: torch.device,
    room: float,
) -> None:
    dimensions = flat.value
    spacing = rules.choose_spacing(found, dimensions, device=device)
    spacing = Choice(spacing.value, f"{dimensions}D, since {flat.why}; {spacing.why}")
    spacing_mm = picked.take("spacing_mm", spacing)
    key = "slice_size" if dimensions == 2 else "patch_size"
    size = picked.take(key, rules.choose_size(found, spacing_mm, dimensions, device=device))
    channels, batch, why = _fit(picked, found, size, device, configs, probe=probe, room=room)
    picked.take("channels", channels)
    batch = picked.take("batch_size", Choice(batch, why))
    picked.take("sw_batch_size", Choice(2 * batch, "in inference, which keeps no gradients"))
    organs = picked["organs"].value
    for name, choice in rules.choose_prior(found, spacing_mm, organs).items():
        picked.take(name, choice)


def _recipe(configs: Path) -> dict[str, Choice]:
    """What the overlay paper sets."""
    values = yaml.safe_load((configs / "paper.yaml").read_text(encoding="utf-8"))
    return {name: Choice(value, "the paper's") for name, value in values.items()}


def _fit(
    picked: _Choices,
    found: Fingerprint,
    size: Sequence[int],
    device: str,
    configs: Path,
    *,
    probe: torch.device,
    room: float,
) -> tuple[Choice, int, str]:
    """The largest network and batch whose measured step fits the device's memory."""
    how = "counted for a GPU that is not here" if probe.type == "meta" else "measured"
    dimensions = len(size)
    organs = len(picked["organs"].value)
    for base in BASES[device]:
        channels = rules.choose_channels(size, dimensions, device=device, base=base)
        if "channels" in picked.given:
            channels = channels._replace(value=picked.given["channels"])
        elif "channels" in picked:
            channels = picked["channels"]
        network = make_network(
            configs,
            dimensions,
            image_channels=found.channels,
            organs=organs,
            channels=channels.value,
        )
        # What a batch of other size takes follows from one of two.
        shape = [2, found.channels + organs, *size]
        used = _used(network, shape, probe)
        weights = STATES * sum(p.numel() * p.element_size() for p in network.parameters())
        for batch in BATCHES[dimensions]:
            if (needed := weights + (used - weights) * batch / 2) <= room:
                told = f"a step takes {needed / 2**30:.2f} of {room / 2**30:.0f} GiB, {how}"
                return channels, batch, told
    raise DatasetError(
        f"A training step must fit the device's memory, {room / 2**30:.1f} GiB on {device}, got "
        f"slices or patches of {list(size)}: give a smaller size or coarser spacing with --set."
    )


def _used(network: torch.nn.Module, shape: Sequence[int], device: torch.device) -> float:
    try:
        return step_bytes(network, shape, device)
    except torch.OutOfMemoryError:
        return math.inf


def _choose_run(picked: _Choices, found: Fingerprint, device: str) -> None:
    epochs = picked.take("max_epochs", Choice(EPOCHS[device], "of equal length"))
    batch = picked["batch_size"].value
    steps = rules.choose_steps(found, batch, device=device, epochs=epochs)
    picked.take("slices_per_scan", steps)
    every = max(1, epochs // 10) if device == "cpu" else 1
    picked.take("val_interval", Choice(every, "epochs between two validations"))
    picked.take("learning_rate", Choice(0.001, "for Adam, decays to a tenth"))
    workers = 0 if device == "cpu" else min(8, max(1, (os.cpu_count() or 1) - 1))
    told = "processors are busy with the network" if device == "cpu" else "processors that are free"
    picked.take("num_workers", Choice(workers, told))
    spacing_mm = picked["spacing_mm"].value
    picked.take("cache_rate", rules.choose_cache(found, spacing_mm, machine_bytes()))


def _ordered(picked: _Choices) -> dict[str, Choice]:
    first = [
        *("organs", "organ_names", "background_values", "image_channels"),
        *("percentiles", "window_hu", "mean_hu", "std_hu"),
        *("spacing_mm", "slice_size", "patch_size", "channels", "batch_size", "sw_batch_size"),
        *("max_epochs", "slices_per_scan", "val_interval", "learning_rate"),
        *("prior_spacing_mm", "bins", "smoothing_mm", "center", "prior_dropout"),
    ]
    last = ("num_workers", "cache_rate")
    others = [name for name in picked if name not in (*first, *last)]
    return {name: picked[name] for name in [*first, *others, *last] if name in picked}


def _patches(configs: Path, chosen: set[str]) -> list[str]:
    """The overlay patch_3d without the knobs that the plan has, and without its folders."""
    out = {*chosen, "models_dir", "output_dir"}
    text = (configs / "patch_3d.yaml").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(text) if not line.startswith("#"))
    kept = [line for line in text[first:] if line.partition(":")[0] not in out]
    return ["# patches, as the overlay patch_3d has them", *kept]


def _comment(text: str) -> list[str]:
    lines = textwrap.wrap(text, 96, break_on_hyphens=False, break_long_words=False)
    return [f"# {line}" for line in lines]


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()
