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
from headrace.checkpoints.headers import FLOAT_DTYPES, Shape, TensorEntry
from headrace.checkpoints.layouts import Assembly, Rows
from headrace.checkpoints.quantised import Piece, pieces
from headrace.errors import RequestError
from headrace.quant.decode import DTYPES, decode
from headrace.quant.formats import Format, Part
from headrace.quant.linear import DecodedLinear, Fp8Linear, Int8Linear, QuantisedLinear, SplitLinear, buffer_name

BUFFER_BYTES = 8 * 2**20

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    **DTYPES,
}


def fill_module(module: nn.Module, component: Component, device: torch.device | str, name: str = "") -> None:
    """Allocates a module that was built on the meta device in its final dtypes, and reads its parameters and buffers.

    name: what the module is called in the component's plan, where it is only a part of the network.
    Values are converted where they are stored in another format, by rows of a few MiB; what is not stored is zero.
    Afterwards the module is in evaluation mode and wants no gradients.
    Raises RequestError when a file ends early or cannot be read.
    """
    _allocate(module, device)
    module.eval()
    with StoredTensors(component) as stored:
        read_module(module, stored, name)


def read_module(module: nn.Module, stored: StoredTensors, name: str = "") -> None:
    """Reads the parameters and buffers of a module that has its memory; otherwise as `fill_module`."""
    if isinstance(module, SplitLinear):
        first = 0
        for linear, (count, _) in zip(module.pieces, module.format.pieces, strict=True):
            _read_linear(linear, stored, name, first, count)
            first += count
        return
    if isinstance(module, QuantisedLinear):
        _read_linear(module, stored, name, 0, module.out_features)
        return
    for own_name, target in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        stored.read(f"{name}.{own_name}" if name else own_name, target)
    for child_name, child in module.named_children():
        read_module(child, stored, f"{name}.{child_name}" if name else child_name)


def _read_linear(linear: nn.Module, stored: StoredTensors, layer: str, first: int, count: int) -> None:
    """Reads `count` rows of a layer of ours, from row `first` on, into a linear layer of their own."""
    weight = f"{layer}.weight"
    assembly = stored.component.plan[weight].rows(first, count)
    made = pieces(assembly, stored.component.matrices)
    if isinstance(linear, QuantisedLinear) and made is not None and len(made) == 1 and made[0].form == linear.format:
        for part in linear.format.parts():
            stored.read_part(made[0], part.name, linear.get_buffer(buffer_name(part.name)).view(-1))
    elif isinstance(linear, DecodedLinear):
        raise TypeError(f"{layer} is not stored in the format it is to be kept in")
    else:
        for start, values in stored.decoded_rows(weight, first, count):
            if isinstance(linear, Fp8Linear | Int8Linear):
                linear.encode(start, values.to(linear.weight.device))
            else:
                linear.get_parameter("weight")[start : start + len(values)] = values


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
        """Fills a contiguous tensor with its values; with zeros where nothing is stored by that name."""
        assembly = self.component.plan.get(name)
        if assembly is None:
            target.zero_()
        elif any(part.tensor in self.component.matrices for part in assembly.parts):
            for first, values in self.decoded_rows(name):
                target[first : first + len(values)] = values.view(-1, *target.shape[1:])
        else:
            self._read(assembly, target.reshape(-1))

    def decoded_rows(self, name: str, first: int = 0, count: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """`count` rows of a matrix from row `first` on (default: all) in float32, some at a time.

        Each with the number of its first row among them.
        """
        shape = self.component.plan[name].shape
        count = shape[0] if count is None else count
        step = max(1, BUFFER_BYTES // (4 * shape[1]))
        for start in range(0, count, step):
            yield start, self.decoded(name, first + start, min(step, count - start))

    def decoded(self, name: str, first: int, count: int) -> Tensor:
        """`count` rows of a tensor in float32, from row `first` on."""
        assembly = self.component.plan[name].rows(first, count)
        values = torch.empty(assembly.shape)
        start = 0
        for part in assembly.parts:
            target = values[start : start + part.count]
            if part.tensor in self.component.matrices:
                self._decode(part, target)
            else:
                self._read(Assembly(target.shape, (part,)), target.view(-1))
            start += part.count
        return values

    def _decode(self, part: Rows, target: Tensor) -> None:
        """Rows of a stored matrix in float32; more of them are decoded where they cannot be cut apart."""
        matrix = self.component.matrices[part.tensor]
        rows, width = matrix.shape
        together = matrix.form.together(width)
        first = part.first // together * together
        count = min(rows, -(-(part.first + part.count) // together) * together) - first
        values = torch.empty(count, width)
        decode(matrix.form, self.parts(matrix.form, (Rows(part.tensor, first, count),)), values)
        target.view(part.count, width).copy_(values[part.first - first :][: part.count])

    def stored_parts(self, rows: Rows, form: Format) -> dict[str, Tensor]:
        """The parts of rows of our tensors that are stored in this format, as they are, flat."""
        return self.parts(form, self.component.plan[rows.tensor].rows(rows.first, rows.count).parts)

    def parts(self, form: Format, rows: tuple[Rows, ...]) -> dict[str, Tensor]:
        """The parts of stored rows in this format, as they are, flat."""
        piece = Piece(form, rows)
        result = {}
        for part in form.parts():
            counts = [_part_range(part, each, self.component.matrices[each.tensor].shape) for each in rows]
            result[part.name] = torch.empty(sum(high - low for low, high in counts), dtype=DTYPES[part.dtype])
            self.read_part(piece, part.name, result[part.name])
        return result

    def read_part(self, piece: Piece, name: str, target: Tensor) -> None:
        """Fills a flat tensor with a part of a piece as it is stored; with ones where the file has none."""
        assert piece.form is not None
        part = next(part for part in piece.form.parts() if part.name == name)
        start = 0
        for rows in piece.rows:
            matrix = self.component.matrices[rows.tensor]
            low, high = _part_range(part, rows, matrix.shape)
            into = target[start : start + high - low]
            start += high - low
            entry = matrix.parts.get(name)
            if entry is None:
                into.fill_(1)
            else:
                stored = TORCH_DTYPES[entry.dtype] if entry.dtype in FLOAT_DTYPES else into.dtype
                _read(self._file(entry), entry, stored, low, into, self._buffer)

    def _read(self, assembly: Assembly, values: Tensor) -> None:
        start = 0
        for entry, offset, count in stored_ranges(assembly, self.component.tensors):
            into = values[start : start + count]
            _read(self._file(entry), entry, TORCH_DTYPES[entry.dtype], offset, into, self._buffer)
            start += count

    def _file(self, entry: TensorEntry) -> FileIO:
        if entry.file not in self._files:
            self._files[entry.file] = _opened(entry.file, self._open_file)
        return self._files[entry.file]


def _part_range(part: Part, rows: Rows, shape: Shape) -> tuple[int, int]:
    """From which of a part's values to which belong to some rows of a matrix of this shape."""
    count, width = shape
    if part.whole:
        return 0, part.count(count, width)
    return part.count(rows.first, width), part.count(rows.first + rows.count, width)


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


def _read(file: FileIO, entry: TensorEntry, stored: torch.dtype, first: int, target: Tensor, buffer: bytearray) -> None:
    """Fills the flat, contiguous `target` with values of a tensor stored in this dtype, from its value `first` on."""
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
