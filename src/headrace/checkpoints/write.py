"""Writes a safetensors file piece by piece, in an order of our choice, with what fills whole pages on page boundaries.

The format has no room for holes, so the header is padded to whole pages with spaces, and tensors that do not fill
whole pages go to the end of the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from headrace.checkpoints.headers import DTYPE_BITS, Shape

PAGE = 4096


class TensorFile:
    """A new safetensors file at `path`; its tensors are (dtype, shape) by name and are filled within `with`.

    Tensors that fill whole pages begin at a multiple of 4096 bytes, in the order given; the others follow them.
    Entering raises OSError where the file is there already or cannot be made. size: of the whole file, in bytes.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]) -> None:
        self._path = path
        sizes = {name: math.prod(shape) * DTYPE_BITS[dtype] // 8 for name, (dtype, shape) in tensors.items()}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        ends: dict[str, tuple[int, int]] = {}
        end = 0
        for name in sorted(tensors, key=lambda name: sizes[name] % PAGE > 0):
            ends[name] = end, end + sizes[name]
            end += sizes[name]
            dtype, shape = tensors[name]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": ends[name]}
        text = json.dumps(header, separators=(",", ":")).encode()
        self._header = text.ljust(-(-(len(text) + 8) // PAGE) * PAGE - 8)
        self._starts = {name: 8 + len(self._header) + start for name, (start, _) in ends.items()}
        self.size = 8 + len(self._header) + end

    def __enter__(self) -> TensorFile:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = FileIO(self._path, "x")
        self._put(0, memoryview(len(self._header).to_bytes(8, "little") + self._header))
        self._file.truncate(self.size)
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())

    def write(self, name: str, first: int, values: Tensor) -> None:
        """Put values in their final dtype into a tensor, from its value `first` on."""
        data = values.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._put(self._starts[name] + first * values.itemsize, data)

    def _put(self, position: int, data: memoryview) -> None:
        self._file.seek(position)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])
