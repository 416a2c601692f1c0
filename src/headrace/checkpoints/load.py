"""From the file to a network in its final place and precision, each value held once.

Every parameter is allocated once, on its device and in its dtype, and filled by reading straight into it, or through
one small buffer where the dtype or the device differs. Nothing is mapped, and no second copy of a tensor exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor, nn

from headrace.checkpoints.headers import TensorEntry
from headrace.checkpoints.layouts import Assembly
from headrace.errors import RequestError

BUFFER_BYTES = 8 * 2**20

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def fill_module(
    module: nn.Module,
    plan: Mapping[str, Assembly],
    tensors: Mapping[str, TensorEntry],
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Allocates a module that was built on the meta device, and reads its parameters and buffers.

    plan: how the entries of the module's state dict are made of the stored `tensors`; one without a plan is set to
    zero. Floating-point values are converted to `dtype`.
    Afterwards the module is in evaluation mode and wants no gradients.
    Raises RequestError when a file ends early or cannot be read.
    """
    _allocate(module, dtype, device)
    module.eval()
    buffer = bytearray(BUFFER_BYTES)
    with ExitStack() as stack:
        files: dict[Path, FileIO] = {}
        for name, target in module.state_dict().items():
            if name not in plan:
                target.zero_()
                continue
            values, start = target.reshape(-1), 0
            for entry, offset, count in stored_ranges(plan[name], tensors):
                if entry.file not in files:
                    files[entry.file] = stack.enter_context(_opened(entry.file))
                _read(files[entry.file], entry, offset, values[start : start + count], buffer)
                start += count


def _allocate(module: nn.Module, dtype: torch.dtype, device: torch.device | str) -> None:
    # Module.to_empty would do, but makes torch import its symbolic algebra: 35 MB and half a second.
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(part, name, nn.Parameter(values, requires_grad=False))
        for name, statistic in part.named_buffers(recurse=False):
            kept = dtype if statistic.is_floating_point() else statistic.dtype
            setattr(part, name, torch.empty(statistic.shape, dtype=kept, device=device))


def stored_ranges(assembly: Assembly, tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[TensorEntry, int, int]]:
    """Where the values of a tensor are stored, in order: the entry, its first value, and how many from there."""
    for part in assembly.parts:
        entry = tensors[part.tensor]
        row = entry.elements // (entry.shape[0] if entry.shape else 1)
        yield entry, part.first * row, part.count * row


def _opened(path: Path) -> FileIO:
    try:
        return FileIO(path, "rb")
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read(file: FileIO, entry: TensorEntry, first: int, target: Tensor, buffer: bytearray) -> None:
    """Fills the flat, contiguous `target` with values of a stored tensor, from its value `first` on."""
    stored = TORCH_DTYPES[entry.dtype]
    position = entry.offset + first * stored.itemsize
    if stored == target.dtype and target.device.type == "cpu":
        _read_exactly(file, position, target.view(torch.uint8).numpy().data)
        return
    step = BUFFER_BYTES // stored.itemsize
    for start in range(0, target.numel(), step):
        piece = target[start : start + step]
        size = piece.numel() * stored.itemsize
        _read_exactly(file, position + start * stored.itemsize, memoryview(buffer)[:size])
        piece.copy_(torch.frombuffer(buffer, dtype=stored, count=piece.numel()))


def _read_exactly(file: FileIO, position: int, into: memoryview) -> None:
    try:
        file.seek(position)
        done = 0
        while done < len(into):
            count = file.readinto(into[done:])
            if not count:
                raise RequestError(f"{file.name} became shorter while it was read.")
            done += count
    except OSError as error:
        raise RequestError(f"{file.name} cannot be read: {error.strerror or error}.") from error
