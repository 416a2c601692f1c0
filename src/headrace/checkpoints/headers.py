"""What a safetensors file says it holds, read without torch and without believing it.

A safetensors file is eight bytes (little-endian length of the header), a JSON header that gives every tensor its dtype,
shape and byte range, and the tensors one after another. Everything in the header comes from outside: its length, the
shapes and the ranges are all checked against the file's real size before anybody allocates by them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from headrace.errors import RequestError

# The largest header in published FLUX.2 files is under 1 MB; repacks carry whole workflows in their metadata.
MAX_HEADER_BYTES = 32 * 2**20
MAX_DIMENSIONS = 16
MAX_DIMENSION = 2**48

DTYPE_BITS: Mapping[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file: `offset` is in bytes from the start of the file, `size` in bytes."""

    file: Path
    dtype: str
    shape: Shape
    offset: int
    size: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def squeezed(shape: Shape) -> Shape:
    """Without the last dimensions of size 1: a 1x1 convolution and a linear layer hold the same values."""
    length = len(shape)
    while length > 1 and shape[length - 1] == 1:
        length -= 1
    return shape[:length]


def read_header(path: Path) -> Header:
    """Reads and checks the header of one safetensors file.

    Raises RequestError, in one sentence, for anything that is not a whole and consistent safetensors file.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise RequestError(
            f"{path} is a pickle, which can run any code when it is opened: use the same weights as .safetensors."
        )
    try:
        with path.open("rb") as file:
            file_size = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(MAX_HEADER_BYTES, file_size - 8):
                raise RequestError(_not_safetensors(path, start, length, file_size))
            text = file.read(length)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _parse_header(path, text, file_size)


def _not_safetensors(path: Path, start: bytes, length: int, file_size: int) -> str:
    if start == b"version ":
        return f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository."
    if start[:4] == b"GGUF":
        return f"{path} is a GGUF file, which is not read: use the same weights as .safetensors."
    if start[:2] in (b"PK", b"\x80\x02"):
        return f"{path} is a pickle, which can run any code when it is opened: use the same weights as .safetensors."
    if file_size > 8 and file_size - 8 < length <= MAX_HEADER_BYTES:
        return (
            f"{path} ends at byte {file_size} inside its header of {length} bytes: it was not downloaded whole; "
            "download it again."
        )
    return f"{path} is not a safetensors file: its first eight bytes are not the length of a header."


def _parse_header(path: Path, text: bytes, file_size: int) -> Header:
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not a safetensors file: its header is not valid JSON.") from error
    if not isinstance(document, dict):
        raise RequestError(f"{path} is not a safetensors file: its header is not a JSON object.")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise RequestError(f"{path} is damaged: the metadata in its header is not text.")
    data_start = 8 + len(text)
    tensors = {name: _entry(path, name, value, data_start) for name, value in document.items()}
    end = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset != end:
            raise RequestError(
                f"{path} is damaged: the bytes of {_shown(name)} do not follow those of the tensor before."
            )
        end += entry.size
    if file_size < end:
        raise RequestError(f"{path} ends at byte {file_size} of {end}: it was not downloaded whole; download it again.")
    if file_size > end:
        raise RequestError(f"{path} is damaged: {file_size - end} bytes follow its last tensor; download it again.")
    return Header(tensors, metadata)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise RequestError(f"{path} is damaged: {_shown(name)} is not described by an object in the header.")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise RequestError(f"{path} stores {_shown(name)} in a format that is not known: {_shown(str(dtype))}.")
    if not _is_whole_numbers(shape, MAX_DIMENSIONS) or not all(size <= MAX_DIMENSION for size in shape):
        raise RequestError(f"{path} is damaged: {_shown(name)} has no valid shape.")
    if not _is_whole_numbers(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RequestError(f"{path} is damaged: {_shown(name)} has no valid byte range.")
    size = offsets[1] - offsets[0]
    if math.prod(shape) * DTYPE_BITS[dtype] != 8 * size:
        raise RequestError(f"{path} is damaged: {_shown(name)} has {size} bytes, which its shape does not need.")
    return TensorEntry(path, dtype, tuple(shape), data_start + offsets[0], size)


def _is_whole_numbers(value: object, at_most: int) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= at_most
        and all(type(number) is int and number >= 0 for number in value)
    )


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:117] + "...")
