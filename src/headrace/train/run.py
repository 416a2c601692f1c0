"""The run folder of a training: its state on disk, its log, its pictures. A run that was cut off goes on from it.

``state.safetensors`` holds every tensor that the next step depends on, and the step itself in its header, so that one
rename replaces the whole state; ``log.csv`` one row per logged step, ``scores.csv`` one per time that the network was
scored; ``pictures/`` grids of samples.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from headrace.errors import RequestError
from headrace.flow.references import image_to_tensor
from headrace.train.settings import Settings, from_table

STATE = "state.safetensors"
LOG = "log.csv"
SCORES = "scores.csv"


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> None:
    """Writes a safetensors file beside ``file`` and renames it: readers see the old file or the new one, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=dict(metadata))
    partial.replace(file)


def save_state(
    folder: Path,
    step: int,
    settings: Mapping[str, object],
    network: nn.Module,
    average: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Stores all that the steps after ``step`` depend on: weights, their moving average, the optimizers' moments."""
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    save_tensors(tensors, {"step": str(step), "settings": json.dumps(settings)}, folder / STATE)


def load_state(
    folder: Path,
    settings: Mapping[str, object],
    network: nn.Module,
    average: dict[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> int:
    """The inverse of ``save_state``; returns the step to go on from, and cuts the logs back to it.

    Raises RequestError when there is no state, or when it was reached with settings other than these.
    """
    file = folder / STATE
    if not file.is_file():
        raise RequestError(f"{folder} holds no {STATE} to resume from: start this run without --resume.")
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    _check_same(file, json.loads(metadata["settings"]), json.loads(json.dumps(settings)))
    network.load_state_dict(_below("model.", tensors))
    average.update(_below("average.", tensors))
    for number, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(f"optimizer.{number}.", tensors).items():
            index, moment = name.split(".", 1)
            moments.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    step = int(metadata["step"])
    for name in (LOG, SCORES):
        _cut_log(folder / name, step)
    return step


CHANGEABLE = {"steps", "decay", "save_every", "log_every", "score_every", "score_pictures"}
"""Settings that may change when a run goes on: how long it is, and how often it is looked at."""


def _check_same(file: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name in sorted(stored.keys() | given.keys()):
        before, now = stored.get(name), given.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            _check_same(file, before, now)
        elif before != now and name not in CHANGEABLE:
            raise RequestError(f"{file} was trained with {name} {before}, not {now}: resume it with the same.")


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def described(folder: Path, kind: type[Settings]) -> tuple[int, Settings]:
    """How many steps the run in a folder has taken, and how it was set up.

    Raises RequestError where there is none, or one of another kind.
    """
    step, table = described_as_table(folder)
    return step, from_table(folder / STATE, kind, table)


def described_as_table(folder: Path) -> tuple[int, dict[str, Any]]:
    """As `described`, of a run of any kind."""
    file = folder / STATE
    if not file.is_file():
        raise RequestError(f"{folder} holds no {STATE}: train there first.")
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    return int(metadata["step"]), json.loads(metadata["settings"])


def read_average(folder: Path) -> dict[str, Tensor]:
    """The moving average of the weights in a run folder: what is worth shipping."""
    with safe_open(folder / STATE, framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith("average.")]  # noqa: SIM118
        return {name.removeprefix("average."): stored.get_tensor(name) for name in names}


def update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the model; early on faster, so that the random start is soon forgotten."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, rate)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's random numbers: nothing is carried from step to step, so nothing has to be stored."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def append_log(folder: Path, step: int, figures: Mapping[str, float], name: str = LOG) -> None:
    """One more row in a log of the folder; the header comes from the first."""
    file = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a", encoding="utf-8", newline="") as log:
        rows = csv.writer(log, lineterminator="\n")
        if new:
            rows.writerow(("step", *figures))
        rows.writerow((step, *(f"{value:.6g}" for value in figures.values())))


def _cut_log(file: Path, step: int) -> None:
    """Drops the rows of steps after ``step``, which a resumed run will take again."""
    if file.exists():
        header, *rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if int(row.split(",", 1)[0]) <= step]
        partial = file.with_name(file.name + ".partial")
        partial.write_text(header + "".join(kept), encoding="utf-8")
        partial.replace(file)


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size -> (B, 3, H, W) in [-1, 1]."""
    return torch.cat([image_to_tensor(picture) for picture in pictures])


def save_grid(pictures: Sequence[Image.Image], file: Path, *, columns: int = 8) -> None:
    """Writes pictures of one size as one PNG, row by row."""
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for index, picture in enumerate(pictures):
        grid.paste(picture, ((index % columns) * width, (index // columns) * height))
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.save(file)
