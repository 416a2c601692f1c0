"""What a GGUF file says it holds, read without torch and without believing it.

A GGUF file is a magic number, a version, two counts, as many fields (name, type, value), as many tensor descriptions
(name, dimensions from the fastest on, type, offset), padding, and the tensors (ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from headrace.checkpoints.headers import MAX_DIMENSION, Header, TensorEntry
from headrace.errors import RequestError
from headrace.quant.formats import GGUF_BLOCKS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 * 2**20
MAX_COUNT = 2**20
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 2**20

# ggml's numbers of types: those of plain values with their bytes, and those of blocks.
PLAIN_TYPES: Mapping[int, tuple[str, int]] = {0: ("F32", 4), 1: ("F16", 2), 28: ("F64", 8), 30: ("BF16", 2)}
BLOCK_TYPES: Mapping[int, str] = {
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
}

STRING, ARRAY = 8, 9
# Numbers of field types -> how struct reads them.
NUMBERS: Mapping[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True)
class GgufFile:
    """fields: texts, numbers, and lists of those, by name."""

    tensors: Mapping[str, TensorEntry]
    fields: Mapping[str, Any]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_gguf_header(path: Path) -> Header:
    """As `headrace.checkpoints.headers.read_header`; the metadata are the fields that are a text or a number."""
    read = read_gguf(path)
    plain = {name: str(value) for name, value in read.fields.items() if not isinstance(value, list)}
    return Header(read.tensors, plain)


def read_gguf(path: Path) -> GgufFile:
    """Reads and checks everything before the data of a GGUF file.

    Raises RequestError, in one sentence, for anything that is not a whole and consistent file in types that are read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _read(_Source(path, file, size))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error


class _Source:
    """The beginning of a file, of which no more is taken than there is and than a header may have."""

    def __init__(self, path: Path, file: BufferedReader, size: int) -> None:
        self.path, self.size, self.position = path, size, 0
        self._file = file

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise RequestError(f"{self.path} ends inside its header: it was not downloaded whole; download it again.")
        if count > MAX_HEADER_BYTES - self.position:
            raise RequestError(f"{self.path} is damaged: its header is longer than {MAX_HEADER_BYTES} bytes.")
        self.position += count
        data = self._file.read(count)
        if len(data) != count:
            raise RequestError(f"{self.path} became shorter while it was read.")
        return data

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def text(self) -> str:
        (length,) = self.numbers("Q")
        return self.take(length).decode("utf-8", "surrogateescape")


def _read(source: _Source) -> GgufFile:
    path = source.path
    if source.take(4) != MAGIC:
        raise RequestError(f"{path} is not a GGUF file.")
    (version,) = source.numbers("I")
    if version not in VERSIONS:
        raise RequestError(f"{path} is a GGUF file of version {version}; versions 2 and 3, little-endian, are read.")
    tensor_count, field_count = source.numbers("QQ")
    if max(tensor_count, field_count) > MAX_COUNT:
        raise RequestError(f"{path} is damaged: it announces {tensor_count} tensors and {field_count} fields.")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        name = source.text()
        if name in fields:
            raise RequestError(f"{path} is damaged: it says {_shown(name)} twice.")
        (kind,) = source.numbers("I")
        fields[name] = _field(source, name, kind)
    described = [_description(source) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT:
        raise RequestError(f"{path} is damaged: it aligns its tensors to {str(alignment)[:20]} bytes.")
    start = -(-source.position // alignment) * alignment
    tensors: dict[str, TensorEntry] = {}
    for name, shape, dtype, size, offset in described:
        if name in tensors:
            raise RequestError(f"{path} is damaged: it holds {_shown(name)} twice.")
        if offset % alignment:
            raise RequestError(f"{path} is damaged: {_shown(name)} does not begin where tensors may.")
        if start + offset + size > source.size:
            raise RequestError(
                f"{path} ends at byte {source.size} of at least {start + offset + size}: it was not downloaded whole; "
                "download it again."
            )
        tensors[name] = TensorEntry(path, dtype, shape, start + offset, size)
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].offset):
        if entry.offset < end and entry.size:
            raise RequestError(f"{path} is damaged: the bytes of {_shown(name)} are those of another tensor as well.")
        end = max(end, entry.offset + entry.size)
    return GgufFile(tensors, fields)


def _field(source: _Source, name: str, kind: int) -> Any:
    if kind == STRING:
        return source.text()
    if kind in NUMBERS:
        return source.numbers(NUMBERS[kind])[0]
    if kind != ARRAY:
        raise RequestError(f"{source.path} is damaged: {_shown(name)} is of type {kind}, which GGUF does not have.")
    inner, length = source.numbers("IQ")
    if inner in NUMBERS:
        width = struct.calcsize(NUMBERS[inner])
        return list(struct.unpack(f"<{length}{NUMBERS[inner]}", source.take(length * width)))
    if inner == STRING:
        # Every text takes eight bytes at least, so that the file ends before memory does.
        return [source.text() for _ in range(length)]
    raise RequestError(f"{source.path} is damaged: {_shown(name)} is a list of type {inner}, which is not read.")


def _description(source: _Source) -> tuple[str, tuple[int, ...], str, int, int]:
    """Name, shape from the slowest dimension on, dtype, bytes and offset of a tensor."""
    name = source.text()
    (dimensions,) = source.numbers("I")
    if dimensions > MAX_DIMENSIONS:
        raise RequestError(f"{source.path} is damaged: {_shown(name)} has {dimensions} dimensions.")
    shape = source.numbers(f"{dimensions}Q")[::-1]
    kind, offset = source.numbers("IQ")
    elements = math.prod(shape)
    if any(size > MAX_DIMENSION for size in shape) or elements > MAX_DIMENSION:
        raise RequestError(f"{source.path} is damaged: {_shown(name)} has no valid shape.")
    if kind in PLAIN_TYPES:
        dtype, width = PLAIN_TYPES[kind]
        return name, shape, dtype, elements * width, offset
    if kind not in BLOCK_TYPES:
        raise RequestError(
            f"{source.path} stores {_shown(name)} in ggml's type number {kind}, which is not read: use a file in F16, "
            f"BF16, {', '.join(GGUF_BLOCKS)}."
        )
    dtype = BLOCK_TYPES[kind]
    weights, width = GGUF_BLOCKS[dtype]
    if len(shape) != 2 or shape[1] % weights:
        raise RequestError(f"{source.path} is damaged: {_shown(name)} does not consist of whole blocks of {dtype}.")
    return name, shape, dtype, elements // weights * width, offset


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 120 else name[:117] + "...")
