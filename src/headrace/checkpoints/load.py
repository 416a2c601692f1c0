"""From the file to a network in its final place and precision, each value held once.

Every parameter is allocated once, on its device and in its dtype, and filled by reading straight into it, or through
one small buffer where the dtype or the device differs. Nothing is mapped, and no second copy of a tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor, nn

from headrace.checkpoints.components import Component
from headrace.checkpoints.headers import TensorEntry
from headrace.checkpoints.layouts import Assembly
from headrace.checkpoints.quantised import SCALE
from headrace.errors import RequestError
from headrace.quant.codecs import decode_fp8, decode_int8
from headrace.quant.linear import QuantisedLinear

BUFFER_BYTES = 8 * 2**20

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
}

CODES = frozenset({torch.float8_e4m3fn, torch.int8})


def fill_module(module: nn.Module, component: Component, device: torch.device | str, name: str = "") -> None:
    """Allocates a module that was built on the meta device in its final dtypes, and reads its parameters and buffers.

    name: what the module is called in the component's plan, where it is only a part of the network.
    Values are converted where they are stored in another format, eight-bit ones by rows of a few MiB; what is not
    stored is zero, or one for a scale. Afterwards the module is in evaluation mode and wants no gradients.
    Raises RequestError when a file ends early or cannot be read.
    """
    _allocate(module, device)
    module.eval()
    with StoredTensors(component) as stored:
        read_module(module, stored, name)


def read_module(module: nn.Module, stored: StoredTensors, name: str = "") -> None:
    """Reads the parameters and buffers of a module that has its memory; otherwise as `fill_module`."""
    for part_name, part in module.named_modules(prefix=name, remove_duplicate=False):
        if isinstance(part, QuantisedLinear) and stored.component.formats.get(part_name) != part.format:
            for first, values in stored.decoded_rows(f"{part_name}.weight"):
                part.encode(first, values.to(part.weight.device))
            continue
        for own_name, target in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            stored.read(f"{part_name}.{own_name}" if part_name else own_name, target)


class StoredTensors:
    """The tensors of a component by our names, read from its files, which are open within a `with` statement."""

    def __init__(self, component: Component, open_file: Callable[[Path], FileIO] = FileIO) -> None:
        self.component = component
        self._open_file = open_file
        self._buffer = bytearray(BUFFER_BYTES)
        self._files: dict[Path, FileIO] = {}

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def read(self, name: str, target: Tensor) -> None:
        """Fills a contiguous tensor; zeros, or ones for a scale, where nothing is stored by that name.

        Eight-bit weights are decoded unless the target is in the dtype of their codes.
        """
        if name not in self.component.plan:
            target.fill_(name.endswith(SCALE))
        elif name.removesuffix(".weight") not in self.component.formats or target.dtype in CODES:
            self._read(self.component.plan[name], target.reshape(-1))
        else:
            for first, values in self.decoded_rows(name):
                target[first : first + len(values)] = values

    def decoded_rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The rows of a matrix in float32, some at a time, and the number of the first."""
        shape = self.component.plan[name].shape
        step = max(1, BUFFER_BYTES // (4 * shape[1]))
        for first in range(0, shape[0], step):
            yield first, self.decoded(name, first, min(step, shape[0] - first))

    def decoded(self, name: str, first: int, count: int) -> Tensor:
        """`count` rows of a tensor in float32, from row `first` on."""
        form = self.component.formats.get(name.removesuffix(".weight"))
        if form is None:
            assembly = self.component.plan[name].rows(first, count)
            values = torch.empty(assembly.shape)
            self._read(assembly, values.view(-1))
            return values
        codes, scales = self.codes(name, first, count)
        if form.bits == "int8":
            return decode_int8(codes, scales)
        values = torch.empty(codes.shape)
        decode_fp8(codes, scales, values)
        return values

    def codes(self, name: str, first: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` rows of an eight-bit weight as they are stored, from row `first` on, and their scales or scale."""
        layer = name.removesuffix(".weight")
        form = self.component.formats[layer]
        assembly = self.component.plan[name].rows(first, count)
        codes = torch.empty(assembly.shape, dtype=torch.float8_e4m3fn if form.bits == "fp8" else torch.int8)
        self._read(assembly, codes.view(-1))
        scales = torch.ones(count if form.scales == "row" else ())
        stored = self.component.plan.get(f"{layer}.{SCALE}")
        if stored is not None:
            self._read(stored.rows(first, count) if form.scales == "row" else stored, scales.view(-1))
        return codes, scales

    def _read(self, assembly: Assembly, values: Tensor) -> None:
        start = 0
        for entry, offset, count in stored_ranges(assembly, self.component.tensors):
            if entry.file not in self._files:
                self._files[entry.file] = _opened(entry.file, self._open_file)
            _read(self._files[entry.file], entry, offset, values[start : start + count], self._buffer)
            start += count


def _allocate(module: nn.Module, device: torch.device | str) -> None:
    # Module.to_empty and empty_like would do, but make torch import its symbolic algebra: 35 MB and half a second.
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(_allocated(parameter, device), requires_grad=False))
        for name, statistic in part.named_buffers(recurse=False):
            setattr(part, name, _allocated(statistic, device))


def _allocated(tensor: Tensor, device: torch.device | str) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def stored_ranges(assembly: Assembly, tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[TensorEntry, int, int]]:
    """Where the values of a tensor are stored, in order: the entry, its first value, and how many from there."""
    for part in assembly.parts:
        entry = tensors[part.tensor]
        row = entry.elements // (entry.shape[0] if entry.shape else 1)
        yield entry, part.first * row, part.count * row


def _opened(path: Path, open_file: Callable[[Path], FileIO]) -> FileIO:
    try:
        return open_file(path)
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
