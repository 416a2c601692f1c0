"""The run folder of a training: its state on disk, its log, its pictures. A run that was cut off goes on from it.

``state.safetensors`` holds every tensor that the next step depends on, and the step itself in its header, so that one
rename replaces the whole state; ``log.csv`` one row per logged step; ``pictures/`` grids of samples.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from headrace.errors import RequestError

STATE = "state.safetensors"
LOG = "log.csv"


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path) -> None:
    """Writes a safetensors file beside ``file`` and renames it: readers see the old file or the new one, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=dict(metadata))
    partial.replace(file)


def save_state(
    folder: Path,
    *,
    step: int,
    config: Mapping[str, object],
    model: nn.Module,
    average: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Stores all that the steps after ``step`` depend on: weights, their moving average, the optimizers' moments."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    save_tensors(tensors, {"step": str(step), "config": json.dumps(config)}, folder / STATE)


def load_state(
    folder: Path, model: nn.Module, average: dict[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """The inverse of ``save_state``; returns the step to go on from. Raises RequestError when there is no state."""
    file = folder / STATE
    if not file.is_file():
        raise RequestError(f"{folder} holds no {STATE} to resume from: start this run without --resume.")
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        step = int(stored.metadata()["step"])
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    average.update({n.removeprefix("average."): t for n, t in tensors.items() if n.startswith("average.")})
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                index, moment = name.split(".", 3)[2:]
                moments.setdefault(int(index), {})[moment] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    return step


def read_average(folder: Path) -> dict[str, Tensor]:
    """The moving average of the weights in a run folder: what is worth shipping."""
    with safe_open(folder / STATE, framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith("average.")]  # noqa: SIM118
        return {name.removeprefix("average."): stored.get_tensor(name) for name in names}


def update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the model; early on faster, so that the random start is soon forgotten."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    names, tensors = zip(*model.state_dict().items(), strict=True)
    moving = [average[name] for name in names]
    floating = [index for index, tensor in enumerate(tensors) if tensor.is_floating_point()]
    torch._foreach_lerp_([moving[index] for index in floating], [tensors[index] for index in floating], rate)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's random numbers: nothing is carried from step to step, so nothing has to be stored."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def append_log(folder: Path, row: Mapping[str, float | int]) -> None:
    """One more row in ``log.csv``; the header comes from the first."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = not (folder / LOG).exists()
    with (folder / LOG).open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size -> (B, 3, H, W) in [-1, 1]."""
    stacked = torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures])
    width, height = pictures[0].size
    return stacked.view(len(pictures), height, width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: Tensor) -> Iterator[Image.Image]:
    """(B, 3, H, W) around [-1, 1] -> RGB pictures."""
    for image in images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1):
        yield Image.fromarray(image.contiguous().numpy())


def save_grid(pictures: Sequence[Image.Image], file: Path, *, columns: int = 8) -> None:
    """Writes pictures of one size as one PNG, row by row."""
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for index, picture in enumerate(pictures):
        grid.paste(picture, ((index % columns) * width, (index // columns) * height))
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.save(file)
